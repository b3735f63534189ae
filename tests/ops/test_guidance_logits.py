"""Guided logits inside the draw: against float64, scale 1 bit for bit, backends, distribution, refusals."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from hqtvae_fast.ops import sample_logits
from hqtvae_fast.ops.kernels.sample_logits import STRONGEST
from hqtvae_fast.ops.kernels.sample_logits.reference import filter_logits, guided_logits

WHERE = {"step": 3, "position": 1}


def rows(images=6, groups=2, codes=50, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shown = 3 * torch.randn(images, groups, codes, generator=generator)
    return torch.cat([shown, shown + torch.randn(images, groups, codes, generator=generator)]).to(dtype)


def drawn(logits, guidance, backend=None, **options):
    seeds = torch.arange(len(logits) // (1 if guidance is None else 2))
    return sample_logits(logits, seeds=seeds, guidance=guidance, backend=backend, **WHERE, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0, STRONGEST])
def test_combined_logits_against_float64(dtype, scale):
    shown, withheld = rows(dtype=dtype).chunk(2)
    found = guided_logits(shown, withheld, torch.tensor(scale))
    exact = withheld.double() + scale * (shown.double() - withheld.double())
    # Three roundings: of the difference, which the scale enlarges, of the product, and of the sum.
    rounding = 2.0**-24 * (2 * scale * (shown.double() - withheld.double()).abs() + exact.abs())
    assert found.dtype == torch.float32
    assert bool(((found - exact).abs() <= 1.01 * rounding).all())


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 9}, {"top_k": 1}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.9}])
def test_scale_1_is_no_guidance_bit_for_bit(backend, filters):
    logits = rows(dtype=torch.bfloat16)
    logits[0, 0, :5] = float("-inf")
    plain = drawn(logits[:6], None, backend, temperature=0.8, **filters)
    guided = drawn(logits, 1.0, backend, temperature=0.8, **filters)
    assert torch.equal(guided, torch.cat([plain, plain]))
    mixed = drawn(logits, torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0, 3.0]), backend, temperature=0.8, **filters)
    assert torch.equal(mixed[:6:2], plain[::2])  # of each image its own
    assert torch.equal(mixed[1:6:2], drawn(logits, 3.0, backend, temperature=0.8, **filters)[1:6:2])


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 9}, {"top_p": 0.7}])
def test_guidance_draws_from_the_combined_logits(backend, filters):
    """Before temperature and filters, with the noise of the images."""
    logits = rows(dtype=torch.bfloat16)
    wanted = drawn(guided_logits(*logits.chunk(2), torch.tensor(2.5)), None, "reference", temperature=0.7, **filters)
    assert torch.equal(drawn(logits, 2.5, backend, temperature=0.7, **filters), torch.cat([wanted, wanted]))
    local = torch.full((12, 7), -1)
    drawn(logits, torch.tensor(2.5), backend, out=local[:, 2:4], temperature=0.7, **filters)
    assert torch.equal(local[:, 2:4], torch.cat([wanted, wanted]))
    assert set(local[:, [0, 1, 4, 5, 6]].flatten().tolist()) == {-1}


def test_chi_square_of_guided_draws():
    count = 20_000
    generator = torch.Generator().manual_seed(1)
    shown, withheld = torch.randn(2, 12, generator=generator)
    logits = torch.cat([shown.expand(count, -1), withheld.expand(count, -1)])
    codes = drawn(logits, 2.0, temperature=0.9, top_k=10)[:count]
    exact = withheld.double() + 2.0 * (shown.double() - withheld.double())
    wanted = filter_logits(exact[None].float(), 0.9, 10, None)[0].double().softmax(0)
    seen = torch.bincount(codes, minlength=12)
    kept = wanted > 0
    assert int(kept.sum()) == 10
    assert not bool(seen[~kept].any())
    assert stats.chisquare(seen[kept], (wanted[kept] / wanted[kept].sum() * count)).pvalue > 1e-3
    alone = filter_logits(shown[None], 0.9, 10, None)[0].double().softmax(0)
    assert stats.chisquare(seen, (alone + 1e-12) / (alone + 1e-12).sum() * count).pvalue < 1e-9  # and not from those


def test_a_guided_row_with_one_infinite_logit_is_reported():
    logits, invalid = rows(), torch.zeros((), dtype=torch.bool)
    logits[:, 0, 3] = float("-inf")  # in both: never drawn
    drawn(logits, 2.0, invalid=invalid)
    assert not invalid
    logits[8, 1, 3] = float("-inf")
    for backend in ("cpu", "torch", "reference"):
        invalid.zero_()
        drawn(logits, 2.0, backend, invalid=invalid)
        assert invalid
    logits[8, 1, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN in row"):
        drawn(logits, 2.0)


@pytest.mark.parametrize(
    "guidance,message",
    [
        (-0.5, "guidance: expected numbers from 0 to 100"),
        (float("nan"), "guidance: expected"),
        (STRONGEST + 1, "got 101"),
        (torch.ones(5), r"guidance: expected float32 \[\] or \[6\]; got torch.float32 \[5\]"),
        (torch.ones(6, dtype=torch.float64), "got torch.float64"),
    ],
)
def test_guidance_refusals(guidance, message):
    with pytest.raises(ValueError, match=message):
        drawn(rows(), guidance)


def test_guidance_needs_two_rows_an_image():
    with pytest.raises(ValueError, match="logits: expected two rows of each image with guidance; got 5"):
        drawn(torch.zeros(5, 1, 4), 2.0)
    with pytest.raises(ValueError, match=r"seeds: expected \[3\]; got \[6\]"):
        sample_logits(torch.zeros(6, 1, 4), seeds=torch.arange(6), guidance=2.0, **WHERE)
