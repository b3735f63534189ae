"""The released implementation's sampling functions, by name: change one import line of a script to accelerate it.

    from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt

They take an instance of the released stage-2 module, which is converted once and kept while it lives unchanged, or one
of our :class:`hqtvae_fast.HQTransformer`. Seeds come from torch's global generator, so ``torch.manual_seed`` holds;
which codes a seed gives is not the same as there. Unlike the originals they work at batch size 1 and without CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hqtvae_fast.arguments import integers
from hqtvae_fast.compat.drawing import draw
from hqtvae_fast.compat.stage2 import convert, executor_of
from hqtvae_fast.compat.stages import engine_of
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.model.pyramid import split_windows


def sampling_ihqgpt(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    top_k_top: int | None = None,
    top_p_top: float | None = None,
    top_k_bot: int | None = None,
    top_p_bot: float | None = None,
    softmax_temperature: float | Sequence[float] = (1.0, 1.0),
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
    sampling = (softmax_temperature, (top_k_top, top_k_bot), (top_p_top, top_p_bot))
    top, bottom = _draw(model, num_candidates, cond, sampling, is_tqdm, use_fp16, max_seq_len, given_top_code)
    return top[:, :, 0], bottom


def sampling_hqtransformer(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    top_k: Sequence[int | None] | None = None,
    top_p: Sequence[float | None] | None = None,
    softmax_temperature: float | Sequence[float] = (1.0, 1.0, 1.0),
    is_tqdm: bool = True,
    use_fp16: bool = True,
    max_seq_len: int = 256,
    model_stage1: nn.Module | None = None,
) -> list[Tensor]:
    """Draw with a three-level model: int64 [B, T], [B, T, 4] and [B, T, 16]. Arguments as for the two-level one."""
    top, *finer = _draw(
        model, num_candidates, cond, (softmax_temperature, top_k, top_p), is_tqdm, use_fp16, max_seq_len, None
    )
    return [top[:, :, 0], *finer]


def _draw(
    model: nn.Module,
    num_candidates: int,
    cond: int | Tensor | None,
    sampling: tuple[Any, Any, Any],
    is_tqdm: bool,
    use_fp16: bool,
    max_seq_len: int,
    given: Tensor | None,
) -> list[Tensor]:
    side = math.isqrt(max_seq_len)
    if side * side != max_seq_len:
        raise ValueError(f"max_seq_len: expected a square number of top positions; got {max_seq_len}")
    engine = engine_of(model)
    executor = executor_of(convert(model, side=side, sixteen_bit=use_fp16)) if engine is None else engine.executor(side)
    config = executor.models[0].config
    condition, batch = _condition(config, cond, num_candidates)
    maps = draw(executor, condition, batch, _params(config, *sampling), given, is_tqdm)
    if engine is not None:
        engine.remember(maps)
    return [split_windows(codes, side, level) for level, codes in enumerate(maps)]


def _params(config: TransformerConfig, temperature: Any, top_k: Any, top_p: Any) -> SamplingParams:
    """One value a level. A temperature may be one for all; a top-k of more than there are codes keeps all."""
    levels = config.num_levels
    heat = (temperature,) * levels if isinstance(temperature, int | float) else tuple(temperature)[:levels]
    wanted = tuple(top_k or (None,) * levels)
    kept = [k if k is None or k < size else None for k, size in zip(wanted, config.codebook_sizes, strict=True)]
    return SamplingParams(heat, tuple(kept), tuple(top_p or (None,) * levels))


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
