"""A product with a weight that was laid out once for a CPU's kernel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.packed_linear import native, onednn


class PackedWeight(Protocol):
    """A weight in the layout of one kernel, for inputs of its own dtype."""

    @property
    def dtype(self) -> torch.dtype: ...

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor: ...

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor: ...


def pack_weight(weight: Tensor) -> PackedWeight | None:
    """The weight [out, in] as the fastest kernel here wants it, or None where plain rows are as good.

    Ours, else oneDNN's: with bf16 and from 1 to 256 rows ours was never the slower one (EPYC with AVX512-BF16, 2 cores,
    the layers of preset S), 1.3 to 1.6 times as fast at 1 and 8 rows.
    """
    if native.why_not(weight) is None:
        return native.NativeWeight(weight)
    return onednn.OneDNNWeight(weight) if onednn.why_not(weight) is None else None


__all__ = ["PackedWeight", "pack_weight"]
