"""Lookup, resampling and the 1x1 convolution before the decoder, folded into one table a level.

The decoder reads conv1x1(upsampled embeddings, joined), linear in each level's embeddings. All upsamplings turn one
position into its own window of pixels, so a code adds the same C numbers to each pixel of its window wherever it
stands: its rows of that level's table. What is left without any code, biases, is the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.ops.kernels.code_features import code_features

CHUNK_CODES = 256  # of a table made at a time, in fp64


@dataclass(frozen=True)
class CodeTables:
    """Tables [K, f*f, C] for each level, top first, and base [F*F, C]."""

    tables: tuple[Tensor, ...]
    base: Tensor

    def __call__(self, codes: Sequence[Tensor | None]) -> Tensor:
        """The decoder's input [B, C, H, W]; a level that is None adds nothing, as zeros in its embeddings' place."""
        pairs = zip(codes, self.tables, strict=True)
        present = [(level.long(), table) for level, table in pairs if level is not None]
        return code_features([level for level, _ in present], [table for _, table in present], self.base)


@torch.no_grad()
def fold_tables(
    config: VAEConfig, codebooks: Sequence[Tensor], upsamples: Sequence[nn.Module], conv: nn.Conv2d
) -> CodeTables:
    """Tables in the convolution's dtype from ``codebooks`` [K, d], the modules between levels and the 1x1 convolution.

    Worked out in fp64 and rounded once.
    """
    assert conv.bias is not None
    weight_CD, bias_C = conv.weight.double().flatten(1), conv.bias.double()
    wide = config.embed_dim
    last = len(codebooks) - 1
    tables = []
    for level, book_KD in enumerate(codebooks):
        columns = slice(wide, None) if config.combine == "concat" and level == last else slice(0, wide)
        parts = [_windows(part, upsamples[level:], bias=False) for part in book_KD.split(CHUNK_CODES)]
        tables.append(torch.cat([(part @ weight_CD[:, columns].T).to(conv.weight.dtype) for part in parts]))
    nothing_1D = codebooks[0].new_zeros(1, codebooks[0].shape[1])
    constant_1PD = _windows(nothing_1D, upsamples, bias=True)
    base_PC = (constant_1PD @ weight_CD[:, :wide].T + bias_C)[0]
    return CodeTables(tuple(tables), base_PC.to(conv.weight.dtype))


def _windows(book_KD: Tensor, upsamples: Sequence[nn.Module], *, bias: bool) -> Tensor:
    """A code's own window of pixels after all of ``upsamples``, with their biases or without: [K, f*f, d] in fp64."""
    x_KDHW = book_KD.double()[:, :, None, None]
    for module in upsamples:
        if isinstance(module, nn.ConvTranspose2d):
            constant = module.bias.double() if bias and module.bias is not None else None
            x_KDHW = F.conv_transpose2d(x_KDHW, module.weight.double(), constant, stride=module.stride)
        else:
            x_KDHW = module(x_KDHW)
    return x_KDHW.flatten(2).transpose(1, 2)
