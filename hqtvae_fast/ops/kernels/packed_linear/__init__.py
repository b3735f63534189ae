"""A product with a weight that was laid out once for a CPU's kernel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.packed_linear import native, onednn, reference


class PackedWeight(Protocol):
    """A weight in the layout of one kernel, for inputs of its own dtype."""

    @property
    def dtype(self) -> torch.dtype: ...

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor: ...

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor: ...


BACKENDS = (
    Backend("native", native.NativeWeight, native.why_not),
    Backend("onednn", onednn.OneDNNWeight, onednn.why_not),
    Backend("reference", reference.plain),
)


def packer(weight: Tensor, *, backend: str | None = None) -> Backend:
    """Whose kernel the weight [out, in] is to be laid out for; "reference": plain rows, torch's product.

    Ours, else oneDNN's: with bf16 and from 1 to 256 rows ours was never the slower one (EPYC with AVX512-BF16, 2 cores,
    the layers of preset S), 1.3 to 1.6 times as fast at 1 and 8 rows.
    """
    return choose("packed_linear", BACKENDS, weight, backend=backend).backend


def pack_weight(weight: Tensor) -> PackedWeight | None:
    """The weight [out, in] as its kernel wants it, or None for plain rows."""
    packed: PackedWeight | None = packer(weight).run(weight)
    return packed


__all__ = ["PackedWeight", "pack_weight", "packer"]
