"""THE sampling loop: T steps, each one top code and then its finer codes.

Every policy runs through it: a step is one position of the body, then the head's groups in order. Buffers are
allocated before the first step; inside, nothing is concatenated and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.cache import KVCache
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.model.pyramid import to_local, to_maps
from hqtvae_fast.ops.sample_logits import check_sampling, sample_logits

OnStep = Callable[[], None]


@dataclass(frozen=True)
class SamplingParams:
    """Temperature, top-k and top-p of each predicted level, top first."""

    temperature: tuple[float, ...]
    top_k: tuple[int | None, ...]
    top_p: tuple[float | None, ...]

    def check(self, config: TransformerConfig) -> None:
        """ValueError unless there is one of each a level, all in range."""
        for name, values in (("temperature", self.temperature), ("top_k", self.top_k), ("top_p", self.top_p)):
            if len(values) != config.num_levels:
                raise ValueError(f"{name}: expected {config.num_levels} values, one a level; got {len(values)}")
        for values in zip(self.temperature, self.top_k, self.top_p, config.codebook_sizes, strict=True):
            check_sampling(*values)


@torch.inference_mode()
def draw_codes(
    model: HQTransformer,
    condition: Tensor | None,
    seeds: Tensor,
    params: SamplingParams,
    *,
    given_top_codes: Tensor | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, ...]:
    """Draw code maps, int64 [B, h, w] a predicted level, top first.

    ``condition``: labels [B], tokens [B, P], top codes [B, P] (a refiner) or None; ``seeds`` int64 [B], see
    :func:`hqtvae_fast.engine.rng.image_seeds`; ``given_top_codes`` [B, h, w] are kept and only finer codes are drawn
    (the paper's figure 4b). ``on_step`` is called after each of the T steps has been issued. The same seed gives the
    same codes in any batch, as far as matrix products give the same logits there. Raises ValueError on parameters out
    of range and, at the end on a GPU and at once on a CPU, on logits that are NaN.
    """
    config, batch = model.config, len(seeds)
    if config.scrambled_middle:
        raise ValueError("scrambled_middle: this model needs codes that are not drawn yet; it can only be evaluated")
    params.check(config)
    body_cache, head_cache = _make_caches(model, batch)
    local_BTN = torch.zeros(batch, config.num_steps, config.num_local, dtype=torch.int64, device=seeds.device)
    if given_top_codes is not None:
        local_BTN[:, :, :1] = _check_given(given_top_codes, config, batch)
    invalid = torch.zeros((), dtype=torch.bool, device=seeds.device)
    x_BSD = model.prefix(condition, batch)
    for step in range(config.num_steps):
        h_BD = model.run_body(x_BSD, body_cache)[:, -1]
        head_cache.reset()
        for group in config.groups:
            if given_top_codes is not None and group == range(1):
                model.head.skip(h_BD, head_cache)
                continue
            logits = model.head.draw(h_BD, local_BTN[:, step], group, head_cache)
            keep_top = given_top_codes is not None and group.start == 0
            _draw_group(logits, local_BTN[:, step], group, step, config, params, seeds, keep_top)
            if seeds.device.type != "cpu":  # there, sample_logits has looked
                invalid |= torch.stack([level.isnan().any() for level in logits]).any()
        if step + 1 < config.num_steps:
            x_BSD = model.embedding(local_BTN[:, step : step + 1], range(step, step + 1))
        if on_step is not None:
            on_step()
    if bool(invalid):
        raise ValueError("the model gave NaN logits: expected finite weights in a dtype that holds its activations")
    return to_maps(local_BTN, config.side, config.level_widths)


def _draw_group(
    logits: list[Tensor],
    local_BN: Tensor,
    group: range,
    step: int,
    config: TransformerConfig,
    params: SamplingParams,
    seeds: Tensor,
    keep_top: bool,
) -> None:
    """Draw a group's codes into ``local_BN``, one call for all positions of a level."""
    for level in sorted({config.local_levels[q] for q in group}):
        positions = [q for q in group if config.local_levels[q] == level and not (keep_top and q == 0)]
        if not positions:
            continue
        count = len(positions)
        rows_MK = torch.cat([logits[q - group.start] for q in positions])  # position-major rows
        drawn_M = sample_logits(
            rows_MK,
            temperature=params.temperature[level],
            top_k=params.top_k[level],
            top_p=params.top_p[level],
            seeds=seeds.repeat(count),
            step=step + _noise_offset(config),
            position=torch.tensor(positions, device=seeds.device).repeat_interleave(len(seeds)),
        )
        local_BN[:, positions[0] : positions[-1] + 1] = drawn_M.view(count, -1).T


def _noise_offset(config: TransformerConfig) -> int:
    """A refiner draws with the seeds of the prior before it: its steps are numbered on, so that no noise is reused."""
    return config.prefix_length if config.condition == "codes" else 0


def _make_caches(model: HQTransformer, batch: int) -> tuple[KVCache, KVCache]:
    config, weight = model.config, model.norm.weight

    def make(blocks: Blocks | None, heads: int, capacity: int) -> KVCache:
        return KVCache(
            layers=0 if blocks is None else len(blocks.layers),
            batch=batch,
            heads=heads,
            capacity=capacity,
            width=config.dim // heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    head_blocks = getattr(model.head, "blocks", None)
    body = make(model.body, config.body.num_heads, config.prefix_positions + config.num_steps - 1)
    return body, make(head_blocks, config.head.num_heads, config.num_local)


def _check_given(given: Tensor, config: TransformerConfig, batch: int) -> Tensor:
    if config.decoding == "global":
        raise ValueError("given_top_codes: this transformer draws one level; there is nothing left to draw")
    if len(given) != batch:
        raise ValueError(f"given_top_codes: expected {batch} maps; got {len(given)}")
    if given.is_floating_point() or bool(((given < 0) | (given >= config.codebook_sizes[0])).any()):
        raise ValueError(f"given_top_codes: expected integers from 0 to {config.codebook_sizes[0] - 1}")
    return to_local([given], config.side)
