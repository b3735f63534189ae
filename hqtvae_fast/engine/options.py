"""What the engine may do differently for the same codes: choices of speed and memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """``graphs``: capture each batch size's work as CUDA graphs and replay them; None: on a GPU. ``tables``: compute
    what depends on a code or a class alone once (:class:`hqtvae_fast.engine.tables.StepTables`). ``fused_draw``: where
    neither top-k nor top-p is set, draw inside the head's product, its logits never stored
    (:func:`hqtvae_fast.ops.draw_from_head`). ``overlap``: draw a batch while the one before it
    is decoded (:mod:`hqtvae_fast.engine.lanes`); None: on a GPU. ``tf32``: multiply fp32 numbers as TF32."""

    graphs: bool | None = None
    tables: bool = False
    fused_draw: bool = False
    overlap: bool | None = None
    tf32: bool = False
