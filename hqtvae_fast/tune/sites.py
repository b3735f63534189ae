"""The choices that a model meets: recorded from a step and a decode, on a GPU without one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from hqtvae_fast import plan as plans
from hqtvae_fast.backend import VARIABLE, source_of
from hqtvae_fast.engine.coding import chunk_size
from hqtvae_fast.engine.loop import Drawing, SamplingParams
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.linear import Linear, QuantizedWeight, quantized_linears
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.spec import Cost, Spec, all_specs
from hqtvae_fast.tune.cases import fitted, packed
from hqtvae_fast.tune.launches import Indexing

STEPS = range(2)
"""Of a drawing: the first one, which reads the condition, and one like all others."""


@dataclass(frozen=True)
class Site:
    """``keys``: the choices that are decided together, as :func:`hqtvae_fast.plan.site` writes them; ``inputs``: the
    first one's, as JSON; ``names``: the op's variants that can run there, ``default`` the one of its own order.
    ``batch``: the smallest bucket that meets it. ``cost``: None where no spec's case has these inputs, so that nothing
    can be proven or timed."""

    keys: tuple[str, ...]
    op: str
    inputs: Any
    names: tuple[str, ...]
    default: str
    batch: int
    cost: Cost | None

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def label(self) -> str:
        """Its default variant, as a plan trusts or refuses it."""
        return f"{self.op} {self.default}"

    @property
    def is_ours(self) -> bool:
        """Whether its default variant is, which a GPU runs only once it is verified."""
        return source_of(self.default) == "ours"

    @property
    def is_choice(self) -> bool:
        return len(self.names) > 1 and self.cost is not None


def without(sites: Sequence[Site], refused: Mapping[str, str]) -> list[Site]:
    """The choices that are left where some variants, named "op name", are refused beforehand."""
    specs, left = all_specs(), []
    for site in sites:
        names = tuple(name for name in site.names if f"{site.op} {name}" not in refused)
        ordered = [each.name for each in specs[site.op].backends if not each.only_by_name and each.name in names]
        if names != site.names and ordered:
            site = replace(site, names=names, default=ordered[0])
        left.append(site)
    return left


def find_sites(
    models: Sequence[HQTransformer],
    vae: HQVAE | None,
    device: torch.device,
    batches: Sequence[int],
    engines: Sequence[str] = ("",),
    convolutions: Sequence[str] = (),
) -> list[Site]:
    """Of drawing, decoding and, on a GPU, encoding so many images at once; ``vae`` None: of drawing alone. On a GPU,
    there or not, everything is of fake tensors; on a CPU two steps and a decode are run. ``engines``: texts as a plan
    has them, to draw by each. ``convolutions``: variants of a GPU's calibrated convolutions, before which norms round:
    these are choices too."""
    specs, found = all_specs(), dict[str, Site]()
    for batch in sorted(set(batches)):
        with _recorded() as known:
            if device.type == "cuda":
                empty, decoder = _without_values(models, vae)
                with FakeTensorMode(), torch.device("cuda"), Indexing(), _CuDNN():
                    for module in (*empty, *decoder):
                        _onto_device(module)
                    folded = decoder[0].fold() if decoder else None
                    _run(empty, folded, torch.device("cuda"), batch, engines)
                    if folded is not None:
                        _meet_rounding_norms(folded, batch, known, convolutions)
                    sites = list(_sites(specs, known, batch))
            else:
                _run(models, vae, device, batch, engines)
                sites = list(_sites(specs, known, batch))
        for site in sites:
            found.setdefault(site.key, site)
    return list(found.values())


BROUGHT = {"streamed_rows": ("streamed_rows",), "fused_norm": ("fused_norm", "streamed_rows, fused_norm")}
"""Of the engine's words those that bring choices of their own, and how it runs with them."""


def brought_sites(
    models: Sequence[HQTransformer], device: torch.device, batches: Sequence[int], known: Sequence[Site]
) -> dict[str, list[Site]]:
    """Choices of drawing on a GPU that are met with a word of :data:`BROUGHT` alone, by the word."""
    seen, found = {site.key for site in known}, dict[str, list[Site]]()
    for word, engines in BROUGHT.items() if device.type == "cuda" else ():
        own = [site for engine in engines for site in find_sites(models, None, device, batches, (engine,))]
        found[word] = list({site.key: site for site in own if site.key not in seen}.values())
        seen |= {site.key for site in own}
    return found


@contextmanager
def _recorded() -> Iterator[plans.Sites]:
    """What the environment asks for is not meant, nor a plan that is in use."""
    with mock.patch.dict(os.environ), plans.using(None), inference(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # an address that is never read
        os.environ.pop(VARIABLE, None)
        with plans.recording() as known:
            yield known


class _CuDNN(TorchFunctionMode):
    """Convolutions give maps in the layout of their weights, as cuDNN does; of fake tensors a torch without it says
    otherwise."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = function(*args, **(kwargs or {}))
        if function is torch.conv2d and args[1].is_contiguous(memory_format=torch.channels_last):
            return y.contiguous(memory_format=torch.channels_last)
        return y


def _run(
    models: Sequence[HQTransformer], vae: HQVAE | None, device: torch.device, batch: int, engines: Sequence[str]
) -> None:
    for engine in engines:
        _draw(models, device, batch, EngineOptions.read(engine))
    if vae is None:
        return
    images = _decode(vae, device, batch)
    if device.type == "cuda":  # whose kernels run once they are verified; on a CPU it takes as long as all the rest
        R = vae.config.resolution
        vae.quantize(vae.latents(torch.zeros(images, 3, R, R, dtype=torch.float32, device=device)))


def _draw(models: Sequence[HQTransformer], device: torch.device, batch: int, options: EngineOptions) -> None:
    for model in models:
        config, condition = model.config, None
        if config.condition != "none":
            shape = (batch,) if config.condition == "class" else (batch, config.prefix_length)
            condition = torch.zeros(shape, dtype=torch.int64, device=device)
        levels = config.num_levels
        params = SamplingParams((1.0,) * levels, (None,) * levels, (None,) * levels)
        seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        drawing = Drawing.make(model, condition, seeds, params, options=options)
        drawing.run(steps=STEPS)


def _decode(vae: HQVAE, device: torch.device, batch: int) -> int:
    """A chunk of a batch; how many images it has."""
    images = batch if device.type == "cuda" else min(batch, chunk_size(vae, device))
    sides = vae.config.level_sides
    vae.decode_bytes([torch.zeros(images, side, side, dtype=torch.int64, device=device) for side in sides])
    return images


def _meet_rounding_norms(vae: HQVAE, batch: int, known: plans.Sites, variants: Sequence[str]) -> None:
    """Beside what is known, a decode with its calibrated convolutions by each variant. What that calls by name is no
    choice: it is proven and timed as a part of the variant."""
    for variant in variants:
        choices = {key: variant for key, (op, _) in known.items() if op == "conv3x3"}
        with plans.using(plans.Plan("tuned", choices)):
            _decode(vae, torch.device("cuda"), batch)
    for key in [key for key, (op, _) in known.items() if op in ("quantized_conv", "round_map")]:
        del known[key]


def _without_values(models: Sequence[HQTransformer], vae: HQVAE | None) -> tuple[list[HQTransformer], list[HQVAE]]:
    """Models of the same shapes and dtypes, quantized and calibrated alike."""
    kinds = [{name: own.kind for name, own in quantized_linears(model).items()} for model in models]
    with torch.inference_mode(False), torch.no_grad(), without_values():
        empty = [HQTransformer(model.config).to(model.norm.weight.dtype).eval() for model in models]
        for model, own in zip(empty, kinds, strict=True):
            for name, kind in own.items():
                layer = cast(Linear, model.get_submodule(name))
                layer.adopt(QuantizedWeight.without_values(layer.weight, kind))
        if vae is None:
            return empty, []
        decoder = HQVAE(vae.config).eval()
        decoder.set_decoder_dtype(vae.post_quant_conv.weight.dtype)
        for (_, convolution), (_, calibrated) in zip(roundable(decoder), roundable(vae), strict=True):
            convolution.span = calibrated.span
    return empty, [decoder]


def _onto_device(module: nn.Module) -> None:
    """Empty parameters, buffers and quantized numbers on the default device in place of the module's."""
    for part in module.modules():
        quantized = part.quantized if isinstance(part, Linear) else None
        for name, own in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(_like(own), requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = _like(buffer)
        if isinstance(part, Linear) and quantized is not None:
            part.adopt(QuantizedWeight.without_values(part.weight, quantized.kind))


def _like(x: Tensor) -> Tensor:
    """On the default device; a convolution's weight in channels-last memory."""
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, memory_format=layout)


def _sites(specs: Mapping[str, Spec], known: plans.Sites, batch: int) -> Iterator[Site]:
    for key, (op, inputs) in known.items():
        spec = specs.get(op)
        if spec is None or not spec.backends:
            continue
        try:
            able = [each for each in spec.backends if each.why_not(*inputs) is None]
            content = packed(inputs)
        except TypeError:  # something else than tensors and numbers, or inputs of another question
            continue
        default = next((each.name for each in able if not each.only_by_name), None)
        if default is None:
            continue
        own = fitted(spec, inputs)
        cost = None if own is None else own[0].cost(own[1])
        keys = (key, *(other for other in _siblings(op, inputs) if other != key))
        yield Site(keys, op, content, tuple(each.name for each in able), default, batch, cost)


def _siblings(op: str, inputs: Sequence[Any]) -> list[str]:
    """Choices that differ in a position alone, where it is a number and not on the device: on a CPU, each step's."""
    if op != "decode_attention" or isinstance(inputs[5], Tensor):
        return []
    qkv, bias, keys, values, _, *others = inputs
    places = range(keys.shape[2] - qkv.shape[1] + 1)
    return [plans.site(op, (qkv, bias, keys, values, place, *others)) for place in places]
