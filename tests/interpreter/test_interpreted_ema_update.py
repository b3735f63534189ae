"""The Triton kernels of the EMA codebook step, interpreted on the CPU, against float64."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.ema_update import code_statistics, ema_update
from hqtvae_fast.ops.kernels.ema_update.spec import SPEC

torch.set_num_threads(1)


def small_cases():
    for case in SPEC.small:
        for deterministic in (False, True):
            inputs = (*SPEC.make_inputs(case, torch.device("cpu"), 0)[:-1], deterministic)
            try:
                SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, deterministic {deterministic}: {error}") from error


def a_view_and_one_code_for_all():
    z = torch.randn(9, 40).T
    for deterministic in (False, True):
        counts, sums = code_statistics(
            z, torch.full((40,), 2), 5, deterministic=deterministic, backend="triton"
        )
        assert counts.tolist() == [0, 0, 40, 0, 0]
        torch.testing.assert_close(sums[2], z.sum(dim=0))
        assert not bool(sums[[0, 1, 3, 4]].any())


def codes_outside_are_left_out():
    z, codes = torch.ones(4, 3), torch.tensor([-1, 0, 5, 1])
    for deterministic in (False, True):
        counts, sums = code_statistics(z, codes, 5, deterministic=deterministic, backend="triton")
        assert counts.tolist() == [1, 1, 0, 0, 0]
        assert sums.sum() == 6


def operators():
    z, codes = torch.randn(7, 4), torch.arange(7) % 3
    for deterministic in (False, True):
        torch.library.opcheck(
            torch.ops.hqtvae_fast.code_statistics.default, (z, codes, 3, deterministic, "triton")
        )
    counts, sums = code_statistics(z, codes, 3)
    state = (torch.randn(3, 4), torch.rand(3) + 1, torch.randn(3, 4))
    torch.library.opcheck(torch.ops.hqtvae_fast.ema_update.default, (*state, counts, sums, 0.99, 1e-5, "triton"))
"""

CHECKS = Checks(("small_cases", "a_view_and_one_code_for_all", "codes_outside_are_left_out"), slow=("operators",))


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
