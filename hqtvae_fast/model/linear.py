"""Linear layers whose weights can be laid out once for inference on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.model.huge_pages import huge_pages
from hqtvae_fast.ops.kernels.packed_linear import PackedWeight, packer
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED, quantize
from hqtvae_fast.ops.made import Made, tree

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as int8 or fp8 [out, in] and a scale fp32 [out]: weight ~ stored * scale."""

    stored: Tensor
    scale: Tensor
    kind: str

    @classmethod
    def of(cls, weight: Tensor, kind: str) -> QuantizedWeight:
        return cls(*quantize(weight, kind), kind)

    @classmethod
    def without_values(cls, weight: Tensor, kind: str) -> QuantizedWeight:
        """Of a weight whose shape and device alone count."""
        (N, K), device = weight.shape, weight.device
        stored = torch.empty(N, K, dtype=QUANTIZED[kind], device=device)
        return cls(stored, torch.empty(N, dtype=torch.float32, device=device), kind)

    def wide(self, dtype: torch.dtype) -> Tensor:
        return self.stored.float().mul_(self.scale[:, None]).to(dtype)

    def to(self, device: torch.device) -> QuantizedWeight:
        return QuantizedWeight(self.stored.to(device), self.scale.to(device), self.kind)


class Linear(nn.Linear):
    """``nn.Linear`` with an optional packed copy of its weight, and an optional quantized one.

    A sampling step's products are skinny, so its time on a CPU is the time to stream the weights, and the order in
    which they lie decides how fast that goes. :meth:`pack` lays them out once. The plain weight stays the parameter
    that is saved, moved and trained; a packed one is read only while the plain one has not been written.

    :meth:`quantize` rounds the weight to one-byte numbers times a scale an output, and keeps these for skinny products
    (:attr:`streamed`) and, where they are int8, for what :meth:`pack` lays out, whose products round their inputs too;
    the plain weight becomes numbers times scale, so that whoever reads it computes with the same numbers but for a
    rounding to its dtype. Copies have the same numbers.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._packed: Made[PackedWeight | None] = Made()
        self._packed_for = ""  # whose kernel
        self._quantized: QuantizedWeight | None = None
        self._rounded: Made[bool] = Made()  # that the weight is what the quantized one says

    def quantize(self, to: str = "int8") -> None:
        """Round the weight, for good, to "int8" or "fp8" (e4m3). One that is rounded stays as it is."""
        if self._quantized is None:
            self._quantized = QuantizedWeight.of(self.weight.detach(), to)
            self._widen()
            self._is_rounded()
        self.round()

    def adopt(self, quantized: QuantizedWeight) -> None:
        """Be a layer that was quantized before: its weight is what ``quantized`` is in the weight's dtype."""
        self._quantized = quantized
        self._is_rounded()

    @property
    def quantized(self) -> QuantizedWeight | None:
        """The weight in one byte a value, as it now is; None where it is not quantized."""
        self.round()
        return self._quantized

    def round(self) -> None:
        """Of a quantized layer: round the weight again if it has been changed since."""
        if self._quantized is not None:
            self._rounded.of(self._round, self.weight)

    def _round(self) -> bool:
        assert self._quantized is not None
        weight = self.weight.detach()
        if not torch.equal(weight, self._quantized.wide(weight.dtype)):
            again = QuantizedWeight.of(weight, self._quantized.kind)
            self._quantized.stored.copy_(again.stored)
            self._quantized.scale.copy_(again.scale)
            self._widen()
        return True

    def _is_rounded(self) -> None:
        """The weight was just made of the quantized one: no need to look, which reads both."""
        self._rounded.of(lambda: True, self.weight)

    @torch.no_grad()
    def _widen(self) -> None:
        if self._quantized is not None:
            self.weight.copy_(self._quantized.wide(self.weight.dtype))

    @property
    def streamed(self) -> tuple[Tensor, Tensor | None]:
        """What a product should read that takes as long as reading does: the quantized numbers and their scale, or the
        weight and None."""
        quantized = None if self.training else self._quantized
        return (self.weight, None) if quantized is None else (quantized.stored, quantized.scale)

    def pack(self) -> None:
        """Lay the weight out for inference on the CPU, where that is not done already; a no-op where no kernel wants
        it. A weight that is computed anew for each product, a parametrization's, has nothing to lay out."""
        weight = self._parameters.get("weight")
        if weight is None:
            self.unpack()
            return
        self.round()
        given = self._to_pack(weight)
        chosen = packer(*given)
        if chosen.name != self._packed_for:
            self.unpack()
        self._packed.of(lambda: chosen.run(*given), weight)
        self._packed_for = chosen.name

    def _to_pack(self, weight: Tensor) -> tuple[Tensor, ...]:
        quantized = self._quantized
        return (weight.detach(), *(() if quantized is None else (quantized.stored, quantized.scale)))

    @property
    def is_packed(self) -> bool:
        """Whether :meth:`pack` has nothing to do."""
        weight = self._parameters.get("weight")
        if weight is None or not self._packed.is_right(weight):
            return False
        return packer(*self._to_pack(weight)).name == self._packed_for

    def unpack(self) -> None:
        """Drop the packed copy."""
        self._packed.drop()

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self.unpack()  # the weight is about to change
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        packed = self._usable(input)
        return F.linear(input, self.weight, self.bias) if packed is None else packed.linear(input, self.bias)

    def gelu(self, input: Tensor) -> Tensor:
        """x*Phi(x) of the result."""
        packed = self._usable(input)
        return F.gelu(F.linear(input, self.weight, self.bias)) if packed is None else packed.gelu(input, self.bias)

    def _usable(self, input: Tensor) -> PackedWeight | None:
        packed = self._packed.value
        if packed is None or torch.is_grad_enabled() or input.dtype != packed.dtype:
            return None
        return packed if self._packed.unwritten(self._parameters.get("weight")) else None

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.round()  # what has been written before is not to be lost
        self.unpack()  # .to(...) makes a new weight
        super()._apply(fn, recurse)
        if self._quantized is not None:  # no buffers: the scale stays fp32 in any dtype
            self._quantized = self._quantized.to(self.weight.device)
            if not self._rounded.is_right(self.weight):  # it was moved, or is of another dtype
                self._widen()
                self._is_rounded()
        return self


def quantize_linears(module: Module, to: str = "int8") -> Module:
    """Round every :class:`Linear` inside ``module``, see :meth:`Linear.quantize`, and return it. Best done from fp32:
    then each weight is rounded once. Costs one more byte a value in memory."""
    for child in _linears(module):
        child.quantize(to)
    return module


def round_linears(module: nn.Module) -> list[Tensor]:
    """Of what :func:`quantize_linears` has rounded, round again what has been changed since; all quantized numbers."""
    found: list[Tensor] = []
    for child in _linears(module):
        if child._quantized is not None:
            child.round()
            found += [child._quantized.stored, child._quantized.scale]
    return found


def quantized_linears(module: nn.Module) -> dict[str, QuantizedWeight]:
    """The quantized weights inside ``module``, by the name of their layer."""
    layers = [(name, child) for name, child in module.named_modules() if isinstance(child, Linear)]
    return {name: quantized for name, child in layers if (quantized := child.quantized) is not None}


def pack_linears(module: Module) -> Module:
    """Pack every :class:`Linear` inside ``module`` that is not, and return it. Costs one more copy of the weights in
    memory."""
    left = [child for child in _linears(module) if not child.is_packed]
    with huge_pages(sum(child.weight.nbytes for child in left if child.weight.device.type == "cpu")):
        for child in left:
            child.pack()
    return module


def _linears(module: nn.Module) -> Iterator[Linear]:
    return (child for child in tree(module) if isinstance(child, Linear))
