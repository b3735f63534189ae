"""The exact search over windows and residuals made while they are read, interpreted, against level by level."""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.hierarchical_quantize import hierarchical_quantize
from hqtvae_fast.ops.kernels.hierarchical_quantize.spec import SPEC
from hqtvae_fast.ops.kernels.nearest_code import triton

torch.set_num_threads(1)


def small_cases():
    for case in SPEC.small:
        z, *rest = SPEC.make_inputs(case, torch.device("cpu"), 0)
        wanted = SPEC.reference(z, *rest)
        for layout in (torch.channels_last, torch.contiguous_format):
            got = SPEC.run(z.contiguous(memory_format=layout), *rest, backend="triton")
            SPEC.check(got, wanted, (z, *rest))


def narrow_latents():
    for dtype in (torch.bfloat16, torch.float16):
        z, codebooks, resampler = SPEC.make_inputs(SPEC.small[0], torch.device("cpu"), 0)
        inputs = (z.to(dtype), [codebook.to(dtype) for codebook in codebooks], resampler)
        SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def chunks_of_pictures_and_a_view():
    z, *rest = SPEC.make_inputs(SPEC.small[0], torch.device("cpu"), 0)
    wide = torch.cat((z, z, z), dim=1)[:, 8:16]
    before, triton.CHUNK_ROWS = triton.CHUNK_ROWS, 64
    SPEC.check(SPEC.run(wide, *rest, backend="triton"), SPEC.reference(z, *rest), (z, *rest))
    triton.CHUNK_ROWS = before


def duplicated_codes():
    z, codebooks, resampler = SPEC.make_inputs(SPEC.small[2], torch.device("cpu"), 0)
    inputs = (z[:1], [codebook.repeat(2, 1) for codebook in codebooks], resampler)
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def average():
    z, codebooks, _ = SPEC.make_inputs(SPEC.small[0], torch.device("cpu"), 0)
    inputs = (z[:1], [codebooks[-1], codebooks[-1]], "average")
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def operator():
    z, codebooks, resampler = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    torch.library.opcheck(torch.ops.hqtvae_fast.hierarchical_quantize.default, (z[:1], codebooks, resampler, "triton"))
"""

CHECKS = Checks(
    ("small_cases", "narrow_latents", "chunks_of_pictures_and_a_view", "average"), slow=("duplicated_codes", "operator")
)


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
