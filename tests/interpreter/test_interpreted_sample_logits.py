"""The draw's Triton kernel, interpreted: its noise bit for bit, its filters at their edges, what is on the device."""

from __future__ import annotations

import pytest
import torch
from interpreted import Checks, file_outcomes, main, needs_triton

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops.kernels.sample_logits import COLDEST, noise, sample_logits, triton


def draw(logits, backend="triton", **options):
    options = {"seeds": torch.arange(len(logits)), "step": 5, "position": 2, **options}
    return sample_logits(logits, backend=backend, **options)


def noise_bit_for_bit():
    from noise_kernels import gumbel_kernel, noise_kernel

    for seed, step, position in ((0, 0, 0), (-5, 63, 20), (2**62 + 123456789012345, 2**31 + 7, 3), (-(2**63), 1, 1)):
        coordinates = [torch.tensor([value]) for value in (seed, step, position)]
        words, noises = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096)
        noise_kernel[(1,)](*coordinates, words, noises, N=4096)
        wanted = noise.random_words(*coordinates, 4096)[0]
        assert torch.equal(words, wanted)
        assert torch.equal(noises.view(torch.int32), noise.gumbel(wanted).view(torch.int32))
    ends = torch.cat([torch.arange(2**15), torch.arange(2**32 - 2**15, 2**32)])  # both tails
    noises, roughs = torch.zeros(2, 2**16)
    gumbel_kernel[(1,)](ends, noises, roughs, N=2**16)
    assert torch.equal(noises.view(torch.int32), noise.gumbel(ends).view(torch.int32))


def the_rough_variate_stays_inside_the_margin():
    """But for the hardware's logarithm, whose error the margin allows for: here it is exact to the last bit or two."""
    from noise_kernels import gumbel_kernel, triton_kernels

    ends = torch.cat([torch.arange(2**15), torch.arange(2**32 - 2**15, 2**32)])
    border = 2**27 + torch.arange(-(2**15), 2**15)  # where the series ends
    for words in (ends, border, torch.arange(0, 2**32, 2**16)):
        noises, roughs = torch.zeros(2, 2**16)
        gumbel_kernel[(1,)](words, noises, roughs, N=2**16)
        assert float((noises - roughs).abs().max()) < triton_kernels.MARGIN.value / 8


def near_ties_are_settled_by_the_exact_score():
    """With a margin so wide that every code is near, the draw is still the definition's."""
    import triton.language as tl
    from noise_kernels import triton_kernels

    def drawn_with(margin):
        narrow, triton_kernels.MARGIN = triton_kernels.MARGIN, tl.constexpr(margin)
        try:
            return draw(logits)
        finally:
            triton_kernels.MARGIN = narrow

    logits = torch.randn(12, 30)
    wanted = draw(logits, "reference")
    assert torch.equal(draw(logits), wanted)
    assert torch.equal(drawn_with(1e9), wanted)
    assert not drawn_with(-1e9).any()  # none is near: the margin that is set is the one that is used


def ties_at_the_kth_value_stay():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0, -0.0]]).expand(16, -1)
    drawn = set(draw(logits, top_k=2).tolist())
    assert drawn <= {0, 2, 3, 4}
    assert len(drawn & {2, 3, 4}) >= 2  # all tied with the second largest; two would be kept without ties
    zeros = torch.tensor([[0.0, -0.0, -1.0, -2.0]]).expand(10, -1)
    assert set(draw(zeros, top_k=1 + 1).tolist()) == {0, 1}
    ladder = 1.75 + 2.0**-23 * torch.arange(16)  # neighbours in fp32, some of which are equal once divided by 1.5
    first = int((ladder[1:] / 1.5 == ladder[:-1] / 1.5).nonzero()[0])
    near = torch.tensor([2.0, float(ladder[first + 1]), float(ladder[first]), -9.0])[None].expand(16, -1)
    assert set(draw(near, top_k=2, temperature=1.5).tolist()) == {0, 1, 2}
    assert set(draw(near, top_k=2, temperature=1.0).tolist()) == {0, 1}
    for k in (2, 7):
        assert torch.equal(draw(logits, top_k=k), draw(logits, "reference", top_k=k))


def top_p_keeps_the_first_of_equal_codes():
    logits = torch.zeros(24, 10)
    assert set(draw(logits, top_p=0.25).tolist()) == {0, 1, 2}  # 0.1 + 0.1 + 0.1 reaches it
    assert set(draw(logits, top_p=1e-6).tolist()) == {0}
    assert torch.equal(draw(logits, top_p=1.0), draw(logits))
    assert max(draw(logits).tolist()) > 2
    logits[:, 7] = 1.0
    assert set(draw(logits, top_p=0.4).tolist()) == {0, 1, 7}
    logits[:, :] = float("-inf")
    logits[:, 4] = 0.0
    assert set(draw(logits, top_p=0.999).tolist()) == {4}


def greedy_and_infinite():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [-3.0, float("-inf"), -3.0, -4.0], [0.0, 1.0, float("inf"), 2.0]])
    assert draw(logits, top_k=1).tolist() == [1, 0, 2]
    assert draw(logits.bfloat16(), top_k=1).tolist() == [1, 0, 2]
    for options in ({}, {"top_p": 0.5}, {"top_k": 3}):
        assert int(draw(logits, **options)[2]) == 2
        assert set(draw(logits[1:2].expand(10, -1), **options).tolist()) <= {0, 2, 3}


def nan_is_reported():
    logits = torch.zeros(4, 2, 50)

    def drawn_with(logits, backend):
        B, G, _ = logits.shape
        out, invalid = torch.full((B, G), -1), torch.zeros((), dtype=torch.bool)
        numbers = (torch.tensor(0.9), torch.tensor(7), torch.tensor(0.8))
        where = (torch.arange(B), torch.tensor(1), torch.tensor(2))
        torch.ops.hqtvae_fast.sample_logits(logits, out, invalid, *where, *numbers, None, backend)
        return out, bool(invalid)

    out, invalid = drawn_with(logits, "triton")
    assert not invalid
    logits[2, 1, 3] = float("nan")
    broken, invalid = drawn_with(logits, "triton")
    assert invalid
    assert int(broken.min()) >= 0
    assert int(broken.max()) < 50
    healthy = torch.ones(4, 2, dtype=torch.bool)
    healthy[2, 1] = False
    assert torch.equal(out[healthy], broken[healthy])
    assert drawn_with(logits, "reference")[1]


def numbers_in_memory_and_strides():
    logits = torch.randn(2, 3, 80, generator=torch.Generator().manual_seed(0))
    numbers = {"temperature": 0.9, "top_k": 20, "top_p": 0.7}
    plain = draw(logits, **numbers)
    held = {
        "temperature": torch.tensor(0.9),
        "top_k": torch.tensor(20),
        "top_p": torch.tensor(0.7),
        "step": torch.tensor(5),
        "position": torch.tensor(2),
    }
    local = torch.full((2, 9), -1)
    draw(logits, out=local[:, 3:6], **held)
    assert torch.equal(local[:, 3:6], plain)
    assert set(local[:, :3].flatten().tolist()) | set(local[:, 6:].flatten().tolist()) == {-1}
    held["step"].add_(1)
    held["top_k"].fill_(1)
    assert torch.equal(draw(logits, **held), logits.argmax(dim=2))
    wide = torch.randn(2, 9, 100)[:, 2:5, :80]
    assert torch.equal(draw(wide, **numbers), draw(wide.clone(), **numbers))
    steps, positions = torch.arange(2) + 3, torch.arange(2) * 2
    together = draw(logits, **numbers, step=steps, position=positions)
    for g in range(3):  # [B, K] rows with coordinates of their own
        assert torch.equal(draw(logits[:, g], **numbers, step=steps, position=positions + g), together[:, g])


def the_coldest_temperature_draws_the_largest():
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        largest = logits.to(dtype).argmax(dim=1)
        for filters in ({}, {"top_k": 5}, {"top_p": 0.9}):
            assert torch.equal(draw(logits.to(dtype), temperature=COLDEST, **filters), largest)


def guidance_combines_two_rows():
    generator = torch.Generator().manual_seed(0)
    shown = 3 * torch.randn(3, 2, 60, generator=generator)
    logits = torch.cat([shown, shown + torch.randn(3, 2, 60, generator=generator)])
    logits[[0, 3], :, ::5] = float("-inf")  # in both
    seeds, filters = torch.arange(3), ({}, {"top_k": 9}, {"top_p": 0.8}, {"top_k": 1}, {"top_k": 30, "top_p": 0.9})
    for dtype in (torch.float32, torch.bfloat16):
        rows = logits.to(dtype)
        for options in filters:
            for scale in (torch.tensor(2.5), torch.tensor([1.0, 0.0, 4.0])):
                how = {"seeds": seeds, "guidance": scale, "temperature": 0.9, **options}
                assert torch.equal(draw(rows, **how), draw(rows, "reference", **how))
            plain = draw(rows[:3], seeds=seeds, **options)
            assert torch.equal(draw(rows, seeds=seeds, guidance=1.0, **options), torch.cat([plain, plain]))
    local = torch.full((6, 5), -1)
    draw(logits, seeds=seeds, guidance=2.0, out=local[:, 1:3])
    assert torch.equal(local[:, 1:3], draw(logits, "reference", seeds=seeds, guidance=2.0))
    assert set(local[:, [0, 3, 4]].flatten().tolist()) == {-1}
    logits[4, 0, 1], invalid = float("-inf"), torch.zeros((), dtype=torch.bool)
    draw(logits, seeds=seeds, guidance=2.0, invalid=invalid)
    assert invalid


def long_rows_are_refused():
    with pytest.raises(BackendError, match="expected at most 8192 codes; got 8193"):
        draw(torch.zeros(1, triton.LARGEST + 1))


CHECKS = {
    check.__name__: check
    for check in (
        noise_bit_for_bit,
        the_rough_variate_stays_inside_the_margin,
        near_ties_are_settled_by_the_exact_score,
        ties_at_the_kth_value_stay,
        top_p_keeps_the_first_of_equal_codes,
        greedy_and_infinite,
        nan_is_reported,
        numbers_in_memory_and_strides,
        the_coldest_temperature_draws_the_largest,
        guidance_combines_two_rows,
        long_rows_are_refused,
    )
}


# The small cases among a step's kernels are guided too.
SLOW = ("guidance_combines_two_rows",)
NAMES = Checks(tuple(name for name in CHECKS if name not in SLOW), slow=SLOW)


@needs_triton
@pytest.mark.parametrize("check", NAMES.params)
def test_interpreted(check):
    assert file_outcomes(__file__, NAMES.beside(check))[check] == ""


if __name__ == "__main__":
    main(CHECKS)
