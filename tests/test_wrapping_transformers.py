"""Checkpointed blocks of real models, built small from a configuration, nothing downloaded.

Beside the library's own switch: the same bytes at the peak, the same gradients.
"""

import copy
import warnings
from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from course_lib.lightning import GradientCheckpointing, quiet
from course_lib.memory import measure
from course_lib.wrapping.blocks import checkpoint_blocks, checkpointed, plain_blocks

transformers = pytest.importorskip("transformers")
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

TEXT = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
PAIR = {
    "vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "decoder_start_token_id": 1, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
IMAGE = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "num_channels": 3,
}  # fmt: skip
SOUND = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
    "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False,  # which draws from NumPy
}  # fmt: skip
GPT = {"vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}

DECODERS = """
    Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Phi Phi3 StableLm Olmo Olmo2 Olmo3 Cohere Cohere2
    Starcoder2 GPTNeoX Granite Glm Glm4 Nemotron SmolLM3 Arcee Exaone4 Lfm2 Apertus Ernie4_5
    Persimmon Mamba FalconMamba RecurrentGemma DiffLlama Doge Falcon Qwen3Next
"""
MIXTURES = "Mixtral Qwen2Moe Qwen3Moe Olmoe GptOss Ernie4_5_Moe Glm4Moe"
CAUSAL = {
    **{name: {} for name in DECODERS.split()},
    **{name: EXPERTS for name in MIXTURES.split()},
    "GPT2": GPT, "GPTBigCode": GPT, "GPTJ": {**GPT, "rotary_dim": 8},
    "CodeGen": {**GPT, "rotary_dim": 8}, "Bloom": {"n_layer": 3, "n_head": 4},
    "OPT": {"word_embed_proj_dim": 64, "ffn_dim": 128},
    "GPTNeo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 4,
               "num_hidden_layers": 4},
    "Qwen3Next": {"num_hidden_layers": 4},
    "Rwkv": {"attention_hidden_size": 64},
}  # fmt: skip
ENCODERS = "Bert Roberta Electra Deberta DebertaV2 ModernBert RoFormer Nystromformer FNet"
MASKED = ENCODERS.split()
SEQ2SEQ = ["T5", "MT5", "Bart", "MBart", "Pegasus", "Marian", "M2M100"]
VISION = ["ViT", "DeiT", "Beit", "Dinov2", "ViTMSN", "CLIPVision", "SiglipVision"]
AUDIO = ["Wav2Vec2", "Hubert", "WavLM"]


@dataclass
class Made:
    model: nn.Module
    inputs: dict

    def loss(self, **more):
        torch.manual_seed(2)  # for dropout
        out = self.model(**self.inputs, **more)
        if getattr(out, "loss", None) is not None:
            return out.loss
        made = [t for t in tree_leaves(tuple(out.values())) if isinstance(t, torch.Tensor)]
        return sum(t.float().square().mean() for t in made if t.requires_grad)

    def gradients(self, **more):
        self.model.zero_grad()
        self.loss(**more).backward()
        return [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def trace(self):
        self.model.zero_grad()
        inputs = list(self.inputs.values())
        return measure(lambda: self.loss().backward(), self.model, inputs=inputs)


def made(name: str, **options) -> Made:
    torch.manual_seed(0)
    tokens = torch.randint(3, 128, (2, 24))
    if name in CAUSAL:
        options = {**TEXT, **CAUSAL[name], **options}
        kinds, inputs = ("ForCausalLM", "LMHeadModel"), {"input_ids": tokens, "labels": tokens}
    elif name in MASKED:
        options = {**TEXT, **options}
        kinds, inputs = ("ForMaskedLM",), {"input_ids": tokens}
    elif name in SEQ2SEQ:
        options = {**PAIR, **options}
        kinds, inputs = (
            ("ForConditionalGeneration", "MTModel"),
            {"input_ids": tokens, "labels": tokens},
        )
    elif name in VISION:
        options = {**IMAGE, **options}
        kinds, inputs = ("Model",), {"pixel_values": torch.randn(2, 3, 32, 32)}
    else:
        options = {**SOUND, **options}
        kinds, inputs = ("Model",), {"input_values": torch.randn(2, 1000)}
    config = getattr(transformers, name + "Config")(**options)
    make = next(getattr(transformers, name + k) for k in kinds if hasattr(transformers, name + k))
    return Made(make(config).train(), inputs)


def layers(model) -> tuple[type, ...]:
    return tuple({type(m): 0 for m in model.modules() if isinstance(m, GradientCheckpointingLayer)})


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CAUSAL, *MASKED, *SEQ2SEQ, *VISION, *AUDIO])
def test_the_same_bytes_and_gradients_as_the_librarys_own_switch(name):
    """Or fewer bytes. In so small a model the peak may fall outside the blocks: then it stays."""
    it = made(name)
    state = copy.deepcopy(it.model.state_dict())  # routing may count
    plain = it.gradients()
    it.model.load_state_dict(state)
    before = it.trace()
    it.model.load_state_dict(state)
    it.model.gradient_checkpointing_enable({"use_reentrant": False})
    own = it.gradients(), it.trace()
    it.model.gradient_checkpointing_disable()
    it.model.load_state_dict(state)
    done = checkpoint_blocks(it.model, layers(it.model))
    assert done.paths
    assert same(it.gradients(), plain) and same(own[0], plain)
    after = it.trace()
    assert after.peak <= own[1].peak
    assert kept(after) <= kept(own[1]) < kept(before)
    assert not any("WRONG" in en for _, en in done.doubts)
    assert plain_blocks(it.model) == len(done.paths)


def kept(trace) -> int:
    return trace.kept_for_backward()


def test_the_cache_is_switched_off_said_and_put_back():
    for name, use_cache in (("Llama", True), ("Llama", False), ("T5", True)):
        it = made(name, use_cache=use_cache)
        kept = {
            id(m.config): m.config.use_cache for m in it.model.modules() if hasattr(m, "config")
        }
        plain, before = it.gradients(), it.trace().peak
        done = checkpoint_blocks(it.model, layers(it.model))
        assert any("use_cache was on" in en for _, en in done.doubts) is use_cache
        assert it.model.config.use_cache is False
        assert same(it.gradients(), plain) and it.trace().peak < before
        checkpoint_blocks(it.model, layers(it.model), every=2)
        plain_blocks(it.model)
        for module in it.model.modules():
            if hasattr(module, "config"):
                assert module.config.use_cache is kept[id(module.config)]


def test_the_cache_of_a_copy_is_of_its_own():
    it = made("Llama")
    checkpoint_blocks(it.model, "LlamaDecoderLayer")
    other = copy.deepcopy(it.model)
    plain_blocks(other)
    assert other.config.use_cache is True and it.model.config.use_cache is False


def test_a_configuration_inside_another():
    """The decoder's, in a model that sees and speaks."""
    vision = transformers.CLIPVisionConfig(**{**IMAGE, "num_hidden_layers": 1})
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=vision
    )
    model = transformers.LlavaForConditionalGeneration(config)
    assert "use_cache" not in str(checkpoint_blocks(model, "CLIPEncoderLayer").doubts)
    assert "use_cache was on" in str(checkpoint_blocks(model, "LlamaDecoderLayer").doubts)
    assert config.text_config.use_cache is False
    plain_blocks(model)
    assert config.text_config.use_cache is True


def test_a_configuration_that_cannot_be_changed():
    @dataclass(frozen=True)
    class Frozen:
        use_cache: bool = True

    class Own(nn.Sequential):
        config = Frozen()

    model = Own(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert "build the model with use_cache=False" in checkpoint_blocks(model, "0").doubts[0][1]


@pytest.mark.parametrize("how", ["use_cache", "past_key_values"])
def test_a_cache_that_is_passed_is_said_and_harms_nothing(how):
    it = made("Llama")
    plain = it.gradients()
    checkpoint_blocks(it.model, "LlamaDecoderLayer")
    more = (
        {"use_cache": True}
        if how == "use_cache"
        else {"past_key_values": transformers.DynamicCache()}
    )
    with pytest.warns(UserWarning, match="was handed a cache .DynamicCache"):
        found = it.gradients(**more)
    assert same(found, plain)
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", category=FutureWarning)
        assert same(it.gradients(), plain)  # without one, and not said again


def test_a_model_whose_own_switch_is_on():
    it = made("Qwen2")
    it.model.gradient_checkpointing_enable({"use_reentrant": False})
    done = checkpoint_blocks(it.model, "Qwen2DecoderLayer")
    assert done.paths == () and len(done.found) == 3
    assert "gradient_checkpointing is on already" in done.doubts[0][1]


@pytest.mark.parametrize("kind", ["LoraConfig", "PrefixTuningConfig"])
def test_adapters(kind):
    peft = pytest.importorskip("peft")
    options = {"r": 4} if kind == "LoraConfig" else {"num_virtual_tokens": 4}
    it = made("Llama")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **options)
    with warnings.catch_warnings(action="ignore"):
        it.model = peft.get_peft_model(it.model, config)
        plain = it.gradients()
        done = checkpoint_blocks(it.model, "LlamaDecoderLayer")
        assert len(done.paths) == 3 and same(it.gradients(), plain)


def test_in_lightning():
    class Tuning(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = made("Llama").model

        def training_step(self, batch, index):
            return self.model(input_ids=batch[0], labels=batch[0]).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data = DataLoader(TensorDataset(torch.randint(3, 128, (4, 12))), batch_size=2)
    models = Tuning(), Tuning()
    flag = GradientCheckpointing("LlamaDecoderLayer", undo=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        for model, callbacks in zip(models, ([], [flag]), strict=True):
            torch.manual_seed(0)
            L.Trainer(
                accelerator="cpu", devices=1, max_epochs=1, callbacks=callbacks, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            ).fit(model, data)  # fmt: skip
    assert any("use_cache was on" in str(warning.message) for warning in caught)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert checkpointed(models[1]) == () and models[1].model.config.use_cache is True
