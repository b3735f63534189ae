"""The decoder as one writes it down: the same weights through torch's own operations, nothing folded or fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.autoencoder import AttnBlock, ResBlock, Upsample


class PlainDecoder:
    """Codes to images [B, 3, R, R], nominally in [-1, 1], in NCHW memory and the dtype that the VAE's weights have."""

    def __init__(self, vae: HQVAE) -> None:
        self.vae = vae

    @torch.inference_mode()
    def __call__(self, codes: Sequence[Tensor]) -> Tensor:
        return self.pixels(codes)

    def pixels(self, codes: Sequence[Tensor]) -> Tensor:
        """The same, in whatever mode the caller is."""
        vae, decoder = self.vae, self.vae.decoder
        pairs = zip(vae.codebooks, codes, strict=True)
        embeddings = [F.embedding(level, book.embedding).permute(0, 3, 1, 2).contiguous() for book, level in pairs]
        x = decoder.conv_in(vae.combine(embeddings).contiguous())
        for layers in (decoder.middle, *decoder.up):
            for layer in layers:
                x = _layer(layer, x)
        return decoder.conv_out(F.silu(_norm(decoder.norm_out.norm, x)))


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, ResBlock):
        hidden = layer.conv1(F.silu(_norm(layer.norm1.norm, x)))
        return layer.shortcut(x) + layer.conv2(F.silu(_norm(layer.norm2.norm, hidden)))
    if isinstance(layer, AttnBlock):
        return x + _attention(layer, _norm(layer.norm, x))
    if isinstance(layer, Upsample):
        return layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return layer(x)


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _attention(layer: AttnBlock, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    q, k, v = layer.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
    weights = (q @ k.transpose(1, 2) * C**-0.5).softmax(dim=2)
    return layer.out(weights @ v).transpose(1, 2).reshape(B, C, H, W)
