"""A product with a weight that was laid out once for a CPU's kernel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.packed_linear import int8, native, onednn, reference


class PackedWeight(Protocol):
    """A weight in the layout of one kernel, for inputs of its own dtype."""

    @property
    def dtype(self) -> torch.dtype: ...

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor: ...

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor: ...


BACKENDS = (
    Backend("native/int8", int8.Int8Weight, int8.why_not),
    Backend("native", native.NativeWeight, native.why_not),
    Backend("onednn", onednn.OneDNNWeight, onednn.why_not),
    Backend("reference", reference.plain),
)


def packer(weight: Tensor, *quantized: Tensor, backend: str | None = None) -> Backend:
    """Whose kernel the weight [out, in] is to be laid out for; "reference": plain rows, torch's product. ``quantized``:
    its numbers in one byte and their scale, where it is rounded to them.

    Ours, else oneDNN's: with bf16 and from 1 to 256 rows ours was never the slower one (EPYC with AVX512-BF16, 2 cores,
    the layers of preset S), 1.3 to 1.6 times as fast at 1 and 8 rows. Of a weight in int8 the inputs are rounded too.
    """
    return choose("packed_linear", BACKENDS, weight, *quantized, backend=backend).backend


def pack_weight(weight: Tensor, *quantized: Tensor) -> PackedWeight | None:
    """The weight [out, in] as its kernel wants it, or None for plain rows."""
    packed: PackedWeight | None = packer(weight, *quantized).run(weight, *quantized)
    return packed


__all__ = ["PackedWeight", "pack_weight", "packer"]
