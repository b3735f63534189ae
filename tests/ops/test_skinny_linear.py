"""Skinny products: how many rows which variant takes, and the moments of rows that they leave and read."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hqtvae_fast.ops import skinny_linear
from hqtvae_fast.ops.kernels.skinny_linear import BACKENDS, reference, triton
from hqtvae_fast.ops.kernels.skinny_linear.spec import LAYERS, SPEC
from hqtvae_fast.tune.proof import Trials

NAMES = {backend.name: backend for backend in BACKENDS}
LARGE = ("64x1", "128x0.7", "128x1")


@pytest.mark.parametrize("rows", [1, 16, 17, 50, 64, 128, 129, 200])
def test_rows_that_a_variant_takes(rows):
    """On tensors of a GPU that have no values."""
    with FakeTensorMode():
        x, weight = (torch.empty(count, 64, dtype=torch.bfloat16, device="cuda") for count in (rows, 128))
        able = {name for name, each in NAMES.items() if each.why_not(x, weight, None, None, None) is None}
        reason = NAMES["triton"].why_not(x, weight, None, None, None)
    large = {f"triton/{tile}" for tile in LARGE}
    small = {f"triton/{tile}" for tile in triton.TILES if tile not in LARGE}
    expected = {"torch", "reference"} | (small if rows <= 16 else large if rows <= 128 else set())
    assert able == expected | ({"triton"} if rows <= 128 else set())
    assert (reason == f"expected 1 to 128 rows; got {rows}") == (rows > 128)


def test_a_norm_of_many_rows_is_told_its_moments():
    with FakeTensorMode():
        many, few, weight, vector = (
            torch.empty(*shape, device="cuda") for shape in ((50, 64), (16, 64), (9, 64), (64,))
        )
        moments, nothing = torch.empty(2, 1, 50, device="cuda"), (None, None, None, "none", False)
        asked = [
            NAMES["triton"].why_not(x, weight, *nothing, vector, vector, 1e-5, None, told)
            for x, told in ((many, moments), (many, None), (few, None))
        ]
        asked.append(NAMES["triton"].why_not(few, weight, *nothing, None, None, 0.0, None, moments))
    assert asked[0] is None
    assert "told" in asked[1]
    assert asked[2] is None
    assert "tiles of 64 outputs or more" in asked[3]


@pytest.mark.parametrize("count", [108, 114, 132, 142])
@pytest.mark.parametrize("name", ["", *LARGE])
@pytest.mark.parametrize("layer", LAYERS)
def test_parts_divide_the_inputs_and_fit_their_workspace(layer, name, count, monkeypatch):
    tile = triton.TILES[name] if name else triton.STREAMED
    N, K = LAYERS[layer]
    for dtype in (torch.bfloat16, torch.float32):
        parts = triton.parts(N, K, dtype, tile, count)
        assert K % (parts * triton.width(dtype, tile)) == 0
        assert ceil(N / tile.out) * parts <= 2 * tile.programs * count or parts == 1
        monkeypatch.setattr(triton, "multiprocessors", lambda device: count)
        sums = parts * ceil(N / tile.out) * tile.out * 128
        assert sums * (parts > 1) <= triton.Workspace.on(torch.device("meta")).partials.numel()


@pytest.mark.parametrize("tile", [triton.DEFAULT, triton.STREAMED, *triton.TILES.values()])
def test_no_parts_are_more_than_the_workspace_is_for(tile):
    """Whatever the sizes: 13 steps divide by 13 alone."""
    for steps in range(1, 40):
        for N in range(64, 12000, 640):
            parts = triton.parts(N, steps * triton.width(torch.bfloat16, tile), torch.bfloat16, tile, 132)
            assert parts == 1 or ceil(N / tile.out) * parts <= 2 * tile.programs * 132


# -------------------------------------------------------------------------------------------------------------- moments


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.floats(-100, 100), st.floats(0.01, 30), st.integers(0, 2**31))
def test_a_rows_moments_are_those_of_its_groups(M, D, mean, deviation, seed):
    """As the kernel joins them, for rows far from zero too."""
    x = mean + deviation * torch.randn(M, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    means, squares = reference.moments_of(x)
    sizes = torch.tensor([min(64, D - first) for first in range(0, D, 64)])[:, None]
    joined = (sizes * means).sum(0) / D
    variance = (squares + sizes * (means - joined) ** 2).sum(0) / D
    torch.testing.assert_close(joined, x.mean(1))
    torch.testing.assert_close(variance, x.var(1, correction=0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_product_leaves_the_moments_of_what_it_gives(backend):
    x, weight, residual = torch.randn(5, 4, 30), torch.randn(150, 30), torch.randn(5, 4, 150)
    moments = torch.full((2, 3, 20), float("nan"))
    y = skinny_linear(x, weight, residual=residual, moments=moments, backend=backend)
    torch.testing.assert_close(moments, reference.moments_of(y))
    before = moments.clone()
    norm = (torch.rand(150), torch.randn(150), 1e-5)
    skinny_linear(y, torch.randn(7, 150), norm=norm, moments=moments, backend=backend)
    assert torch.equal(moments, before)  # a norm's are only read


def test_hard_inputs_have_moments_of_their_own():
    """A proof changes x; what a norm is told of it must change too."""
    (case,) = (case for case in SPEC.small if case.name == "norm of a sum of known moments, int8")
    trials = list(Trials(SPEC, case, torch.device("cpu")))
    assert len(trials) > 3
    for trial in trials:
        x, added, moments = (trial.inputs[index] for index in (0, 10, 11))
        torch.testing.assert_close(moments, reference.moments_of(x + added))
    assert len({float(trial.inputs[11].sum()) for trial in trials}) == len(trials)


def test_moments_of_another_shape_are_refused():
    x, weight = torch.randn(20, 30), torch.randn(150, 30)
    for moments in (torch.zeros(2, 2, 20), torch.zeros(2, 3, 20).double(), torch.zeros(3, 2, 20).transpose(0, 1)):
        with pytest.raises(ValueError, match=r"moments: expected contiguous torch.float32 \[2, 3, 20\]; got"):
            skinny_linear(x, weight, moments=moments)


@pytest.mark.parametrize("normed", [False, True])
def test_operator_with_moments(normed):
    x, vector = torch.randn(20, 70), torch.randn(70)
    norm = (vector, vector, 1e-5) if normed else (None, None, 0.0)
    moments = torch.zeros(2, 2, 20)
    work = (torch.zeros(9), torch.zeros(9, dtype=torch.int32))
    inputs = (x, torch.randn(70, 70), None, vector, x + 1, "exact", False, *norm, None, moments, *work, "reference")
    torch.library.opcheck(torch.ops.hqtvae_fast.skinny_linear.default, inputs)
