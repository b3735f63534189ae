"""Real cases, inputs, cost, tolerance and compilations of the EMA codebook step, statistics and update together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend
from hqtvae_fast.ops.kernels.ema_update import code_statistics, ema_update, reference, triton
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

BATCH = 128
CASES = (
    Case(f"S, top, {BATCH} images", {"N": BATCH * 64, "C": 1024, "K": 8192}),
    Case(f"S, bottom, {BATCH} images", {"N": BATCH * 256, "C": 256, "K": 8192}),
)
SMALL_CASES = (
    Case("one tile", {"N": 32, "C": 64, "K": 16}),
    Case("no multiples of anything", {"N": 70, "C": 37, "K": 19}),
    Case("one row, one code, one channel", {"N": 1, "C": 1, "K": 1}),
    Case("no rows", {"N": 0, "C": 5, "K": 3}),
    Case("bf16 rows", {"N": 70, "C": 130, "K": 19}, torch.bfloat16),
)
DECAY, EPSILON = 0.99, 1e-5
State = tuple[Tensor, Tensor, Tensor]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]


def make_inputs(case: Case, device: torch.device, seed: int, deterministic: bool = False) -> Inputs:
    """Rows, their codes (a few chosen far more often than others, most not at all) and the running state."""
    N, C, K = case["N"], case["C"], case["K"]
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(N, C, generator=generator, dtype=torch.float32)
    codes = (K * torch.rand(N, generator=generator, dtype=torch.float32) ** 2).long()
    size = torch.rand(K, generator=generator, dtype=torch.float32) + 0.1
    total = torch.randn(K, C, generator=generator, dtype=torch.float32)
    state = (total / size[:, None]).to(device), size.to(device), total.to(device)
    return z.to(case.dtype).to(device), codes.to(device), *state, deterministic


def run(
    z: Tensor,
    codes: Tensor,
    embedding: Tensor,
    cluster_size: Tensor,
    embedding_sum: Tensor,
    deterministic: bool,
    *,
    backend: str | None = None,
) -> State:
    """The whole step, on copies of the state, which it returns."""
    state = embedding.clone(), cluster_size.clone(), embedding_sum.clone()
    counts, sums = code_statistics(z, codes, len(embedding), deterministic=deterministic, backend=backend)
    ema_update(*state, counts, sums, DECAY, EPSILON, backend=backend)
    return state


def _plain(inputs: tuple[Any, ...], dtype: torch.dtype) -> State:
    z, codes, embedding, size, total = (x.cpu() for x in inputs[:-1])
    state = embedding.to(dtype, copy=True), size.to(dtype, copy=True), total.to(dtype, copy=True)
    counts, sums = reference.code_statistics(z.to(dtype), codes, len(embedding))
    reference.ema_update(*state, counts, sums, DECAY, EPSILON)
    return state


def exact(*inputs: Any) -> State:
    return _plain(inputs, torch.float64)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of torch in fp32, plus 1e-6 of the largest value."""
    plain = _plain(inputs, torch.float32)
    for name, mine, right, other in zip(("embedding", "counts", "sums"), got, wanted, plain, strict=True):
        error = (mine.cpu().double() - right).abs().max()
        limit = 2 * (other.double() - right).abs().max() + 1e-6 * right.abs().max()
        assert bool(error <= limit), f"{name}: off by {float(error):.2e}, more than {float(limit):.2e}"


def one_hot(
    z: Tensor, codes: Tensor, embedding: Tensor, cluster_size: Tensor, embedding_sum: Tensor, deterministic: bool
) -> State:
    """As often written: codes as N x K one-hot rows, multiplied with z."""
    state = (embedding.clone(), cluster_size.clone(), embedding_sum.clone())
    chosen = torch.nn.functional.one_hot(codes, len(embedding)).to(torch.float32)
    reference.ema_update(*state, chosen.sum(dim=0), chosen.T @ z.float(), DECAY, EPSILON)
    return state


def cost(case: Case) -> Cost:
    """Rows once; sums written and read, running sums read and written, embeddings written."""
    N, C, K = case["N"], case["C"], case["K"]
    return Cost(N * C + 5 * K * C, N * (C * case.dtype.itemsize + 8) + 4 * 5 * K * C)


def _why_not(*inputs: Any) -> str | None:
    z, codes, *state, deterministic = inputs
    return triton.why_not_statistics(z, codes, len(state[0]), deterministic) or triton.why_not_update(*state)


def describe(*inputs: Any) -> dict[str, str]:
    """How the kernels would be launched on these inputs."""
    tile = triton.SEGMENTS if inputs[-1] else triton.ROWS
    way = "sorted segments" if inputs[-1] else "atomics"
    return {
        "statistics": f"{way}, {tile.rows} rows x {tile.width} channels, {tile.warps} warps",
        "update": f"{triton.SMOOTH.rows} codes x {triton.SMOOTH.width} channels, {triton.SMOOTH.warps} warps",
        "shared memory": "none but for sums over rows",
    }


# --------------------------------------------------------------------------------------------------------- compilations


def variants(arch: int) -> list[Variant]:
    """Statistics of rows of each dtype, both ways, and the update."""
    from hqtvae_fast.ops.kernels.ema_update import triton_kernels

    made = []
    for z in ("fp32", "bf16", "fp16"):
        counted = {"counts": "*fp32", "sums": "*fp32"}
        atomics = {"z": f"*{z}", "codes": "*i64", **counted, **dict.fromkeys(("N", "K", "C", "stride_z"), "i32")}
        segments = {"z": f"*{z}", "order": "*i64", "starts": "*i64", **counted, "C": "i32", "stride_z": "i32"}
        made.append(_variant(f"add rows, {z}", triton_kernels.add_rows, atomics, "ROWS", triton.ROWS))
        made.append(_variant(f"add segments, {z}", triton_kernels.add_segments, segments, "ROWS", triton.SEGMENTS))
    names = ("embedding", "embedding_sum", "sums", "cluster_size", "total")
    update = {**dict.fromkeys(names, "*fp32"), "decay": "fp32", "epsilon": "fp32", "K": "i32", "C": "i32"}
    return [*made, _variant("smooth", triton_kernels.smooth, update, "CODES", triton.SMOOTH)]


def _variant(name: str, kernel: Any, signature: dict[str, str], rows: str, tile: triton.Tile) -> Variant:
    aligned = tuple(key for key in signature if key not in ("decay", "epsilon"))
    return Variant(name, kernel, signature, {rows: tile.rows, "WIDTH": tile.width}, aligned, tile.warps, num_stages=3)


SPEC = Spec(
    op="ema_update",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=(Backend("triton", run, _why_not), Backend("reference", run)),
    baselines={"torch, one-hot product": one_hot},
)
