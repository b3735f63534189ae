"""The search is exact: what float64 brute force gives, whatever the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.ops import nearest_code
from hqtvae_fast.ops.nearest_code import reference, screened


def brute_force(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distances = (z.double()[:, None] - codebook.double()[None]).square().sum(dim=-1)
    return distances.argmin(dim=1)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40),
    codes=st.integers(1, 70),
    width=st.integers(1, 40),
    scale=st.sampled_from([1e-42, 1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e15, 1e19, 3e37]),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e5]),
    duplicated=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**20),
)
def test_equal_to_brute_force(rows, codes, width, scale, offset, duplicated, dtype, seed):
    """Offsets make |z|^2 + |e|^2 - 2ze cancel; scales reach below the normal range and up to where squares overflow."""
    generator = torch.Generator().manual_seed(seed)
    codebook = (torch.randn(codes, width, generator=generator) + offset).clamp(-1e6, 1e6) * scale
    if duplicated:
        codebook = codebook[torch.randint(codes, (codes,), generator=generator)]
    z = codebook[torch.randint(codes, (rows,), generator=generator)]
    z = z + 0.1 * scale * torch.randn(rows, width, generator=generator)
    limit = torch.finfo(torch.float32).max / 2
    z, codebook = (values.clamp(-limit, limit).to(dtype) for values in (z, codebook))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_half_precision():
    z, codebook = torch.randn(50, 16).half(), torch.randn(33, 16).half()
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_a_row_midway_between_two_codes_takes_the_lower():
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), codebook).tolist() == [1, 1]


def test_cancellation_that_fp32_scores_get_wrong():
    """Codes 1e-3 apart at a distance of 1e4 from zero: fp32 squares resolve 8."""
    codebook = torch.full((64, 4), 1e4) + torch.arange(64)[:, None] * 1e-3
    z = codebook.flip(0) + 1e-4
    naive = reference.squared_distances(z, codebook).argmin(dim=1)
    assert not torch.equal(naive, brute_force(z, codebook))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarser_products_are_not_trusted(precision):
    before = torch.get_float32_matmul_precision()
    z, codebook = torch.randn(64, 256) + 30, torch.randn(128, 256) + 30
    try:
        torch.set_float32_matmul_precision(precision)
        found = nearest_code(z, codebook)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, brute_force(z, codebook))


def test_few_rows_are_scored_twice(monkeypatch):
    """With codes as a trained model has them, fewer than 1 in 50: the search costs hardly more than its product."""
    torch.manual_seed(0)
    codebook = torch.randn(1024, 128)
    z = codebook[torch.randint(1024, (200,))] + 0.7 * torch.randn(200, 128)
    pairs = []
    original = screened._closest_pair
    monkeypatch.setattr(screened, "_closest_pair", lambda *args: pairs.append(len(args[2])) or original(*args))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))
    assert sum(pairs) - len(z) * len(pairs) < len(z) // 50


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gives_an_index(value):
    z, codebook = torch.randn(3, 4), torch.randn(5, 4)
    expected = brute_force(z, codebook)
    z[1, 2] = value
    found = nearest_code(z, codebook)
    assert 0 <= int(found[1]) < 5
    assert found[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize(
    "z,codebook,message",
    [
        (torch.zeros(3, 4), torch.zeros(5, 3), r"expected \[N, C\] and \[K, C\]; got \[3, 4\] and \[5, 3\]"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "at least one code"),
        (torch.zeros(3, 4), torch.zeros(5, 4).double(), "one floating dtype"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(5, 4, dtype=torch.int64), "one floating dtype"),
    ],
)
def test_refusals(z, codebook, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(z, codebook)
