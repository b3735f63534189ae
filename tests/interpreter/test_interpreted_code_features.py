"""The Triton kernel that makes the decoder's input from codes, interpreted on the CPU."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.code_features import code_features
from hqtvae_fast.ops.kernels.code_features.spec import SPEC, make_inputs

torch.set_num_threads(1)
CPU = torch.device("cpu")


def small_cases():
    for case in SPEC.small:
        inputs = make_inputs(case, CPU, 0)
        SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def a_level_left_out():
    codes, tables, base = make_inputs(SPEC.small[1], CPU, 0)
    for kept in ([0], [1], [2], [0, 2]):
        inputs = ([codes[i] for i in kept], [tables[i] for i in kept], base)
        SPEC.check(code_features(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def operators():
    inputs = (*make_inputs(SPEC.small[0], CPU, 0), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.code_features.default, inputs)
"""

CHECKS = Checks(("small_cases", "a_level_left_out"), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
