"""Real models, small: configurations from `transformers`, nothing downloaded, each with its inputs.

``MODELS``: a :class:`Specimen` builds a model and the keyword arguments of one training step.
``SETUPS``: ways of training one of them. ``STEPS``: both, each step built anew from one seed and
run once, so that gradients and the optimizer's state are there.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import peft
import torch
import transformers as T
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from support.independent import Step

T.logging.set_verbosity_error()

VOCABULARY, BATCH, LENGTH = 128, 2, 16
Made = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Specimen:
    """One model; ``config``: what its class of configuration is given.

    ``layers``: the classes that the library's own switch checkpoints, or people would.
    """

    kind: str
    model: str
    layers: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[Any], dict[str, Any]] = dict

    def make(self) -> Made:
        """The model, ready to train, and its inputs."""
        made = getattr(T, self.model)
        config = made.config_class(**self.config)
        return made(config).train(), self.inputs(config)


def training(
    model: nn.Module, inputs: dict[str, Any], optimizer: Callable[..., Any] = AdamW
) -> Step:
    """Forward, backward and update of all parameters that need a gradient."""
    stepping = optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def run() -> None:
        stepping.zero_grad()
        loss_of(model(**inputs)).backward()
        stepping.step()

    return Step(run, model, stepping, inputs)


def loss_of(outputs: Any) -> Tensor:
    """The loss that the model computes; where it computes none, its first output's square."""
    loss = getattr(outputs, "loss", None)
    if loss is not None:
        return loss
    return next(output for output in outputs.values() if torch.is_tensor(output)).square().mean()


# --- inputs -------------------------------------------------------------------------------------


def tokens(config: Any) -> dict[str, Any]:
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}


def words(config: Any) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def pixels(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32)}


def classed_pixels(config: Any) -> dict[str, Any]:
    return pixels(config) | {"labels": torch.randint(0, 2, (BATCH,))}


def waves(config: Any) -> dict[str, Any]:
    return {"input_values": torch.randn(BATCH, 1600)}


# --- the models ---------------------------------------------------------------------------------

MODELS: dict[str, Specimen] = {}


def _enter(
    kind: str, model: str, layers: str | tuple[str, ...], inputs: Any = tokens, **config: Any
) -> None:
    layers = (layers,) if isinstance(layers, str) else layers
    MODELS[model] = Specimen(kind, model, layers, config, inputs)


# A table of configurations, a line or two each.
# fmt: off
_LLAMA = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)
_GROUPED = _LLAMA | dict(num_key_value_heads=2)
_GPT = dict(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
_GPT |= dict(bos_token_id=1, eos_token_id=2)
_EXPERTS = _GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
_PAIR = dict(
    vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64,
    decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=1,
)
_VIT = dict(
    image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64,
)
_WAVE = dict(
    vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
    num_feat_extract_layers=3, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    mask_time_prob=0.0, layerdrop=0.0,
)
_SERIES = dict(
    prediction_length=4, context_length=8, lags_sequence=[1, 2], num_time_features=1, d_model=16,
    encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
)

_enter("decoder", "LlamaForCausalLM", "LlamaDecoderLayer", **_GROUPED)
_enter("decoder", "Qwen2ForCausalLM", "Qwen2DecoderLayer", **_GROUPED)
_enter("decoder", "Qwen3ForCausalLM", "Qwen3DecoderLayer", **_GROUPED, head_dim=8)
_enter("decoder", "MistralForCausalLM", "MistralDecoderLayer", **_GROUPED, sliding_window=8)
_enter(
    "decoder", "Gemma2ForCausalLM", "Gemma2DecoderLayer", **_GROUPED, head_dim=8, sliding_window=8
)
_enter(
    "decoder", "Gemma3ForCausalLM", "Gemma3DecoderLayer", **_GROUPED, head_dim=8, sliding_window=8
)
_enter("decoder", "PhiForCausalLM", "PhiDecoderLayer", **_LLAMA)
_enter("decoder", "Phi3ForCausalLM", "Phi3DecoderLayer", **_GROUPED)
_enter("decoder", "GPT2LMHeadModel", "GPT2Block", **_GPT)
_enter(
    "decoder", "GPTNeoForCausalLM", "GPTNeoBlock", vocab_size=VOCABULARY, hidden_size=32,
    num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)
_enter("decoder", "GPTNeoXForCausalLM", "GPTNeoXLayer", **_LLAMA)
_enter("decoder", "GPTJForCausalLM", "GPTJBlock", **_GPT, rotary_dim=4)
_enter("decoder", "FalconForCausalLM", "FalconDecoderLayer", **_LLAMA)
_enter(
    "decoder", "BloomForCausalLM", "BloomBlock", vocab_size=VOCABULARY, hidden_size=32, n_layer=2,
    n_head=4, bos_token_id=1, eos_token_id=2,
)
_enter(
    "decoder", "OPTForCausalLM", "OPTDecoderLayer", vocab_size=VOCABULARY, hidden_size=32,
    ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    word_embed_proj_dim=32,
)
_enter("decoder", "OlmoForCausalLM", "OlmoDecoderLayer", **_GROUPED)
_enter("decoder", "Olmo2ForCausalLM", "Olmo2DecoderLayer", **_GROUPED)
_enter("decoder", "CohereForCausalLM", "CohereDecoderLayer", **_GROUPED)
_enter("decoder", "StableLmForCausalLM", "StableLmDecoderLayer", **_GROUPED)
_enter("decoder", "Starcoder2ForCausalLM", "Starcoder2DecoderLayer", **_GROUPED)

_enter("experts", "MixtralForCausalLM", "MixtralDecoderLayer", **_GROUPED, num_local_experts=4)
_enter("experts", "Qwen2MoeForCausalLM", "Qwen2MoeDecoderLayer", **_EXPERTS,
       shared_expert_intermediate_size=32)
_enter("experts", "Qwen3MoeForCausalLM", "Qwen3MoeDecoderLayer", **_EXPERTS, head_dim=8)
_enter("experts", "OlmoeForCausalLM", "OlmoeDecoderLayer", **_EXPERTS)
_enter(
    "experts", "DeepseekV3ForCausalLM", "DeepseekV3DecoderLayer", **_LLAMA,
    moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
    n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16,
    qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
)
_enter(
    "experts", "GptOssForCausalLM", "GptOssDecoderLayer", **_GROUPED, head_dim=8,
    num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
)
_enter("experts", "GraniteMoeForCausalLM", "GraniteMoeDecoderLayer", **_GROUPED,
       num_local_experts=4)

_enter(
    "encoder–decoder", "T5ForConditionalGeneration", "T5Block", vocab_size=VOCABULARY, d_model=32,
    d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
)
_enter(
    "encoder–decoder",
    "BartForConditionalGeneration",
    ("BartEncoderLayer", "BartDecoderLayer"),
    **_PAIR,
)
_enter(
    "encoder–decoder",
    "PegasusForConditionalGeneration",
    ("PegasusEncoderLayer", "PegasusDecoderLayer"),
    **_PAIR,
)
_enter("encoder–decoder", "MarianMTModel", ("MarianEncoderLayer", "MarianDecoderLayer"), **_PAIR)
_enter(
    "encoder–decoder",
    "M2M100ForConditionalGeneration",
    ("M2M100EncoderLayer", "M2M100DecoderLayer"),
    **_PAIR,
    encoder_layerdrop=0.0,  # a simulated step draws other numbers, and would leave out others
    decoder_layerdrop=0.0,
)
_enter(
    "encoder–decoder", "SwitchTransformersForConditionalGeneration", "SwitchTransformersBlock",
    vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
    num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4,
    decoder_start_token_id=0,
)

_enter("encoder", "BertForMaskedLM", "BertLayer", **_LLAMA)
_enter("encoder", "RobertaForMaskedLM", "RobertaLayer", **_LLAMA)
_enter("encoder", "DebertaV2ForMaskedLM", "DebertaV2Layer", **_LLAMA, relative_attention=True,
       pos_att_type=["p2c", "c2p"])
_enter("encoder", "ElectraForMaskedLM", "ElectraLayer", **_LLAMA, embedding_size=16)
_enter("encoder", "AlbertForMaskedLM", "AlbertLayer", **_LLAMA, embedding_size=16)
_enter("encoder", "ModernBertForMaskedLM", "ModernBertEncoderLayer", **_LLAMA, local_attention=8,
       global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2)
_enter("encoder", "LongformerForMaskedLM", "LongformerLayer", **_LLAMA, attention_window=8)
_enter("encoder", "FNetForMaskedLM", "FNetLayer", **_LLAMA)
_enter("encoder", "DistilBertForMaskedLM", "TransformerBlock", vocab_size=VOCABULARY, dim=32,
       hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=64)
_enter("encoder", "MPNetForMaskedLM", "MPNetLayer", **_LLAMA)
_enter("encoder", "ConvBertForMaskedLM", "ConvBertLayer", **_LLAMA, embedding_size=32,
       conv_kernel_size=3)
_enter("encoder", "NystromformerForMaskedLM", "NystromformerLayer", **_LLAMA, num_landmarks=4,
       segment_means_seq_len=16, conv_kernel_size=3)
_enter("encoder", "XLNetLMHeadModel", "XLNetLayer", vocab_size=VOCABULARY, d_model=32, n_layer=2,
       n_head=4, d_inner=64)

_enter("vision", "ViTForImageClassification", "ViTLayer", classed_pixels, **_VIT)
_enter(
    "vision", "SwinForImageClassification", "SwinLayer", classed_pixels, image_size=32,
    patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4,
)
_enter("vision", "ConvNextForImageClassification", "ConvNextLayer", classed_pixels,
       hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)
_enter(
    "vision", "SegformerForSemanticSegmentation", "SegformerLayer",
    lambda config: pixels(config) | {"labels": torch.randint(0, 2, (BATCH, 32, 32))},
    num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
    patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2],
    decoder_hidden_size=32,
)
_enter("vision", "Dinov2ForImageClassification", "Dinov2Layer", classed_pixels, **_VIT)
_enter("vision", "BeitForImageClassification", "BeitLayer", classed_pixels, **_VIT)
_enter(
    "vision", "ResNetForImageClassification", "ResNetBasicLayer", classed_pixels,
    embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic",
)
_enter("vision", "ViTMAEForPreTraining", "ViTMAELayer", pixels, **_VIT, decoder_hidden_size=16,
       decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
       decoder_intermediate_size=32)
_enter("vision", "YolosModel", "YolosLayer", pixels, **_VIT | {"image_size": [32, 32]},
       num_detection_tokens=4)
_enter(
    "vision", "DetrForObjectDetection", ("DetrEncoderLayer", "DetrDecoderLayer"), pixels,
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
    encoder_attention_heads=4, decoder_attention_heads=4, num_queries=4, backbone_config=dict(
        model_type="resnet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1],
        layer_type="basic", out_features=["stage2"],
    ),
)

_enter(
    "audio", "WhisperForConditionalGeneration", ("WhisperEncoderLayer", "WhisperDecoderLayer"),
    lambda config: {"input_features": torch.randn(BATCH, 8, 32),
                    "labels": torch.randint(3, VOCABULARY, (BATCH, 8))},
    **_PAIR, num_mel_bins=8, max_source_positions=16, max_target_positions=16,
)
_enter(
    "audio", "Wav2Vec2ForCTC",
    ("Wav2Vec2EncoderLayer", "Wav2Vec2GroupNormConvLayer", "Wav2Vec2NoLayerNormConvLayer"),
    lambda config: waves(config) | {"labels": torch.randint(1, 32, (BATCH, 4))}, **_WAVE,
)
_enter(
    "audio",
    "HubertModel",
    ("HubertEncoderLayer", "HubertGroupNormConvLayer", "HubertNoLayerNormConvLayer"),
    waves,
    **_WAVE,
)
_enter(
    "audio",
    "WavLMModel",
    ("WavLMEncoderLayer", "WavLMGroupNormConvLayer", "WavLMNoLayerNormConvLayer"),
    waves,
    **_WAVE,
)
_enter(
    "audio", "ASTForAudioClassification", "ASTLayer",
    lambda config: {"input_values": torch.randn(BATCH, 32, 16),
                    "labels": torch.randint(0, 2, (BATCH,))},
    **_VIT | {"image_size": 32}, max_length=32, num_mel_bins=16, frequency_stride=8, time_stride=8,
)

_MAMBA = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
_MAMBA |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_enter("state space", "MambaForCausalLM", "MambaBlock", **_MAMBA, state_size=8)
_enter("state space", "Mamba2ForCausalLM", "Mamba2Block", **_MAMBA, state_size=8, num_heads=8,
       head_dim=8, n_groups=1, chunk_size=8)
_enter("state space", "FalconMambaForCausalLM", "FalconMambaBlock", **_MAMBA, state_size=8)
_enter("state space", "RwkvForCausalLM", "RwkvBlock", **_MAMBA, attention_hidden_size=32,
       context_length=64)
_enter(
    "state space", "JambaForCausalLM", ("JambaAttentionDecoderLayer", "JambaMambaDecoderLayer"),
    **_GROUPED, use_mamba_kernels=False, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
    expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
)
_enter("state space", "RecurrentGemmaForCausalLM", "RecurrentGemmaDecoderLayer", **_GROUPED,
       lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"],
       head_dim=8)

_enter(
    "several inputs", "CLIPModel", "CLIPEncoderLayer",
    lambda config: words(config) | pixels(config) | {"return_loss": True},
    text_config=_LLAMA, vision_config=_VIT, projection_dim=16,
)
_enter(
    "several inputs", "SiglipModel", "SiglipEncoderLayer",
    lambda config: words(config) | pixels(config) | {"return_loss": True},
    text_config=_LLAMA, vision_config=_VIT,
)


def _with_images(config: Any, count: int) -> dict[str, Any]:
    ids = torch.randint(3, 120, (BATCH, LENGTH + count))
    ids[:, :count] = 127
    return pixels(config) | {"input_ids": ids, "labels": ids.clone()}


_enter(
    "several inputs", "LlavaForConditionalGeneration", ("CLIPEncoderLayer", "LlamaDecoderLayer"),
    lambda config: _with_images(config, 16),
    text_config=_GROUPED | {"model_type": "llama"},
    vision_config=_VIT | {"model_type": "clip_vision_model"}, image_token_index=127,
    vision_feature_select_strategy="default", vision_feature_layer=-1,
)
_enter(
    "several inputs", "GitForCausalLM", ("GitLayer", "GitVisionEncoderLayer"),
    lambda config: tokens(config) | pixels(config),
    **_LLAMA, vision_config=_VIT,
)
_enter(
    "several inputs", "ViltForMaskedLM", "ViltLayer",
    lambda config: words(config) | pixels(config), **_LLAMA | _VIT,
)
_enter(
    "time series", "PatchTSTForPrediction", "PatchTSTEncoderLayer",
    lambda config: {"past_values": torch.randn(BATCH, 16, 2),
                    "future_values": torch.randn(BATCH, 4, 2)},
    num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, prediction_length=4,
    d_model=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
)


def _series(config: Any) -> dict[str, Any]:
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.randn(BATCH, past),
        "past_time_features": torch.randn(BATCH, past, 1),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.randn(BATCH, config.prediction_length),
        "future_time_features": torch.randn(BATCH, config.prediction_length, 1),
    }


_enter(
    "time series",
    "InformerForPrediction",
    ("InformerEncoderLayer", "InformerDecoderLayer", "InformerConvLayer"),
    _series,
    **_SERIES,
)
_enter(
    "time series", "TimeSeriesTransformerForPrediction",
    ("TimeSeriesTransformerEncoderLayer", "TimeSeriesTransformerDecoderLayer"), _series, **_SERIES,
)
_enter(
    "time series", "PatchTSMixerForPrediction", "PatchTSMixerLayer",
    lambda config: {"past_values": torch.randn(BATCH, 16, 2),
                    "future_values": torch.randn(BATCH, 4, 2)},
    num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, prediction_length=4,
    d_model=16, num_layers=2,
)


# --- ways of training ---------------------------------------------------------------------------

SETUPS: dict[str, Callable[[], Step]] = {}


def _setup(make: Callable[[], Step]) -> Callable[[], Step]:
    SETUPS[make.__name__] = make
    return make


def _llama(**more: Any) -> Made:
    specimen = MODELS["LlamaForCausalLM"]
    config = T.LlamaConfig(**specimen.config | more)
    return T.LlamaForCausalLM(config).train(), tokens(config)


def _adapted(config: Any, checkpointed: bool = False) -> Step:
    model, inputs = _llama()
    adapted = peft.get_peft_model(model, config)
    if checkpointed:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_NON_REENTRANT)
        adapted.enable_input_require_grads()
    return training(adapted.train(), inputs)


_NON_REENTRANT = {"use_reentrant": False}
_LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.1)


@_setup
def lora() -> Step:
    return _adapted(_LORA)


@_setup
def lora_checkpointed() -> Step:
    return _adapted(_LORA, checkpointed=True)


@_setup
def dora() -> Step:
    return _adapted(peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))


@_setup
def ia3() -> Step:
    return _adapted(
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        )
    )


@_setup
def ia3_checkpointed() -> Step:
    return _adapted(
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), checkpointed=True
    )


@_setup
def prefix_tuning() -> Step:
    return _adapted(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


@_setup
def prompt_tuning() -> Step:
    return _adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


@_setup
def prompt_tuning_checkpointed() -> Step:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return _adapted(config, checkpointed=True)


def _with(optimizer: Callable[..., Any], specimen: str = "LlamaForCausalLM") -> Step:
    model, inputs = MODELS[specimen].make()
    return training(model, inputs, optimizer)


@_setup
def sgd_with_momentum() -> Step:
    return _with(partial(SGD, momentum=0.9, nesterov=True))


@_setup
def fused_adamw() -> Step:
    return _with(partial(AdamW, fused=True))


@_setup
def foreach_adamw() -> Step:
    return _with(partial(AdamW, foreach=True))


@_setup
def foreach_sgd() -> Step:
    return _with(partial(SGD, momentum=0.9, foreach=True))


@_setup
def amsgrad() -> Step:
    return _with(partial(Adam, amsgrad=True, weight_decay=0.1), "BertForMaskedLM")


@_setup
def adafactor() -> Step:
    return _with(torch.optim.Adafactor)


@_setup
def adafactor_of_transformers() -> Step:
    return _with(partial(T.Adafactor, relative_step=False), "T5ForConditionalGeneration")


@_setup
def radam() -> Step:
    return _with(torch.optim.RAdam, "GPT2LMHeadModel")


@_setup
def two_optimizers() -> Step:
    """Muon for the matrices of the blocks, AdamW for the rest, as its authors do."""
    model, inputs = _llama()
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    optimizers = (
        torch.optim.Muon(matrices, lr=1e-3),
        AdamW([p for p in model.parameters() if id(p) not in chosen], lr=1e-3),
    )

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model(**inputs)).backward()
        for optimizer in optimizers:
            optimizer.step()

    return Step(run, model, optimizers, inputs)


@_setup
def accumulated_and_clipped() -> Step:
    """Two micro-batches, their gradients added up, clipped, one update, a schedule moved on."""
    model, inputs = _llama()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    schedule = T.get_cosine_schedule_with_warmup(optimizer, 1, 10)

    def run() -> None:
        optimizer.zero_grad()
        for half in range(2):
            part = {name: value[half : half + 1] for name, value in inputs.items()}
            (loss_of(model(**part)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()

    return Step(run, model, optimizer, inputs)


@_setup
def autocast_to_bfloat16() -> Step:
    return _in_autocast("LlamaForCausalLM")


@_setup
def autocast_of_an_encoder() -> Step:
    return _in_autocast("BertForMaskedLM")


@_setup
def autocast_with_checkpoints() -> Step:
    return _in_autocast("LlamaForCausalLM", checkpointed=True)


def _in_autocast(specimen: str, checkpointed: bool = False) -> Step:
    model, inputs = MODELS[specimen].make()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_NON_REENTRANT)
    optimizer = AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(**inputs))
        loss.backward()
        optimizer.step()

    return Step(run, model, optimizer, inputs)


@_setup
def weights_in_bfloat16() -> Step:
    model, inputs = _llama(dtype=torch.bfloat16)
    return training(model.to(torch.bfloat16), inputs)


@_setup
def scaled_gradients() -> Step:
    model, inputs = _llama()
    optimizer, scaler = SGD(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu")

    def run() -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model(**inputs))).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        scaler.step(optimizer)
        scaler.update()

    return Step(run, model, optimizer, [inputs, vars(scaler)])


@_setup
def compiled() -> Step:
    model, inputs = _llama(use_cache=False)
    return _compiled(model, inputs)


@_setup
def compiled_blocks() -> Step:
    model, inputs = _llama(use_cache=False)
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    return training(model, inputs)


@_setup
def compiled_encoder() -> Step:
    return _compiled(*MODELS["BertForMaskedLM"].make())


def _compiled(model: nn.Module, inputs: dict[str, Any]) -> Step:
    torch.compiler.reset()
    return training(torch.compile(model, backend="aot_eager"), inputs)


@_setup
def accelerated() -> Step:
    """A model, its optimizer and schedule in the wrappers of `accelerate`."""
    model, inputs = _llama()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    schedule = T.get_constant_schedule_with_warmup(optimizer, 2)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)

    def run() -> None:
        for _ in range(2):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(**inputs)))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=False)

    return Step(run, model, optimizer, inputs)


@_setup
def averaged_weights() -> Step:
    model, inputs = _llama()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    step = training(model, inputs)

    def run() -> None:
        step.run()
        average.update_parameters(model)

    return Step(run, nn.ModuleList([model, average]), step.optimizer, inputs)


@_setup
def preferences() -> Step:
    """Two answers, a trained model and a frozen one that stays as it was: DPO."""
    model, inputs = _llama()
    frozen = _llama()[0].requires_grad_(False).eval()
    optimizer = AdamW(model.parameters(), lr=1e-3)

    def chosen(of: nn.Module) -> Tensor:
        logits = of(inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, inputs["input_ids"][:, 1:, None]).sum((1, 2))

    def run() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            before = chosen(frozen)
        ratio = chosen(model) - before
        (-nn.functional.logsigmoid(0.1 * (ratio[0] - ratio[1]))).backward()
        optimizer.step()

    return Step(run, nn.ModuleList([model, frozen]), optimizer, inputs)


@_setup
def distilled() -> Step:
    teacher, inputs = _llama()
    student, _ = _llama(num_hidden_layers=1)
    teacher.requires_grad_(False)
    optimizer = AdamW(student.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        with torch.inference_mode():
            wanted = teacher(inputs["input_ids"]).logits.softmax(-1)
        wanted = wanted.clone()
        said = student(inputs["input_ids"]).logits.log_softmax(-1)
        nn.functional.kl_div(said, wanted, reduction="batchmean").backward()
        optimizer.step()

    return Step(run, nn.ModuleList([student, teacher]), optimizer, inputs)


@_setup
def written_then_trained() -> Step:
    """The model writes with its cache of keys and values, and learns from what it wrote."""
    model, inputs = _llama()
    optimizer = AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        ids = model.generate(inputs["input_ids"][:, :4], max_new_tokens=4, min_new_tokens=4,
                             do_sample=True)
        loss_of(model(input_ids=ids, labels=ids)).backward()
        optimizer.step()

    return Step(run, model, optimizer, inputs)


@_setup
def gradient_of_a_gradient() -> Step:
    """A penalty on the gradient with respect to the embedded words."""
    model, inputs = _llama(attn_implementation="eager")
    optimizer = AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        loss = model(inputs_embeds=embedded, labels=inputs["labels"]).loss
        (slope,) = torch.autograd.grad(loss, embedded, create_graph=True)
        (loss + slope.square().sum()).backward()
        optimizer.step()

    return Step(run, model, optimizer, inputs)


@_setup
def head_alone() -> Step:
    model, inputs = MODELS["ViTForImageClassification"].make()
    model.vit.requires_grad_(False)
    return training(model, inputs)


@_setup
def checkpointed_every_second() -> Step:
    model, inputs = _llama(num_hidden_layers=4)
    model.activation_checkpointing_enable(every_n_layers=2)
    return training(model, inputs)


@_setup
def eager_attention() -> Step:
    return training(*_llama(attn_implementation="eager"))


@_setup
def packed_sequences() -> Step:
    """Several texts in one row, told apart by their positions."""
    model, inputs = _llama(use_cache=False)
    positions = torch.arange(LENGTH // 2).repeat(BATCH, 2)
    return training(model, inputs | {"position_ids": positions})


@_setup
def padded() -> Step:
    model, inputs = _llama()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -4:] = 0
    return training(model, inputs | {"attention_mask": mask})


# --- full size ----------------------------------------------------------------------------------

# Llama 3's decoders of 8 and 70 billion parameters.
FULL_SIZE: dict[str, dict[str, int]] = {
    "8B": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8),
    "70B": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                num_attention_heads=64, num_key_value_heads=8),
}


# fmt: on


def full_size(size: str, checkpointed: bool = False, length: int = 4096) -> Step:
    """A step of a decoder of full size, to be built under ``simulated()``; one row of tokens."""
    config = T.LlamaConfig(vocab_size=128256, use_cache=False, **FULL_SIZE[size])
    model = T.LlamaForCausalLM(config).train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_NON_REENTRANT)
    ids = torch.randint(0, config.vocab_size, (1, length))
    return training(model, {"input_ids": ids, "labels": ids})


# --- steps --------------------------------------------------------------------------------------


def _seeded(make: Callable[[], Step]) -> Callable[[], Step]:
    def seeded() -> Step:
        torch.manual_seed(0)
        step = make()
        step.run()  # gradients and the optimizer's state exist from here on
        gc.collect()  # what the libraries leave in cycles
        return step

    return seeded


STEPS: dict[str, Callable[[], Step]] = {
    name: _seeded(make)
    for name, make in {
        **{name: partial(_with, AdamW, name) for name in MODELS},
        **SETUPS,
    }.items()
}
