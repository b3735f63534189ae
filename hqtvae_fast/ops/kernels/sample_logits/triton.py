"""Launching the Triton kernel of the draw (:mod:`.triton_kernels`)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import Warps, by_warps, interpreted, launch, on, power_of_2

LARGEST = 1 << 13
"""The longest row whose values stay in registers, 16 a thread of 16 warps; twice as many spill in fp32."""
SMALLEST = 16


TILES = by_warps(8, 16, 32)


def why_not(logits_BGK: Tensor, *others: Tensor, tile: Warps | None = None) -> str | None:
    """None where the kernel can take these logits, else the reason."""
    if logits_BGK.shape[-1] > LARGEST:
        return f"expected at most {LARGEST} codes; got {logits_BGK.shape[-1]}"
    return triton_launch.why_not(logits_BGK)


def codes(K: int) -> int:
    """Of the row that a program holds: a power of 2."""
    return max(SMALLEST, power_of_2(K))


def warps(K: int) -> int:
    """16 values a thread."""
    return max(1, codes(K) // 512)


def describe(logits_BGK: Tensor, *others: Tensor, tile: Warps | None = None) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    B, G, K = logits_BGK.shape
    return {"tile": f"a row of {codes(K)} codes", "programs": f"{B * G}, {tile.warps if tile else warps(K)} warps"}


def sample_logits(
    logits_BGK: Tensor,
    out_BG: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    guidance: Tensor | None = None,
    tile: Warps | None = None,
) -> None:
    """As the operator; see :func:`hqtvae_fast.ops.sample_logits`."""
    from hqtvae_fast.ops.kernels.sample_logits import triton_kernels

    B, (_, G, K), guided = len(seeds_B), logits_BGK.shape, guidance is not None
    logits_BGK = logits_BGK if logits_BGK.stride(2) == 1 else logits_BGK.contiguous()
    step_B, position_B = step.expand(B), position.expand(B)
    scale_B = temperature if guidance is None else guidance.expand(B)  # an address that is not read
    with on(logits_BGK):
        launch(
            triton_kernels.draw_kernel,
            (B * G,),
            *(
                logits_BGK,
                out_BG,
                invalid,
                seeds_B.contiguous(),
                step_B,
                position_B,
                temperature,
                top_k,
                top_p,
                scale_B,
            ),
            *(B, G, K),
            *(logits_BGK.stride(0), logits_BGK.stride(1), out_BG.stride(0), out_BG.stride(1)),
            *(step_B.stride(0), position_B.stride(0), scale_B.stride(0) if guided else 0),
            BITS=32 if guided else 8 * logits_BGK.dtype.itemsize,
            GUIDED=guided,
            CODES=codes(K),
            INTERPRET=interpreted(),
            num_warps=tile.warps if tile else warps(K),
            enable_fp_fusion=False,
        )
