"""What the engine may do differently for the same codes: choices of speed and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hqtvae_fast.ops.kernels.skinny_linear.triton import DEPENDENT_CAPABILITY


@dataclass(frozen=True)
class EngineOptions:
    """``graphs``: capture each batch size's work as CUDA graphs and replay them; None: on a GPU. ``tables``: compute
    what depends on a code or a class alone once (:class:`hqtvae_fast.engine.tables.StepTables`). ``fused_draw``: where
    neither top-k nor top-p is set, draw inside the head's product, its logits never stored
    (:func:`hqtvae_fast.ops.draw_from_head`). ``overlap``: draw a batch while the one before it is decoded
    (:mod:`hqtvae_fast.engine.lanes`); None: on a GPU. ``dependent_launch``: Hopper's programmatic dependent launch, of
    products of up to 16 rows (:func:`hqtvae_fast.ops.skinny_linear`) and of the head where it is one kernel.
    ``skip_query``: leave out the queries of the head's first pass, whose one position sees itself alone. ``tf32``:
    multiply fp32 numbers as TF32."""

    graphs: bool | None = None
    tables: bool = False
    fused_draw: bool = False
    overlap: bool | None = None
    dependent_launch: bool = False
    skip_query: bool = False
    tf32: bool = False


def check_options(options: EngineOptions, device: torch.device) -> None:
    """ValueError where this device cannot do what was asked for."""
    if not options.dependent_launch:
        return
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < DEPENDENT_CAPABILITY:
        got = device if found is None else ".".join(map(str, found))
        raise ValueError(f"dependent_launch: expected a GPU of compute capability 9.0 or above (Hopper); got {got}")
