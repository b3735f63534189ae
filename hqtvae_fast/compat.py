"""The released implementation's sampling functions, by name: change one import line of a script to accelerate it.

    from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt

They take an instance of the released stage-2 module, which is converted once and kept while it lives unchanged, or one
of our :class:`hqtvae_fast.HQTransformer`. Seeds come from torch's global generator, so ``torch.manual_seed`` holds;
which codes a seed gives is not the same as there. Unlike the originals they work at batch size 1 and without CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rich.progress import Progress
from torch import Tensor, nn

from hqtvae_fast.arguments import integers
from hqtvae_fast.checkpoint import load_stage2_state
from hqtvae_fast.engine import SamplingParams, draw_codes, image_seeds
from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.pyramid import join_windows, split_windows
from hqtvae_fast.ops.made import mark
from hqtvae_fast.released.config import parse_transformer
from hqtvae_fast.released.module import describe_module


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
    device = next(ours.parameters()).device
    condition, batch = _condition(ours, cond, num_candidates)
    seeds = image_seeds(int(torch.randint(2**62, (), dtype=torch.int64, device="cpu")), batch).to(device)
    condition = None if condition is None else condition.to(device)
    if given is not None:
        given = join_windows(given.to(device).expand(batch, -1)[:, :, None], side, level=0)
    with _progress(max_seq_len, is_tqdm) as on_step:
        maps = draw_codes(ours, condition, seeds, params, given_top_codes=given, on_step=on_step)
    return [split_windows(codes, side, level) for level, codes in enumerate(maps)]


def _condition(model: HQTransformer, cond: int | Tensor | None, num_candidates: int) -> tuple[Tensor | None, int]:
    kind = model.config.condition
    if kind == "none":
        return None, num_candidates
    if cond is None:
        raise ValueError(f"cond: expected {'a class label' if kind == 'class' else 'text tokens'}, got none")
    rows = integers("cond", cond, "a class label" if kind == "class" else "text tokens")
    if kind == "class":
        if rows.numel() != 1 or not 0 <= int(rows) < model.config.num_classes:
            raise ValueError(f"cond: expected a class label from 0 to {model.config.num_classes - 1}; got {cond}")
        return rows.reshape(1).expand(num_candidates), num_candidates
    rows = rows if len(rows) > 1 else rows.expand(num_candidates, -1)
    return rows, len(rows)


@contextmanager
def _progress(steps: int, shown: bool) -> Iterator[Callable[[], None]]:
    with Progress(disable=not shown) as bar:
        task = bar.add_task("Sampling", total=steps)
        yield lambda: bar.advance(task)


# -------------------------------------------------------------------------------------- released modules in memory

_converted: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], HQTransformer]] = WeakKeyDictionary()


def convert(model: nn.Module, *, side: int, sixteen_bit: bool = True) -> HQTransformer:
    """Our transformer with the weights of a released stage-2 module, on its device; ours are returned as they are.

    ``side`` is the top map's side, which the module does not know. A module is converted again when its weights have
    changed since, and forgotten with it. Raises ValueError on a module of another kind.
    """
    if isinstance(model, HQTransformer):
        if model.config.side != side:
            raise ValueError(f"max_seq_len: expected {model.config.num_steps}, as the model has; got {side * side}")
        return model
    weights = tuple(map(mark, model.state_dict(keep_vars=True).values()))
    kept, key = _converted.setdefault(model, {}), (side, sixteen_bit, weights)
    if key not in kept:
        for stale in [other for other in kept if other[2] != weights]:
            del kept[stale]
        kept[key] = _convert(model, side, sixteen_bit)
    return kept[key]


def _convert(model: nn.Module, side: int, sixteen_bit: bool) -> HQTransformer:
    config = parse_transformer(*describe_module(model, side))
    ours = load_stage2_state(config, model.state_dict(), origin=type(model).__name__)
    device = next(model.parameters()).device
    dtype = default_dtype(device) if sixteen_bit else torch.float32
    return ours.to(device=device, dtype=dtype).eval().requires_grad_(False).prepare()
