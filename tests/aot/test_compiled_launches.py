"""What launchers launch on the specs' real cases is what is compiled ahead of time and held against budgets.

No kernel runs and none is compiled: run as a program, this file puts a device that is not there in Triton's driver's
place and a record of types, constants and options in a launch's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ROOT = Path(__file__).parents[2]
ARCH = 90
DEFAULTS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}  # Triton's own


@pytest.fixture(scope="module")
def answers():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, __file__]
    environment |= {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.slow
def test_every_launch_of_a_real_case_is_compiled_ahead_of_time(answers):
    assert len(answers["launched"]) >= 20  # kernels, by op
    assert answers["unknown"] == []


# ------------------------------------------------------------------------------------------- as a program of its own


def watch_launches(found: list, attributes: bool = False) -> None:
    """``attributes``: also what of the arguments' values a compilation depends on."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoDevice:
        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", ARCH, 32)

    def launcher(self, grid):
        def launch(*args, **kwargs):
            binder = self.device_caches[0][-1]
            kwargs = {"debug": False, **kwargs}
            bound, specialization, options = binder(*args, **kwargs)
            constexpr = {p.name for p in self.params if p.is_constexpr}
            types, constants = {}, {}
            for (name, value), (kind, _) in zip(bound.items(), specialization, strict=True):
                if name in constexpr or value is None:
                    constants[name] = str(value)
                else:
                    types[name] = "i32" if kind == "constexpr" else kind  # an integer that is 1
            chosen = {key: options.get(key, default) for key, default in DEFAULTS.items()}
            found.append({"kernel": self.fn.__name__, "types": types, "constants": constants, **chosen})
            if attributes:
                found[-1]["attributes"] = str(specialization)

        return launch

    driver.set_active(NoDevice())
    JITFunction.__getitem__ = launcher


def compiled(variant) -> dict:
    parameters = {p.name for p in variant.kernel.params if not p.is_constexpr}
    ones = {name: "i32" for name, value in variant.constants.items() if value == 1 and name in parameters}
    return {
        "kernel": variant.kernel.fn.__name__,
        "types": dict(variant.signature) | ones,
        "constants": {name: str(value) for name, value in variant.constants.items() if name not in ones},
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": variant.fp_fusion,
    }


def launches_of(spec, found: list) -> list:
    import torch

    """Of our backend for it on each case, and of each tile on the first that it can take."""
    start = len(found)
    for case in spec.cases:
        inputs = spec.make_inputs(case, torch.device("cpu"), 0)
        names = (each.name for each in spec.backends if each.base == "triton" and each.why_not(*inputs) is None)
        spec.run(*inputs, backend=next(names))
    for variant in spec.backends:
        inputs = (spec.make_inputs(case, torch.device("cpu"), 0) for case in spec.cases)
        taken = next((each for each in inputs if variant.tile and variant.why_not(*each) is None), None)
        if taken is not None:
            spec.run(*taken, backend=variant.name)
    return found[start:]


def answer() -> dict:
    import torch

    found: list = []
    watch_launches(found)
    from hqtvae_fast.ops import triton_launch

    # What it refuses here is that there is no GPU. Both have been imported by name elsewhere.
    triton_launch.why_not.__code__ = (lambda *inputs: None).__code__
    triton_launch.dependents.__code__ = (lambda x: True).__code__
    from hqtvae_fast.ops.spec import all_specs

    # Only sizes matter: numbers that cost nothing, and no codes that no table has.
    torch.randn = torch.rand = lambda *shape, generator=None, **kwargs: torch.zeros(*shape, **kwargs)
    torch.empty = lambda *shape, memory_format=torch.contiguous_format, **kwargs: torch.zeros(*shape, **kwargs).to(
        memory_format=memory_format
    )
    launched, unknown = set(), []
    for spec in all_specs().values():
        if variants := [compiled(variant) for variant in spec.variants(ARCH)]:
            for launch in launches_of(spec, found):
                launched.add((spec.op, launch["kernel"]))
                if launch not in variants and [spec.op, launch] not in unknown:
                    unknown.append([spec.op, launch])
    return {"launched": sorted(launched), "unknown": unknown}


if __name__ == "__main__":
    print(json.dumps(answer()))
