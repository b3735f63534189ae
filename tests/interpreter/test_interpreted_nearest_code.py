"""The Triton kernels of the exact search, interpreted on the CPU, against float64 brute force.

What the interpreter cannot show is how a tensor core adds: that is the bound's part, tested in tests/ops.
"""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
from dataclasses import replace

import torch

from hqtvae_fast.ops.kernels.nearest_code import nearest_code, reference, triton
from hqtvae_fast.ops.kernels.nearest_code.spec import SPEC

torch.set_num_threads(1)


def search(z, codebook):
    return triton.search(triton.rows(z), codebook[:, None])


def exact(z, codebook, message=""):
    got, wanted = nearest_code(z, codebook, backend="triton"), reference.nearest_code(z, codebook)
    assert torch.equal(got, wanted), f"{message}: {int((got != wanted).sum())} of {len(z)} rows differ"


def small_cases():
    for case in SPEC.small:
        exact(*SPEC.make_inputs(case, torch.device("cpu"), 0), case.name)


def scales_and_cancellation():
    generator = torch.Generator().manual_seed(0)
    scales = (1e-42, 1e-38, 1e-20, 1.0, 1e4, 1e15, 1e18, 3e37)
    for dtype in (torch.float32, torch.bfloat16):
        # The interpreter widens a subnormal bf16 to another number (1e-39 to 4e-39): those are for a GPU.
        for scale in scales if dtype is torch.float32 else scales[2:]:
            for offset in (0.0, 1e3):
                codebook = (torch.randn(150, 6, generator=generator) + offset).clamp(-5, 1e3) * scale
                z = codebook[torch.randint(150, (20,), generator=generator)]
                z = z + 0.1 * scale * torch.randn(20, 6, generator=generator)
                limit = torch.finfo(torch.float32).max / 2
                z, codebook = (values.clamp(-limit, limit).to(dtype) for values in (z, codebook))
                exact(z, codebook, f"{dtype}, scale {scale}, offset {offset}")
    exact(torch.tensor([[0.89e19]]), torch.tensor([[1.9e19], [-0.2e19]]), "one score overflows")


def ties_and_duplicates():
    codebook = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).repeat(10, 1)  # over two blocks of codes
    codebook = codebook[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    z = codebook[::5] + 0.01
    exact(z, codebook, "duplicates")
    assert bool(search(z, codebook)[1].all())
    codebook = torch.zeros(300, 2)
    codebook[[7, 200], 0] = torch.tensor([-1.0, 1.0])
    codebook[[0, 250], 0] = 5.0
    codebook[codebook[:, 0] == 0, 0] = 9.0
    exact(torch.tensor([[0.0, 3.0]]), codebook, "midway between codes of two blocks")
    near = torch.full((64, 4), 1e4) + torch.arange(64)[:, None] * 1e-3
    exact(near.flip(0) + 1e-4, near, "fp32 cannot tell")


def rows_that_are_not_finite():
    z, codebook = torch.randn(40, 5), torch.randn(200, 5)
    for value in (torch.nan, torch.inf, -torch.inf):
        z[[3, 20], 2] = value
        flag = torch.tensor(False)
        found = nearest_code(z, codebook, backend="triton", invalid=flag)
        assert found[[3, 20]].tolist() == [0, 0] and bool(flag)
        others = torch.ones(40, dtype=torch.bool)
        others[[3, 20]] = False
        assert torch.equal(found[others], reference.nearest_code(z[others], codebook))
        assert torch.equal(nearest_code(z, torch.zeros(3, 5), backend="triton"), torch.zeros(40, dtype=torch.int64))


def strides_and_chunks():
    z, codebook = torch.randn(8, 90).T, torch.randn(8, 140).T
    exact(z, codebook, "transposed")
    before = triton.CHUNK_ROWS, triton.MOST_OFFSET
    triton.CHUNK_ROWS = 32
    exact(z, codebook, "chunks")
    triton.MOST_OFFSET = 100
    exact(z, codebook, "channels too far apart for 32 bits")
    triton.CHUNK_ROWS, triton.MOST_OFFSET = before


def more_groups_of_blocks_than_one():
    before, few = triton.settle_tile, replace(triton.SETTLE, codes=2)
    triton.settle_tile = lambda window, coarser: few
    codebook = torch.randn(128 * 5 + 1, 2)
    exact(codebook[-20:] + 1e-3, codebook)
    exact(codebook[:20] * 0, torch.cat([codebook, codebook * 0, codebook * 0]))  # duplicates over groups
    triton.settle_tile = before


def few_rows_are_settled():
    z, codebook = SPEC.make_inputs(SPEC.cases[3], torch.device("cpu"), 0)
    found, settled = search(z[:64], codebook[:1000])
    assert torch.equal(found, reference.nearest_code(z[:64], codebook[:1000]))
    assert not bool(settled.any())


def operator():
    inputs = (torch.randn(7, 4), torch.randn(5, 4), "triton")
    torch.library.opcheck(torch.ops.hqtvae_fast.nearest_code.default, inputs)
"""

CHECKS = Checks(
    ("small_cases", "ties_and_duplicates", "rows_that_are_not_finite", "strides_and_chunks", "few_rows_are_settled"),
    slow=("scales_and_cancellation", "more_groups_of_blocks_than_one", "operator"),
)


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
