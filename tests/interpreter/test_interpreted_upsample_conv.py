"""The Triton kernel of folded upsampling, interpreted on the CPU, against float64."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.upsample_conv.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.upsample_conv.triton import LARGE, SMALL

torch.set_num_threads(1)
CPU = torch.device("cpu")


def small_cases():
    for tile in (SMALL, LARGE):
        for case in SPEC.small:
            inputs = make_inputs(case, CPU, 0)
            SPEC.check(SPEC.run(*inputs, backend=f"triton/{tile.name}"), SPEC.reference(*inputs), inputs)


def operators():
    inputs = (*make_inputs(SPEC.small[0], CPU, 0), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.upsample_conv.default, inputs)
"""

CHECKS = Checks(("small_cases",), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
