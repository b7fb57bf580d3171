"""A decoder of eight billion parameters at 8,192 tokens, measured and advised on a laptop."""

import json
import subprocess
import sys

SCRIPT = """
import json, re, time, torch, course_lib
from course_lib import advise, measure, simulated
from transformers import LlamaConfig, LlamaForCausalLM

measure(lambda: torch.ones(1, requires_grad=True).sum().backward())  # everything is loaded
with simulated():
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        use_cache=False, torch_dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config).bfloat16().train()
    words = torch.zeros(1, 8192, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    begin = time.process_time()
    trace = measure(step, model, optimizer, words)
    advice = advise(step, model, optimizer, words, budget="80 GiB")
    seconds = time.process_time() - begin
    applied = []
    for key in ("all", advice.best.key):
        advice.apply(key)
        found = measure(step, model, optimizer, words)
        applied.append([found.peak, found.flops, advice[key].peak, advice[key].flops])
# not ru_maxrss: that begins with what the process that started this one held
memory = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
plain = advice["none"]
print(json.dumps({
    "seconds": seconds, "memory": memory, "parameters": sum(p.numel() for p in model.parameters()),
    "measured": [trace.peak, trace.flops], "told": [plain.peak, plain.flops], "applied": applied,
    "best": advice.best.peak, "took": advice.took,
}))
"""


def test_a_decoder_of_eight_billion_parameters(report):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["parameters"] > 8e9 and found["took"] == "32 × LlamaDecoderLayer"
    assert found["told"] == found["measured"]
    assert found["best"] <= 80 * 2**30 < found["measured"][0]
    for peak, flops, told_peak, told_flops in found["applied"]:
        assert (peak, flops) == (told_peak, told_flops)
    report(f"eight billion parameters, measured and advised: {found['seconds']:.1f} s of processor")
    assert found["memory"] < 3 * 2**30, found
