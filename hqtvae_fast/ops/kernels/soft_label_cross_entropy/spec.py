"""Real cases, inputs, cost, tolerance and compilations of soft-label cross-entropy, forward and backward together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.soft_label_cross_entropy import BACKENDS, reference, soft_label_cross_entropy
from hqtvae_fast.ops.kernels.soft_label_cross_entropy.triton import TILES, Tile, describe, precision
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

BATCH = 64
CASES = (  # the dtype is the logits'; z and codebook are fp32, as the quantiser's are
    Case(f"S, top, {BATCH} images", {"N": BATCH * 64, "C": 1024, "K": 8192}),
    Case(f"S, bottom, {BATCH} images", {"N": BATCH * 256, "C": 256, "K": 8192}),
    Case(f"S, top, {BATCH} images, bf16", {"N": BATCH * 64, "C": 1024, "K": 8192}, torch.bfloat16),
    Case(f"S, bottom, {BATCH} images, bf16", {"N": BATCH * 256, "C": 256, "K": 8192}, torch.bfloat16),
)
SMALL_CASES = (
    Case("one tile", {"N": 64, "C": 32, "K": 64}),
    Case("no multiples of anything", {"N": 70, "C": 37, "K": 300}),
    Case("one row, one code, one channel", {"N": 1, "C": 1, "K": 1}),
    Case("one code beyond many tiles", {"N": 3, "C": 5, "K": 64 * 33 + 1}),
    Case("the large tile, two groups of rows", {"N": 1030, "C": 20, "K": 130}),
    Case("bf16", {"N": 70, "C": 40, "K": 150}, torch.bfloat16),
    Case("fp16", {"N": 70, "C": 40, "K": 150}, torch.float16),
)
TAU = 1.0


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Codes spread as a trained codebook's, rows at the distance from them at which residuals lie, and logits that are
    right now and then. The distance is such that some labels are spread over several codes at tau = 1."""
    N, C, K = case["N"], case["C"], case["K"]
    generator = torch.Generator().manual_seed(seed)
    codebook = (
        torch.randn(K, C, generator=generator, dtype=torch.float32) * C**-0.5
    )  # distances around 2, whatever the width
    codes = torch.randint(K, (N,), generator=generator, dtype=torch.int64)
    z = codebook[codes] + 0.7 * C**-0.5 * torch.randn(N, C, generator=generator, dtype=torch.float32)
    logits = 2 * torch.randn(N, K, generator=generator, dtype=torch.float32)
    logits[torch.arange(N, dtype=torch.int64), codes] += 5
    return logits.to(case.dtype).to(device), z.to(device), codebook.to(device), TAU


def run(
    logits: Tensor, z: Tensor, codebook: Tensor, temperature: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and gradient, as training takes them."""
    leaf = logits.detach().requires_grad_()
    loss = soft_label_cross_entropy(leaf, z, codebook, temperature, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def exact(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return _plain(logits.cpu().double(), z.cpu().double(), codebook.cpu().double(), temperature)


def _plain(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The reference's own loss and gradient, in the precision of what it gets."""
    loss = reference.loss(logits, z, codebook, temperature)
    return loss, reference.gradient(torch.ones_like(loss), logits, z, codebook, temperature)


def written_out(logits: Tensor, z: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As one would write it: all labels at once, kept for the backward pass."""
    leaf = logits.detach().requires_grad_()
    scores = 2 * (z @ codebook.T) - codebook.square().sum(dim=1)
    loss = F.cross_entropy(leaf.float(), (scores / temperature).softmax(dim=1))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def cost(case: Case) -> Cost:
    """2 N K C FLOP of scores twice, as the backward pass computes them again, and counted once where fp32 takes three
    products of TF32. Logits are read twice, their gradient is written once; z and codes are read twice."""
    N, C, K = case["N"], case["C"], case["K"]
    return Cost(4 * N * K * C, 3 * N * K * case.dtype.itemsize + 2 * 4 * (N + K) * C)


def check(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of torch on the same inputs, plus 1e-5 nats and 1e-6 of the largest
    gradient that a row can have, 1 / N. A gradient in bf16 or fp16 may be off by one unit in the last place."""
    loss, gradient = (x.cpu().double() for x in got)
    plain_loss, plain_gradient = (x.cpu().double() for x in _plain(*inputs))
    logits = inputs[0]
    error, limit = abs(float(loss - wanted[0])), 2 * abs(float(plain_loss - wanted[0])) + 1e-5
    assert error <= limit, f"loss: off by {error:.2e}, more than {limit:.2e}"
    ulp = torch.finfo(got[1].dtype).eps * wanted[1].abs() + torch.finfo(got[1].dtype).tiny
    limits = ulp + 2 * (plain_gradient - wanted[1]).abs().max() + 1e-6 / len(logits)
    over = (gradient - wanted[1]).abs() - limits
    assert got[1].dtype == logits.dtype, f"gradient: expected {logits.dtype}; got {got[1].dtype}"
    assert bool((over <= 0).all()), f"gradient: off by {float(over.max()):.2e} more than the limit"


# --------------------------------------------------------------------------------------------------------- compilations

TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
COUNTS = {"inverse_temperature": "fp32", **dict.fromkeys(("N", "K", "C"), "i32")}
STRIDES = dict.fromkeys(("stride_logits", "stride_z", "stride_codebook"), "i32")
NOT_ALIGNED = {"inverse_temperature", "grad"}


def variants(arch: int) -> list[Variant]:
    """Each tile, pass and dtype of the logits, with fp32 and with bf16 codes (three products and one). fp16 is compiled
    as bf16 is but for a conversion, and is left out."""
    low = (torch.float32, torch.bfloat16)
    return [
        variant for tile in TILES for logits in low for codes in low for variant in _compilations(tile, logits, codes)
    ]


def _compilations(tile: Tile, logits: torch.dtype, codes: torch.dtype) -> list[Variant]:
    from hqtvae_fast.ops.kernels.soft_label_cross_entropy import triton_kernels

    x, e = f"*{TRITON_NAMES[logits]}", f"*{TRITON_NAMES[codes]}"
    inputs = {"logits": x, "z": e, "codebook": e, "norms": "*fp32"}
    shape = {"ROWS": tile.rows, "CODES": tile.codes, "WIDTH": tile.width(codes), "GROUP": tile.group}
    constants = {**shape, "PRECISION": precision(codes)}
    forward = {**inputs, "partials": "*fp32", **COUNTS, **STRIDES}
    backward = {"grad": "*fp32", **inputs, "statistics": "*fp32", "out": x, **COUNTS, **STRIDES}
    return [
        Variant(
            f"soft labels {name} {tile.rows}x{tile.codes}, {TRITON_NAMES[logits]} logits, {TRITON_NAMES[codes]} codes",
            kernel,
            signature,
            constants,
            tuple(key for key in signature if key not in NOT_ALIGNED),
            tile.warps,
            tile.stages,
            ("mma", "async"),
        )
        for name, kernel, signature in (
            ("forward", triton_kernels.forward_kernel, forward),
            ("backward", triton_kernels.backward_kernel, backward),
        )
    ]


SPEC = Spec(
    op="soft_label_cross_entropy",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"torch, written out": written_out},
)
