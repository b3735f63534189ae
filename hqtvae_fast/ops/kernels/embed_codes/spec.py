"""Real cases, inputs, cost, tolerance and compilations of the embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.embed_codes import BACKENDS, MODES, embed_codes, reference
from hqtvae_fast.ops.kernels.embed_codes.triton import TILES
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES, power_of_2, row_warps

SUM, MEAN, INTERLEAVE = range(len(MODES))
# G, n, S and mode of what a step needs: the body's token, pass 2 and pass 3 of the head, IET's five, FFHQ's token.
KINDS = {
    "token": (1, 5, 5, MEAN),
    "pass 2": (4, 5, 1, SUM),
    "pass 3": (16, 21, 2, SUM),
    "IET": (5, 5, 1, SUM),
    "interleaved": (1, 5, 5, INTERLEAVE),
}


def _case(name: str, kind: str, B: int, D: int, K: int, dtype: torch.dtype) -> Case:
    G, n, S, mode = KINDS[kind]
    return Case(name, {"B": B, "G": G, "n": n, "S": S, "D": D, "K": K, "mode": mode}, dtype)


WIDTHS = {kind: ("FFHQ", 1024) if mode == INTERLEAVE else ("S", 1536) for kind, (*_, mode) in KINDS.items()}
CASES = tuple(
    _case(f"{name}, {kind}, batch {B}", kind, B, D, 8192, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for kind, (name, D) in WIDTHS.items()
)
SMALL_CASES = (
    _case("token", "token", 3, 48, 20, torch.float32),
    _case("pass 2, bf16", "pass 2", 3, 40, 20, torch.bfloat16),
    _case("pass 3", "pass 3", 2, 24, 9, torch.float32),
    _case("IET, fp16", "IET", 2, 32, 20, torch.float16),
    _case("interleaved", "interleaved", 3, 64, 20, torch.float32),
    Case("three levels, one token", {"B": 2, "G": 1, "n": 21, "S": 21, "D": 16, "K": 9, "mode": MEAN}),
)
STEPS = 3  # rows for so many steps, where the row is read from the device

Inputs = tuple[Tensor, list[Tensor], Tensor, Tensor, "Tensor | None", str]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Any codes. Of a token all local positions are the sources, of IET's its own, of the head's its ancestors."""
    B, G, n, S, D, K = (case[letter] for letter in ("B", "G", "n", "S", "D", "K"))
    generator = torch.Generator().manual_seed(seed)
    levels, mode = (3 if n == 21 else 2), MODES[case["mode"]]
    widths = [D, D // 4] if case["mode"] == INTERLEAVE else [D] * levels
    tables = [
        torch.randn(K, width, generator=generator, dtype=torch.float32).to(case.dtype).to(device) for width in widths
    ]
    wide = torch.randint(K, (B, n + 3), generator=generator, dtype=torch.int64)
    if G == 1:
        sources = torch.arange(n, dtype=torch.int64)[None]
    elif n == G:
        sources = torch.arange(n, dtype=torch.int64)[:, None]
    else:
        own = torch.arange(G, dtype=torch.int64)
        sources = torch.stack([1 + own // 8 * 2 + own % 4 // 2, torch.zeros_like(own)][-S:], dim=1)
    moving = G in (1, n)
    rows = (
        torch.randn(G * (STEPS if moving else 1), D, generator=generator, dtype=torch.float32).to(case.dtype).to(device)
    )
    row = torch.tensor(STEPS - 1, dtype=torch.int64, device=device) if moving else None
    return wide.to(device)[:, :n], tables, sources.int().to(device), rows, row, mode


def run(
    codes: Tensor,
    tables: list[Tensor],
    sources: Tensor,
    rows: Tensor,
    row: Tensor | None,
    mode: Any,
    *,
    backend: str | None = None,
) -> Tensor:
    return embed_codes(codes, tables, sources, rows, row, mode=mode, backend=backend)


def define(codes: Tensor, tables: list[Tensor], sources: Tensor, rows: Tensor, row: Tensor | None, mode: str) -> Tensor:
    wide = [table.cpu().double() for table in tables]
    at = None if row is None else row.cpu()
    return reference.embed_codes(codes.cpu(), wide, sources.cpu(), rows.cpu().double(), at, mode)


def one_by_one(
    codes: Tensor, tables: list[Tensor], sources: Tensor, rows: Tensor, row: Tensor | None, mode: str
) -> Tensor:
    """As one would write it: an embedding a source, then sums."""
    G = len(sources)
    place = rows[:G] if row is None else rows.view(-1, G, rows.shape[1])[row]
    if mode == "interleave":
        bottom = F.embedding(codes[:, 1:5], tables[1]).transpose(1, 2).flatten(1)
        return (F.embedding(codes[:, 0], tables[0]) + bottom)[:, None] + place
    parts = [F.embedding(codes[:, 0:1], tables[0]), F.embedding(codes[:, 1:5], tables[1])]
    if len(tables) == 3:
        parts.append(F.embedding(codes[:, 5:21], tables[2]))
    gathered = torch.cat(parts, dim=1)[:, sources.long()]
    return (gathered.mean(dim=2) if mode == "mean" else gathered.sum(dim=2)) + place


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice the reference's in the same dtype, plus 1e-6 of the largest value."""
    codes, tables, sources, rows, row, mode = inputs
    at = None if row is None else row.cpu()
    plain = reference.embed_codes(codes.cpu(), [t.cpu() for t in tables], sources.cpu(), rows.cpu(), at, mode)
    check_errors("embeddings", got, wanted, plain, absolute=1e-6)


def cost(case: Case) -> Cost:
    """S rows in, one more in and one out; a sum each."""
    B, G, S, D = (case[letter] for letter in "BGSD")
    gathered = 2 if case["mode"] == INTERLEAVE else S
    return Cost(B * G * (S + 1) * D, case.dtype.itemsize * B * G * (gathered + 2) * D)


def variants(arch: int) -> list[Variant]:
    """What steps of S, M, L, S-3level (D = 1536) and FFHQ (interleaved, 1024) call."""
    from hqtvae_fast.ops.kernels.embed_codes import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for kind, (_, n, S, mode) in KINDS.items():
            D, x = WIDTHS[kind][1], f"*{TRITON_NAMES[dtype]}"
            signature = {"codes": "*i64", "table_0": x, "table_1": x, "table_2": x, "sources": "*i32", "rows": x}
            signature |= {"row": "*i64", "out": x} | dict.fromkeys(("G", "D", "stride_codes"), "i32")
            absent = (("table_2",) if n == 5 else ()) + (("row",) if kind.startswith("pass") else ())
            constants: dict[str, Any] = {"S": S, "MODE": MODES[mode], "WIDTH": power_of_2(D)}
            constants |= dict.fromkeys(absent)
            signature = {name: type_ for name, type_ in signature.items() if name not in absent}
            aligned = tuple(name for name in signature if name not in ("G", "row", "stride_codes", "codes"))
            name = f"embeddings {kind} {TRITON_NAMES[dtype]}"
            launch = (triton_kernels.embed_codes_kernel, signature, constants, aligned)
            made.append(Variant(name, *launch, row_warps(D), 3))
            if dtype is torch.bfloat16 and kind == next(iter(KINDS)):
                made += [Variant(f"{name}, {key}", *launch, tile.warps, 3) for key, tile in TILES.items()]
    return made


SPEC = Spec(
    op="embed_codes",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    backends=BACKENDS,
    baselines={"torch, one by one": one_by_one},
)
