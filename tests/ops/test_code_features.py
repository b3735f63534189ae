"""The decoder's input from tables, against its definition."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import code_features
from hqtvae_fast.ops.kernels.code_features.spec import SPEC, make_inputs

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_pixel_by_pixel(case):
    codes, tables, base = inputs = make_inputs(case, CPU, 0)
    got = code_features(*inputs)
    SPEC.check(got, SPEC.reference(*inputs), inputs)
    side = case["H"]
    for y, x in ((0, 0), (1, 0), (side - 1, side - 2), (side // 2, side - 1)):
        wanted = base[y % windows(base[None]) * windows(base[None]) + x % windows(base[None])].double()
        for level, table in zip(codes, tables, strict=True):
            f = windows(table)
            wanted = wanted + table[level[0, y // f, x // f], y % f * f + x % f].double()
        torch.testing.assert_close(
            got[0, :, y, x].double(), wanted, rtol=1e-2 if base.itemsize == 2 else 1e-6, atol=1e-6
        )


def windows(table):
    return round(table.shape[1] ** 0.5)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.code_features.default, (*make_inputs(case, CPU, 0), "reference"))


def test_the_check_sees_another_place_in_the_window():
    codes, tables, base = inputs = make_inputs(SPEC.small[0], CPU, 0)
    turned = [tables[0].flip(1), tables[1]]
    with pytest.raises(AssertionError, match="off by"):
        SPEC.check(code_features(codes, turned, base), SPEC.reference(*inputs), inputs)


CODES, TABLE, BASE = torch.zeros(1, 2, 2).long(), torch.zeros(3, 4, 5), torch.zeros(4, 5)


@pytest.mark.parametrize(
    "inputs,message",
    [
        (([], [], BASE), "expected a table for each of one level or more; got 0 and 0"),
        (([CODES], [TABLE[:, :3]], BASE), "windows: expected a square number of pixels; got 3"),
        (
            ([CODES, CODES], [TABLE, TABLE[:, :1]], BASE),
            r"expected levels of one map \[B, H, W\]; got \[\(1, 2, 2\), \(",
        ),
        (([CODES], [TABLE], torch.zeros(9, 5)), r"expected windows that divide \[\(1, 4, 4\)\]; got 3"),
        (([CODES], [TABLE[..., :4]], BASE), r"tables: expected torch.float32 \[K, f\*f, 5\] as base; got"),
        (([CODES.int()], [TABLE], BASE), "expected int64 codes and floating tables; got torch.int32"),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        code_features(*inputs)


def test_triton_says_why_not():
    with pytest.raises(BackendError, match="expected tensors on a CUDA device"):
        code_features([CODES], [TABLE], BASE, backend="triton")
    with pytest.raises(BackendError, match="expected up to 3 levels; got 4"):
        code_features([CODES] * 4, [TABLE] * 4, BASE, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = make_inputs(case, torch.device("cuda"), 0)
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)
