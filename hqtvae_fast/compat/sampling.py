"""The released implementation's sampling functions, by name: change one import line of a script to accelerate it.

    from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt

They take an instance of the released stage-2 module, which is converted once and kept while it lives unchanged, or one
of our :class:`hqtvae_fast.HQTransformer`. Seeds come from torch's global generator, so ``torch.manual_seed`` holds;
which codes a seed gives is not the same as there. Unlike the originals they work at batch size 1 and without CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hqtvae_fast.arguments import integers
from hqtvae_fast.compat.stage2 import convert, executor_of
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine import Cutter, Executor, Job, SamplingParams, generate, image_seeds
from hqtvae_fast.model.pyramid import join_windows, split_windows
from hqtvae_fast.progress import drawing_steps
from hqtvae_fast.request import Request


def sampling_ihqgpt(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    top_k_top: int | None = None,
    top_p_top: float | None = None,
    top_k_bot: int | None = None,
    top_p_bot: float | None = None,
    softmax_temperature: Sequence[float] = (1.0, 1.0),
    is_tqdm: bool = True,
    use_fp16: bool = True,
    max_seq_len: int = 256,
    model_stage1: nn.Module | None = None,
    given_top_code: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw with a two-level model: top codes int64 [B, T] and bottom codes int64 [B, T, 4] (row by row in 2x2).

    ``cond``: a class label, or text tokens [B, P] (a single row is drawn ``num_candidates`` times); ``max_seq_len`` is
    T, a square. ``use_fp16``: compute in the device's 16-bit type (bf16 where it has it), else in fp32; a model of ours
    computes in its own dtype. ``model_stage1`` is not needed. ``given_top_code`` [B, T] or [1, T] is kept and only
    bottom codes are drawn.
    """
    params = SamplingParams(tuple(softmax_temperature)[:2], (top_k_top, top_k_bot), (top_p_top, top_p_bot))
    top, bottom = _draw(model, num_candidates, cond, params, is_tqdm, use_fp16, max_seq_len, given_top_code)
    return top[:, :, 0], bottom


def sampling_hqtransformer(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    top_k: Sequence[int | None] | None = None,
    top_p: Sequence[float | None] | None = None,
    softmax_temperature: Sequence[float] = (1.0, 1.0, 1.0),
    is_tqdm: bool = True,
    use_fp16: bool = True,
    max_seq_len: int = 256,
    model_stage1: nn.Module | None = None,
) -> list[Tensor]:
    """Draw with a three-level model: int64 [B, T], [B, T, 4] and [B, T, 16]. Arguments as for the two-level one."""
    off = (None,) * len(softmax_temperature)
    params = SamplingParams(tuple(softmax_temperature), tuple(top_k or off), tuple(top_p or off))
    top, *finer = _draw(model, num_candidates, cond, params, is_tqdm, use_fp16, max_seq_len, None)
    return [top[:, :, 0], *finer]


def _draw(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    params: SamplingParams,
    is_tqdm: bool,
    use_fp16: bool,
    max_seq_len: int,
    given: Tensor | None,
) -> list[Tensor]:
    side = math.isqrt(max_seq_len)
    if side * side != max_seq_len:
        raise ValueError(f"max_seq_len: expected a square number of top positions; got {max_seq_len}")
    ours = convert(model, side=side, sixteen_bit=use_fp16)
    condition, batch = _condition(ours.config, cond, num_candidates)
    maps = draw(executor_of(ours), condition, batch, params, given, is_tqdm)
    return [split_windows(codes, side, level) for level, codes in enumerate(maps)]


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


def _condition(config: TransformerConfig, cond: int | Tensor | None, num_candidates: int) -> tuple[Tensor | None, int]:
    kind = config.condition
    if kind == "none":
        return None, num_candidates
    if cond is None:
        raise ValueError(f"cond: expected {'a class label' if kind == 'class' else 'text tokens'}, got none")
    rows = integers("cond", cond, "a class label" if kind == "class" else "text tokens")
    if kind == "class":
        if rows.numel() != 1 or not 0 <= int(rows) < config.num_classes:
            raise ValueError(f"cond: expected a class label from 0 to {config.num_classes - 1}; got {cond}")
        return rows.reshape(1).expand(num_candidates), num_candidates
    rows = rows if len(rows) > 1 else rows.expand(num_candidates, -1)
    return rows, len(rows)
