"""A batch of codes from an executor, as the released functions ask for it: seeds from torch's own generator."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.engine import Cutter, Executor, Job, SamplingParams, generate
from hqtvae_fast.model.pyramid import join_windows
from hqtvae_fast.progress import drawing_steps
from hqtvae_fast.request import Request
from hqtvae_fast.seeds import image_seeds


def draw(
    executor: Executor,
    condition: Tensor | None,
    batch: int,
    params: SamplingParams,
    given: Tensor | None = None,
    shown: bool = False,
) -> list[Tensor]:
    """Code maps, int64 [B, h, w] a level, on the executor's device; seeds come from torch's generator. ``given``:
    top codes [B, T] or [1, T], row by row; ``shown``: a bar of the steps. Where memory does not suffice for all at
    once, they are drawn in parts."""
    config, device = executor.models[0].config, executor.device
    seeds = image_seeds(int(torch.randint(2**62, (), dtype=torch.int64, device="cpu")), batch)
    if given is not None:
        given = join_windows(given.expand(batch, -1)[:, :, None], config.side, level=0)
    request = Request(condition, given, seeds, [params])
    cutter = Cutter(batch, batch)
    job = Job(
        rows=lambda part: request.rows(part.start, part.count, device),
        draw=executor.draw,
        decode=None,
        describe=request.describe,
        steps=drawing_steps(batch, config.num_steps, None, shown=shown),
    )
    parts = [finished.codes for finished in generate(job, cutter, device)]
    return [torch.cat(level).to(device) for level in zip(*parts, strict=True)]
