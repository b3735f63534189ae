"""Released stage-2 modules in memory as models of ours, and what draws with these; both kept while the module lives."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hqtvae_fast.checkpoint import load_stage2_state
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.engine import Executor
from hqtvae_fast.engine.options import Precision
from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.ops.made import mark
from hqtvae_fast.plan import Plan, using
from hqtvae_fast.planning import PLANS, default_plan, facts_of
from hqtvae_fast.progress import counting_bar
from hqtvae_fast.released.config import parse_transformer
from hqtvae_fast.released.module import describe_module

_converted: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], HQTransformer]] = WeakKeyDictionary()
_executors: WeakKeyDictionary[HQTransformer, Executor] = WeakKeyDictionary()


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
    with using(PLANS["default"]):  # lays out a CPU's weights
        return ours.to(device=device, dtype=dtype).eval().requires_grad_(False).prepare()


def executor_of(model: HQTransformer) -> Executor:
    """What draws with a transformer of ours where it now is: one, as long as it lives and stays there."""
    device = next(model.parameters()).device
    executor = _executors.get(model)
    if executor is None or executor.device != device:
        # The executor must not hold the model that it is kept for: it has another object around the same parts.
        part = copy.copy(model)
        plan = _verified(part, device) if device.type == "cuda" else PLANS["default"]
        executor = _executors[model] = Executor([part], None, device, plan)
    part = executor.models[0]
    part.training, part.prepared = model.training, model.prepared
    return executor


def _verified(model: HQTransformer, device: torch.device) -> Plan:
    """Our kernels as far as they are verified on this GPU for this transformer."""
    config, precision = whole_config(model.config), Precision(next(model.parameters()).dtype)
    facts = partial(facts_of, config, device, precision, None)

    def verify() -> Plan:
        from hqtvae_fast.tune.verify import verify_default

        vae = HQVAE(config.vae).eval().to(device)
        with counting_bar("Compiling and verifying kernels on this GPU, once") as on_progress:
            return verify_default(Executor([model], vae, device, PLANS["library"]), device, on_progress)

    return default_plan(facts, device, verify)


def whole_config(config: TransformerConfig) -> HQTVAEConfig:
    """With the least stage 1 that has its maps, for a transformer that came alone: a plan holds for a whole model."""
    levels = config.num_levels
    vae = VAEConfig(
        resolution=config.side * 2 ** (levels - 1),
        channels=32,
        channel_multipliers=(1,),
        latent_channels=32,
        embed_dim=1,
        init_downsample=False,
        codebook_sizes=config.codebook_sizes,
        combine="concat" if levels == 2 else "sum",
    )
    return HQTVAEConfig(vae=vae, transformer=config)
