"""Launching the Triton kernels of soft-label cross-entropy (:mod:`.triton_kernels`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import launch, on

# Rows of one launch of the forward pass, for which 20 bytes a row and tile of codes are kept: 5 MB at K = 8192, as much
# again while they are combined. 2048 programs of LARGE, 8 waves on an H100.
CHUNK_ROWS = 1 << 11


@dataclass(frozen=True)
class Tile:
    """Rows and codes of one program's tile, and how it walks C."""

    rows: int
    codes: int
    warps: int
    stages: int
    chunk: int = 64
    """Bytes of each row of z and of each code multiplied at a time: two of memory's sectors. Twice as many need more
    than 128 registers a thread in fp32 and leave one block of LARGE to a multiprocessor."""
    group: int = 8
    """Row tiles that meet a tile of codes before the next one comes."""

    def width(self, dtype: torch.dtype) -> int:
        return self.chunk // dtype.itemsize


# LARGE: the most FLOP a byte of which two blocks' scores and logits fit a multiprocessor's
# registers. SMALL: for so few rows that the tail of LARGE's programs would leave multiprocessors idle (at K = 8192,
# 1024 rows are 1024 programs of LARGE, 4 waves on an H100).
LARGE, SMALL = Tile(128, 64, warps=8, stages=4), Tile(64, 64, warps=4, stages=4)
TILES = (LARGE, SMALL)


def pick_tile(N: int) -> Tile:
    return LARGE if N > 1024 else SMALL


def precision(dtype: torch.dtype) -> str:
    """How z and codes of this dtype are multiplied; :mod:`.triton_kernels` says why."""
    return "tf32x3" if dtype is torch.float32 else "tf32"


def why_not(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> str | None:
    """None where the kernels can take these inputs, else the reason."""
    return triton_launch.why_not(logits, z, codebook)


def describe(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> dict[str, str]:
    """How the kernels would be launched on these inputs."""
    tile, (N, K), width = pick_tile(len(logits)), logits.shape, pick_tile(len(logits)).width(z.dtype)
    return {
        "tile": f"{tile.rows} rows x {tile.codes} codes, {width} channels at a time, {precision(z.dtype)}",
        "programs": f"{-(-N // tile.rows) * _tiles(K, tile)} a pass, {tile.warps} warps, {tile.stages} stages",
        "shared memory": f"at least {tile.stages * tile.chunk * (tile.rows + tile.codes)} bytes",
    }


def forward(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss, fp32 [], and what the backward pass needs of each row: fp32 [4, N] (top_x, sum_x, top_s, sum_s)."""
    logits, z, codebook = _rows(logits), _rows(z), _rows(codebook)
    norms, tile = _norms(codebook), pick_tile(len(logits))
    losses, statistics = [], []
    for chunk_NK, chunk_NC in zip(logits.split(CHUNK_ROWS), z.split(CHUNK_ROWS), strict=True):
        partials = _partials(chunk_NK, chunk_NC, codebook, norms, temperature, tile)
        loss_N, statistics_4N = _combine(partials, temperature)
        losses.append(loss_N)
        statistics.append(statistics_4N)
    return torch.cat(losses).mean(), torch.cat(statistics, dim=1)


def _partials(
    logits_NK: Tensor, z_NC: Tensor, codebook_KC: Tensor, norms_K: Tensor, temperature: float, tile: Tile
) -> Tensor:
    from hqtvae_fast.ops.kernels.soft_label_cross_entropy import triton_kernels

    (N, K), C = logits_NK.shape, z_NC.shape[1]
    partials_5TN = torch.empty(5, _tiles(K, tile), N, dtype=torch.float32, device=logits_NK.device)
    with on(logits_NK):
        launch(
            triton_kernels.forward_kernel,
            (-(-N // tile.rows) * _tiles(K, tile),),
            *(logits_NK, z_NC, codebook_KC, norms_K, partials_5TN, 1 / temperature, N, K, C),
            *(logits_NK.stride(0), z_NC.stride(0), codebook_KC.stride(0)),
            **_constants(tile, z_NC.dtype),
        )
    return partials_5TN


def _combine(partials_5TN: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Losses [N] and statistics [4, N] over all tiles of codes, brought to the largest top of each row."""
    tops_x, sums_x, tops_s, sums_s, dots = partials_5TN
    top_x, top_s = tops_x.amax(dim=0), tops_s.amax(dim=0)
    shares_TN = ((tops_s - top_s) / temperature).exp()
    sum_x = ((tops_x - top_x).exp() * sums_x).sum(dim=0)
    sum_s = (shares_TN * sums_s).sum(dim=0)
    # A tile whose logits are all -inf took them from 0: its dot is -inf anyway.
    dot = (shares_TN * (dots - (top_x - tops_x) * sums_s)).sum(dim=0)
    return sum_x.log() - dot / sum_s, torch.stack((top_x, sum_x, top_s, sum_s))


def backward(
    grad: Tensor, logits: Tensor, z: Tensor, codebook: Tensor, statistics: Tensor, temperature: float
) -> Tensor:
    """The gradient of the logits, [N, K] in their dtype, contiguous. ``grad`` is the loss's own, one number."""
    from hqtvae_fast.ops.kernels.soft_label_cross_entropy import triton_kernels

    (N, K), tile = logits.shape, pick_tile(len(logits))
    logits, z, codebook = _rows(logits), _rows(z), _rows(codebook)
    out = torch.empty((N, K), dtype=logits.dtype, device=logits.device)
    with on(logits):
        launch(
            triton_kernels.backward_kernel,
            (-(-N // tile.rows) * _tiles(K, tile),),
            *(grad, logits, z, codebook, _norms(codebook), statistics, out, 1 / temperature, N, K, z.shape[1]),
            *(logits.stride(0), z.stride(0), codebook.stride(0)),
            **_constants(tile, z.dtype),
        )
    return out


def _constants(tile: Tile, dtype: torch.dtype) -> dict[str, object]:
    shape = {"ROWS": tile.rows, "CODES": tile.codes, "WIDTH": tile.width(dtype), "GROUP": tile.group}
    return {**shape, "PRECISION": precision(dtype), "num_warps": tile.warps, "num_stages": tile.stages}


def _norms(codebook_KC: Tensor) -> Tensor:
    """|e|^2 in fp32, [K], without a K x C matrix of squares."""
    return torch.linalg.vector_norm(codebook_KC, dim=1, dtype=torch.float32).square()


def _tiles(K: int, tile: Tile) -> int:
    return -(-K // tile.codes)


def _rows(x: Tensor) -> Tensor:
    """With each row's values next to each other; slices of rows are taken as they are."""
    return x if x.stride(1) == 1 else x.contiguous()
