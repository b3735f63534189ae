"""Residual quantization of all levels: against its definition written out, with every resampler, and in training."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import hierarchical_quantize
from hqtvae_fast.ops.kernels.hierarchical_quantize import commitment, straight_through
from hqtvae_fast.ops.kernels.hierarchical_quantize.spec import SPEC

RESAMPLERS = ("pixel_shuffle", "average")
DOWN = {
    "pixel_shuffle": functools.partial(F.pixel_unshuffle, downscale_factor=2),
    "average": lambda x: F.avg_pool2d(x, 2),
}
UP = {
    "pixel_shuffle": functools.partial(F.pixel_shuffle, upscale_factor=2),
    "average": functools.partial(F.interpolate, scale_factor=2.0, mode="nearest"),
}


def draw(levels, resampler, B=2, d=3, H=8, K=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(levels)
    z = torch.randn(B, d, H, H, generator=generator)
    widths = [d * 4 ** (levels - 1 - level) if resampler == "pixel_shuffle" else d for level in range(levels)]
    return z.to(dtype), [torch.randn(K, width, generator=generator).to(dtype) for width in widths]


def nearest(z, codebook):
    B, C, H, W = z.shape
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, C).double()
    return (rows - codebook.double()).square().sum(dim=2).argmin(dim=1).view(B, H, W)


def define(z, codebooks, resampler, straight=False):
    """Level by level with autograd's own graph: residuals, codes and embeddings."""
    pyramid = [z]
    for _ in codebooks[1:]:
        pyramid.insert(0, DOWN[resampler](pyramid[0]))
    residuals, codes, embeddings, said = [], [], [], None
    for target, codebook in zip(pyramid, codebooks, strict=True):
        residual = target if said is None else target - said
        codes.append(nearest(residual.detach(), codebook))
        embedding = F.embedding(codes[-1], codebook).permute(0, 3, 1, 2)
        if straight:
            embedding = residual + (embedding - residual).detach()
        residuals.append(residual)
        embeddings.append(embedding)
        if target.shape[2] < z.shape[2]:
            said = UP[resampler](embedding if said is None else said + embedding)
    return residuals, codes, embeddings


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_codes_and_embeddings_are_those_of_level_by_level(levels, resampler, layout):
    z, codebooks = draw(levels, resampler)
    _, expected, embedded = define(z, codebooks, resampler)
    codes, embeddings = hierarchical_quantize(z.contiguous(memory_format=layout), codebooks, resampler=resampler)
    assert [code.shape[1] for code in codes] == [8 // 2 ** (levels - 1 - level) for level in range(levels)]
    for got, wanted in zip((*codes, *embeddings), (*expected, *embedded), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_narrow_latents_are_subtracted_in_single_precision(resampler, dtype):
    """A residual rounded to bf16 is nearest to another code now and then: so the kernels and torch agree on fp32."""
    z, codebooks = draw(2, resampler, B=8, K=200, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    _, expected, _ = define(z.to(wide), [codebook.to(wide) for codebook in codebooks], resampler)
    codes, embeddings = hierarchical_quantize(z, codebooks, resampler=resampler)
    assert all(torch.equal(*pair) for pair in zip(codes, expected, strict=True))
    assert [embedding.dtype for embedding in embeddings] == [dtype] * 2


def test_no_pictures_and_autocast():
    z, codebooks = draw(2, "pixel_shuffle")
    codes, embeddings = hierarchical_quantize(z[:0], codebooks)
    assert [tuple(x.shape) for x in (*codes, *embeddings)] == [(0, 4, 4), (0, 8, 8), (0, 12, 4, 4), (0, 3, 8, 8)]
    plain = hierarchical_quantize(z + 30, codebooks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = hierarchical_quantize(z + 30, codebooks)
    assert all(torch.equal(*pair) for pair in zip((*plain[0], *plain[1]), (*cast[0], *cast[1]), strict=True))


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_straight_through_has_the_gradient_of_level_by_level(levels, resampler):
    z, codebooks = draw(levels, resampler, dtype=torch.float64)
    mine, theirs = (z.clone().requires_grad_() for _ in range(2))
    wanted_residuals, _, wanted_embeddings = define(theirs, codebooks, resampler, straight=True)
    _, embeddings = hierarchical_quantize(mine.detach(), codebooks, resampler=resampler)
    residuals, straight = straight_through(mine, embeddings, resampler=resampler)
    torch.manual_seed(0)
    losses = []
    for got, wanted in zip((*residuals, *straight), (*wanted_residuals, *wanted_embeddings), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(got)
        losses.append(((weights * got.square()).sum(), (weights * wanted.square()).sum()))
    (got,) = torch.autograd.grad(sum(mine for mine, _ in losses), mine)
    (wanted,) = torch.autograd.grad(sum(theirs for _, theirs in losses), theirs)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_commitment_draws_residuals_to_their_codes(resampler):
    z, codebooks = draw(2, resampler)
    z.requires_grad_()
    _, embeddings = hierarchical_quantize(z, codebooks, resampler=resampler)
    residuals, straight = straight_through(z, embeddings, resampler=resampler)
    losses = commitment(residuals, straight)
    for loss, residual, embedding in zip(losses, residuals, embeddings, strict=True):
        torch.testing.assert_close(loss, (residual - embedding).square().mean())
    (gradient,) = torch.autograd.grad(losses[0], z)
    difference = 2 * (residuals[0] - embeddings[0]).detach() / residuals[0].numel()
    torch.testing.assert_close(gradient, UP[resampler](difference) / (1 if resampler == "pixel_shuffle" else 4))


def test_only_latents_get_a_gradient_and_only_through_straight_through():
    z, codebooks = draw(2, "pixel_shuffle")
    z.requires_grad_()
    codes, embeddings = hierarchical_quantize(z, codebooks)
    assert not any(x.requires_grad for x in (*codes, *embeddings))
    codebooks = [codebook.requires_grad_() for codebook in codebooks]
    _, straight = straight_through(z, [embedding.requires_grad_() for embedding in embeddings])
    sum(x.sum() for x in straight).backward()
    assert z.grad is not None
    assert [embedding.grad for embedding in embeddings] == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_operators_keep_torchs_rules(resampler, dtype):
    operators = torch.ops.hqtvae_fast
    z, codebooks = draw(2, resampler, dtype=dtype)
    torch.library.opcheck(operators.hierarchical_quantize.default, (z, codebooks, resampler, "reference"))
    embeddings = list(hierarchical_quantize(z, codebooks, resampler=resampler)[1])
    torch.library.opcheck(operators.hierarchical_straight_through.default, (z.requires_grad_(), embeddings, resampler))


@pytest.mark.parametrize(
    "z,widths,resampler,message",
    [
        (torch.zeros(2, 3, 8, 4), [12, 3], "pixel_shuffle", r"z: expected \[B, d, H, H\]; got \[2, 3, 8, 4\]"),
        (torch.zeros(2, 3, 6, 6), [48, 12, 3], "pixel_shuffle", r"H a multiple of 2\^\(levels - 1\); got 3"),
        (torch.zeros(2, 3, 8, 8), [], "pixel_shuffle", "expected 1 or more"),
        (torch.zeros(2, 3, 8, 8), [3, 3], "pixel_shuffle", r"codebook of level 0: expected \[K, 12\]; got \[5, 3\]"),
        (torch.zeros(2, 3, 8, 8), [12, 3], "average", r"codebook of level 0: expected \[K, 3\]; got \[5, 12\]"),
        (torch.zeros(2, 3, 8, 8).double(), [12, 3], "pixel_shuffle", "expected z's torch.float64, floating; got"),
        (torch.zeros(2, 3, 8, 8), [12, 3], "conv", "resampler: expected one of pixel_shuffle, average; got 'conv'"),
    ],
)
def test_refusals(z, widths, resampler, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_quantize(z, [torch.zeros(5, width) for width in widths], resampler=resampler)


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    z, codebooks = draw(2, "pixel_shuffle")
    with pytest.raises(BackendError, match=r"'triton', which cannot run: expected tensors on a CUDA device"):
        hierarchical_quantize(z, codebooks, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="expected at most 3 levels; got 4"):
        hierarchical_quantize(*draw(4, "pixel_shuffle"), backend="triton")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_spec(case):
    inputs = SPEC.make_inputs(case, torch.device("cpu"), 0)
    wanted = SPEC.reference(*inputs)
    SPEC.check(SPEC.run(*inputs), wanted, inputs)
    assert all(
        torch.equal(*pair)
        for pair in zip(SPEC.baselines["level by level, torch.cdist"](*inputs), wanted[0], strict=True)
    )
    wrong = [code.clone() for code in wanted[0]]
    wrong[-1].view(-1)[0] += 1
    with pytest.raises(AssertionError, match=f"level {case['L'] - 1}: 1 of"):
        SPEC.check((wrong, wanted[1]), wanted, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", [*SPEC.small, *SPEC.cases], ids=lambda case: case.name)
def test_on_a_gpu(case, layout):
    z, codebooks, resampler = SPEC.make_inputs(case, torch.device("cuda"), 0)
    z = z.contiguous(memory_format=layout)
    wanted = hierarchical_quantize(z, codebooks, resampler=resampler, backend="reference")
    got = hierarchical_quantize(z, codebooks, resampler=resampler, backend="triton")
    SPEC.check(got, wanted, (z, codebooks, resampler))


@pytest.mark.gpu
def test_on_a_gpu_neither_maps_nor_residuals_are_stored():
    """Beyond codes, embeddings and split codebooks: 12 bytes a row and block of codes."""
    z, codebooks, resampler = SPEC.make_inputs(SPEC.cases[0], torch.device("cuda"), 0)
    hierarchical_quantize(z, codebooks, resampler=resampler, backend="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    codes, embeddings = hierarchical_quantize(z, codebooks, resampler=resampler, backend="triton")
    results = sum(x.nbytes for x in (*codes, *embeddings))
    books = 4 * sum(codebook.nbytes for codebook in codebooks)
    scratch = 12 * codes[-1].numel() * codebooks[-1].shape[0] // 128
    assert torch.cuda.max_memory_allocated() - before < results + books + scratch + z.nbytes // 4
