"""Kernels that one step launches on a GPU, counted without one: the step runs on fake tensors, which only have shapes.

Every operator of torch that computes or copies counts as one kernel, views and allocations as none, each of our own
operators as the one kernel that it is (:mod:`hqtvae_fast.ops`), but for ``quantized_linear``, which is two or three:
it rounds rows, multiplies, and where a plan says so adds parts up. What a library adds inside one product, such as a
second kernel that sums its parts, is not seen; nor are the several that one of our operators takes where its backend
is not our kernel (attention of the reference engine over more than one new position).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hqtvae_fast.backend import unasked
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.fused_step import Engine
from hqtvae_fast.engine.loop import Drawing, SamplingParams
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.steering import Guidance, Known
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.linear import Linear, QuantizedWeight

ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided"}
NO_KERNEL = ALLOCATIONS | {"_unsafe_view", "detach", "alias", "lift_fresh", "dropout"}  # dropout: in evaluation


@dataclass(frozen=True)
class Call:
    """One operator that is a kernel: its name, what it was given by position, and what it gave."""

    name: str
    inputs: tuple[Any, ...]
    output: Any


class Calls(TorchDispatchMode):
    """Keeps what is called inside, but for views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, output = function.overloadpacket.__name__, function(*args, **(kwargs or {}))
        if not function.is_view and function.namespace != "prim" and packet not in NO_KERNEL:
            self.made.append(Call(packet, tuple(args), output))
        return output


class Indexing(TorchFunctionMode):
    """Python's indexing in terms of select and narrow, and copies as operators. Torch's own ask the device's driver
    first, and a build of torch without CUDA has none, fake tensors or not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__getitem__:
            return _index(*args)
        if function in _OPERATORS:
            return _OPERATORS[function](*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_OPERATORS = {Tensor.contiguous: torch.ops.aten.contiguous, Tensor.copy_: torch.ops.aten.copy_}


def _index(x: Tensor, where: Any) -> Tensor:
    """x[where] for numbers, slices without a step, None and an ellipsis."""
    dim, items = 0, where if isinstance(where, tuple) else (where,)
    for index, item in enumerate(items):
        if item is Ellipsis:
            dim = x.ndim - sum(each is not None for each in items[index + 1 :]) - 1
        elif item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, int):
            x, dim = x.select(dim, item), dim - 1
        elif isinstance(item, slice):
            start, stop, step = item.indices(x.shape[dim])
            if step != 1:
                raise NotImplementedError(f"counting kernels: expected a slice without a step; got {item}")
            x = x if (start, stop) == (0, x.shape[dim]) else x.narrow(dim, start, stop - start)
        else:
            raise NotImplementedError(f"counting kernels: expected numbers, slices, None, ... as indices; got {item!r}")
        dim += 1
    return x


@contextmanager
def unread() -> Iterator[None]:
    """Without torch's warning of a fake tensor's address, which nobody reads at."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


def count_launches(
    config: TransformerConfig,
    engine: Engine,
    *,
    batch: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    guided: bool = False,
    completing: bool = False,
) -> Counter[str]:
    """Kernels of one step after the first one, by operator."""
    return Counter(
        call.name
        for call in calls_of_step(config, engine, batch=batch, dtype=dtype, guided=guided, completing=completing)
    )


def calls_of_step(
    config: TransformerConfig,
    engine: Engine,
    *,
    batch: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    options: EngineOptions | None = None,
    guided: bool = False,
    completing: bool = False,
    quantization: str | None = None,
) -> list[Call]:
    """Kernels of one step after the first one, in order, over fake tensors: the token's embedding, the body, all groups
    of the head and the draws. Only shapes and the device's kind matter: nothing is computed or allocated. (With
    a top-k, unless the options fuse the draw.) ``quantization``: of all weights of products."""
    with unasked(), torch.inference_mode(), unread():
        with without_values():
            model = HQTransformer(config).eval()
        with FakeTensorMode(), torch.device("cuda"), Indexing():
            _to_device(model, dtype, quantization)
            seeds, condition = torch.zeros(batch, dtype=torch.int64), None
            if config.condition != "none":
                shape = (batch,) if config.condition == "class" else (batch, config.prefix_length)
                condition = torch.zeros(shape, dtype=torch.int64)
            levels = config.num_levels
            top_k = None if options is not None and options.fused_draw else min(2048, *config.codebook_sizes)
            params = SamplingParams((1.0,) * levels, (top_k,) * levels, (None,) * levels)
            guidance = None if condition is None or not guided else Guidance.off(condition)
            known = Known.none(config, batch, torch.device("cuda")) if completing else None
            how: dict[str, Any] = {"guidance": guidance, "known": known, "engine": engine, "options": options}
            drawing = Drawing.make(model, condition, seeds, params, **how)
            with Calls() as calls:
                drawing.run(steps=range(1, 2))
    return calls.made


def _to_device(model: nn.Module, dtype: torch.dtype, quantization: str | None) -> None:
    """Empty parameters on the default device in place of the model's."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        if quantization is not None and isinstance(module, Linear):
            module.adopt(QuantizedWeight.without_values(module.weight, quantization))


def launches_a_block(config: TransformerConfig, engine: Engine, *, batch: int = 64) -> dict[str, int]:
    """Kernels of one transformer block of the body and, over all passes of the head, of one of its blocks."""
    base = sum(count_launches(config, engine, batch=batch).values())
    found = {}
    for name in ("body", "head"):
        blocks = getattr(config, name)
        more = dataclasses.replace(config, **{name: dataclasses.replace(blocks, num_layers=blocks.num_layers + 1)})
        found[name] = sum(count_launches(more, engine, batch=batch).values()) - base
    return found
