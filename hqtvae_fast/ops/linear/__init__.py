"""Linear layers whose weights can be laid out once for inference on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.ops.linear import native, onednn
from hqtvae_fast.ops.linear.memory import huge_pages
from hqtvae_fast.ops.linear.reference import quantize

Module = TypeVar("Module", bound=nn.Module)


class PackedWeight(Protocol):
    """A weight in the layout of one kernel, for inputs of its own dtype."""

    @property
    def dtype(self) -> torch.dtype: ...

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor: ...

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class NarrowWeight:
    """A weight as int8 or fp8 [out, in] and a scale fp32 [out]: weight ~ stored * scale."""

    stored: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> NarrowWeight:
        return NarrowWeight(self.stored.to(device), self.scale.to(device))


class Linear(nn.Linear):
    """``nn.Linear`` with an optional packed copy of its weight, and an optional narrow one.

    A sampling step multiplies a few rows by every weight, so its time on a CPU is the time to stream the weights, and
    the order in which they lie decides how fast that goes. :meth:`pack` lays them out once. The plain weight stays the
    parameter that is saved, moved and trained.

    :meth:`quantize` rounds the weight to one-byte numbers times a scale an output, and keeps these for products of few
    rows (:attr:`streamed`); the plain weight becomes their product, so that whoever reads it computes with the same
    numbers but for a rounding to its dtype.
    """

    _packed: PackedWeight | None = None
    _narrow: NarrowWeight | None = None

    @torch.no_grad()
    def quantize(self, to: str = "int8") -> None:
        """Round the weight, for good, to "int8" or "fp8" (e4m3). One that is rounded stays as it is."""
        if self._narrow is None:
            self._narrow = NarrowWeight(*quantize(self.weight, to))
            self.weight.copy_(self._narrow.stored.float() * self._narrow.scale[:, None])
            self._packed = None

    @property
    def streamed(self) -> tuple[Tensor, Tensor | None]:
        """What a product should read that takes as long as reading does: the narrow numbers and their scale, or the
        weight and None."""
        return (self.weight, None) if self._narrow is None else (self._narrow.stored, self._narrow.scale)

    def pack(self) -> None:
        """Lay the weight out for inference on the CPU; a no-op where no kernel wants that."""
        self._packed = pack_weight(self.weight.detach())

    def unpack(self) -> None:
        """Drop the packed copy; needed after the weight has changed."""
        self._packed = None

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self.unpack()  # the weight is about to change
            self._narrow = None
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        packed = self._usable(input)
        return F.linear(input, self.weight, self.bias) if packed is None else packed.linear(input, self.bias)

    def gelu(self, input: Tensor) -> Tensor:
        """x*Phi(x) of the result."""
        packed = self._usable(input)
        return F.gelu(F.linear(input, self.weight, self.bias)) if packed is None else packed.gelu(input, self.bias)

    def _usable(self, input: Tensor) -> PackedWeight | None:
        packed = self._packed
        return packed if packed is not None and not torch.is_grad_enabled() and input.dtype == packed.dtype else None

    def __getstate__(self):  # type: ignore[no-untyped-def]
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}  # opaque to copy and pickle

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self.unpack()  # .to(...) makes a new weight
        super()._apply(fn, recurse)
        if self._narrow is not None:  # no buffers: the scale stays fp32 in any dtype
            self._narrow = self._narrow.to(self.weight.device)
        return self

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.unpack()
        self._narrow = None
        return super()._load_from_state_dict(*args, **kwargs)


def pack_weight(weight: Tensor) -> PackedWeight | None:
    """The weight [out, in] as the fastest kernel here wants it, or None where plain rows are as good.

    Ours, else oneDNN's: with bf16 and from 1 to 256 rows ours was never the slower one (EPYC with AVX512-BF16, 2 cores,
    the layers of preset S), 1.3 to 1.6 times as fast at 1 and 8 rows.
    """
    if native.why_not(weight) is None:
        return native.NativeWeight(weight)
    return onednn.OneDNNWeight(weight) if onednn.why_not(weight) is None else None


def quantize_linears(module: Module, to: str = "int8") -> Module:
    """Round every :class:`Linear` inside ``module``, see :meth:`Linear.quantize`, and return it. Best done from fp32:
    then each weight is rounded once. Costs one more byte a value in memory."""
    for child in module.modules():
        if isinstance(child, Linear):
            child.quantize(to)
    return module


def pack_linears(module: Module) -> Module:
    """Pack every :class:`Linear` inside ``module`` and return it. Costs one more copy of the weights in memory."""
    linears = [child for child in module.modules() if isinstance(child, Linear)]
    with huge_pages(sum(child.weight.nbytes for child in linears if child.weight.device.type == "cpu")):
        for child in linears:
            child.pack()
    return module
