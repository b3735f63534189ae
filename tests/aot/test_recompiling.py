"""A step launches what the step before it compiled: no address or number that moves with it makes another kernel.

Nothing runs and nothing is compiled: run as a program, this file draws on a CPU by launchers whose launches are only
recorded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = ("", "fused_draw", "kv=int8")
OPS = ("decode_attention", "draw_from_head", "embed_codes", "local_attention", "sample_logits")


@pytest.fixture(scope="module")
def launched():
    """Kernels by step of each engine, of one process."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, *ENGINES]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return dict(zip(ENGINES, map(json.loads, result.stdout.splitlines()[-len(ENGINES) :]), strict=True))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("engine", ENGINES)
def test_no_step_compiles_anything_again(engine, launched):
    kernels = launched[engine]
    wanted = {"tiles_kernel", "settle_kernel"} if engine == "fused_draw" else {"draw_kernel"}
    wanted |= {"embed_codes_kernel", f"decode_attention_{'int8_' if engine == 'kv=int8' else ''}kernel"}
    assert wanted <= {name for step in kernels for name, _ in step}
    for later in kernels[1:]:
        assert later == kernels[0]


def answer(engine: str) -> list:
    """Kernels and all that their compilation depends on, by step from the second on."""
    from test_compiled_launches import watch_launches

    found: list = []
    watch_launches(found, attributes=True)
    import torch

    from hqtvae_fast.config import BlocksConfig, TransformerConfig
    from hqtvae_fast.engine.loop import Drawing, SamplingParams
    from hqtvae_fast.engine.options import EngineOptions
    from hqtvae_fast.model import HQTransformer
    from hqtvae_fast.ops import triton_launch

    # What no kernel writes is not to be NaN by chance, which a draw refuses.
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    torch.Tensor.new_empty = torch.Tensor.new_zeros
    triton_launch.why_not.__code__ = (lambda *inputs: None).__code__  # what it refuses here is that there is no GPU
    blocks = BlocksConfig(num_layers=1, num_heads=4)
    config = TransformerConfig(dim=64, body=blocks, head=blocks, codebook_sizes=(64, 64), side=2, num_classes=4)
    model = HQTransformer(config).eval()
    params, options = SamplingParams((1.0, 1.0), (None, None), (None, None)), EngineOptions.read(engine)
    with torch.inference_mode():
        zeros = torch.zeros(3, dtype=torch.int64)
        drawing = Drawing.make(model, zeros, zeros, params, engine="fused", options=options)
        steps = []
        for step in range(config.num_steps):
            found.clear()
            drawing.run(steps=range(step, step + 1))
            launched = {(each.pop("kernel"), json.dumps(each, sort_keys=True)) for each in found}
            steps.append(sorted(launched))
    return steps[1:]


if __name__ == "__main__":
    for each_engine in sys.argv[1:]:
        names = dict.fromkeys(OPS, "triton")
        names["decode_attention"] += "/int8" * (each_engine == "kv=int8")
        os.environ["HQTVAE_BACKEND"] = ",".join(f"{op}={name}" for op, name in names.items())
        print(json.dumps(answer(each_engine)))
