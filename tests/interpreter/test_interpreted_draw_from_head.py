"""The head's product with the draw, interpreted: equal to the draw from stored logits wherever products are exact."""

from __future__ import annotations

import pytest
import torch
from interpreted import file_outcomes, main, needs_triton

from hqtvae_fast.ops import draw_from_head, sample_logits
from hqtvae_fast.ops.kernels.sample_logits import COLDEST, noise


def exact_inputs(B, G, D, K, dtype=torch.float32):
    """Small whole numbers: any order of summation gives the same logits, many of them equal, and bf16 holds them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (B, G, D), generator=generator).to(dtype)
    weight = torch.randint(-1, 2, (K, D), generator=generator).to(dtype)
    return x, weight, {"seeds": torch.randint(-(2**62), 2**62, (B,), generator=generator), "step": 5, "position": 2}


def stored(x, weight, **options):
    return sample_logits(torch.nn.functional.linear(x, weight), backend="reference", **options)


def codes_are_those_of_stored_logits():
    for sizes in ((3, 2, 20, 77), (2, 4, 16, 100), (30, 4, 20, 300), (70, 1, 12, 129)):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight, options = exact_inputs(*sizes, dtype)
            drawn = draw_from_head(x, weight, temperature=0.9, backend="triton", **options)
            assert torch.equal(drawn, stored(x, weight, temperature=0.9, **options)), (sizes, dtype)


def words_and_noise_bit_for_bit():
    from noise_kernels import tile_noise_kernel

    seeds = torch.tensor([0, -5, 2**62 + 123456789012345, -(2**63)])
    steps, positions = torch.tensor([0, 63, 2**31 + 7, 1]), torch.tensor([0, 20, 3, 1])
    words, noises = torch.zeros(4, 64, dtype=torch.int64), torch.zeros(4, 64)
    tile_noise_kernel[(1,)](seeds, steps, positions, words, noises, 4096, ROWS=4, CODES=64)
    wanted = noise.random_words(seeds, steps, positions, 4096 + 64)[:, 4096:]
    assert torch.equal(words, wanted)
    assert torch.equal(noises.view(torch.int32), noise.gumbel(wanted).view(torch.int32))


def near_ties_are_settled_by_the_exact_score():
    """With a margin so wide that every code is near, the draw is still the definition's."""
    import triton.language as tl

    from hqtvae_fast.ops.kernels.draw_from_head import triton_kernels

    x, weight, options = exact_inputs(4, 4, 10, 100)
    wanted = stored(x, weight, **options)
    narrow = triton_kernels.MARGIN
    try:
        triton_kernels.MARGIN = tl.constexpr(1e9)
        assert torch.equal(draw_from_head(x, weight, backend="triton", **options), wanted)
        triton_kernels.MARGIN = tl.constexpr(-1e9)  # none is near: the margin that is set is the one that is used
        assert not torch.equal(draw_from_head(x, weight, backend="triton", **options), wanted)
    finally:
        triton_kernels.MARGIN = narrow


def the_lowest_of_equal_scores():
    """Infinite logits are equal whatever the noise: in one tile, and in several."""
    x = torch.ones(3, 1)
    options = {"seeds": torch.arange(3), "step": 0, "position": 0, "backend": "triton"}
    for first, second in ((5, 9), (40, 97), (33, 64)):
        weight = torch.zeros(100, 1)
        weight[[first, second]] = float("inf")
        assert draw_from_head(x, weight, **options).tolist() == [first] * 3
    assert draw_from_head(x, torch.full((100, 1), float("-inf")), **options).tolist() == [0] * 3


def nan_is_reported():
    weight = torch.zeros(100, 2)
    x = torch.ones(4, 2)
    x[2, 1] = float("nan")
    for backend in ("triton", "unfused", "reference"):
        with pytest.raises(ValueError, match="NaN logits"):
            draw_from_head(x, weight, seeds=torch.arange(4), step=0, position=0, backend=backend)
    where = (torch.arange(4), torch.tensor(0), torch.tensor(0), torch.tensor(1.0))
    out, invalid = torch.full((4, 1), -1), torch.zeros((), dtype=torch.bool)
    torch.ops.hqtvae_fast.draw_from_head(x[:, None], weight, out, invalid, *where, "triton")
    assert bool(invalid)
    assert bool(((out >= 0) & (out < 100)).all())
    healthy = draw_from_head(torch.ones(4, 2), weight, seeds=torch.arange(4), step=0, position=0, backend="triton")
    assert torch.equal(out[[0, 1, 3], 0], healthy[[0, 1, 3]])


def numbers_in_memory_and_strides():
    x, weight, options = exact_inputs(2, 3, 10, 80)
    plain = draw_from_head(x, weight, temperature=0.7, backend="triton", **options)
    held = {"temperature": torch.tensor(0.7), "step": torch.tensor(5), "position": torch.tensor([2, 2])}
    local = torch.full((2, 9), -1)
    wide = torch.zeros(2, 9, 10)
    wide[:, 2:5] = x
    options = {**options, **held}
    draw_from_head(wide[:, 2:5], weight, out=local[:, 3:6], backend="triton", **options)
    assert torch.equal(local[:, 3:6], plain)
    assert set(local[:, :3].flatten().tolist()) | set(local[:, 6:].flatten().tolist()) == {-1}


def the_coldest_temperature_draws_the_largest():
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    place = {"seeds": torch.arange(4), "step": 5, "position": 2}
    drawn = draw_from_head(torch.eye(4), logits.T.contiguous(), temperature=COLDEST, backend="triton", **place)
    assert torch.equal(drawn, logits.argmax(dim=1))


CHECKS = {
    check.__name__: check
    for check in (
        codes_are_those_of_stored_logits,
        words_and_noise_bit_for_bit,
        near_ties_are_settled_by_the_exact_score,
        the_lowest_of_equal_scores,
        nan_is_reported,
        numbers_in_memory_and_strides,
        the_coldest_temperature_draws_the_largest,
    )
}


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(check):
    assert file_outcomes(__file__, tuple(CHECKS))[check] == ""


if __name__ == "__main__":
    main(CHECKS)
