"""Encoder and decoder as one writes them down: the same weights through torch's own operations, nothing folded or
fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.autoencoder import AttnBlock, Decoder, Downsample, Encoder, ResBlock, Upsample


class PlainDecoder:
    """Codes to images [B, 3, R, R], nominally in [-1, 1], in the dtype that the VAE's weights have, and in NCHW or
    channels-last memory."""

    def __init__(self, vae: HQVAE, *, channels_last: bool = False) -> None:
        self.vae = vae
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    @torch.inference_mode()
    def __call__(self, codes: Sequence[Tensor]) -> Tensor:
        return self.pixels(codes)

    def pixels(self, codes: Sequence[Tensor]) -> Tensor:
        """The same, in whatever mode the caller is."""
        vae, decoder = self.vae, self.vae.decoder
        pairs = zip(vae.codebooks, codes, strict=True)
        embeddings = [F.embedding(level, book.embedding).permute(0, 3, 1, 2).contiguous() for book, level in pairs]
        return decoded(decoder, vae.combine(embeddings).contiguous(memory_format=self.layout))


def decoded(decoder: Decoder, x: Tensor) -> Tensor:
    """Latents to images."""
    x = _conv(decoder.conv_in, x)
    for layers in (decoder.middle, *decoder.up):
        for layer in layers:
            x = _layer(layer, x)
    return _conv(decoder.conv_out, F.silu(_norm(decoder.norm_out.norm, x)))


def encoded(encoder: Encoder, images: Tensor) -> Tensor:
    """Images to features, before the 1x1 convolution."""
    first = encoder.conv_in
    x = F.conv2d(images, first.weight, first.bias, first.stride, first.padding)
    for layers in (*encoder.down, encoder.middle):
        for layer in layers:
            x = _layer(layer, x)
    return _conv(encoder.conv_out, F.silu(_norm(encoder.norm_out.norm, x)))


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, ResBlock):
        hidden = _conv(layer.conv1, F.silu(_norm(layer.norm1.norm, x)))
        branch = _conv(layer.conv2, F.silu(_norm(layer.norm2.norm, hidden)))
        return (_conv(layer.shortcut, x) if isinstance(layer.shortcut, nn.Conv2d) else x) + branch
    if isinstance(layer, AttnBlock):
        return x + _attention(layer, _norm(layer.norm, x))
    if isinstance(layer, Upsample):
        return _conv(layer.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))
    if isinstance(layer, Downsample):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.conv.weight, layer.conv.bias, stride=2)
    return layer(x)


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Not by the module, which may know a faster way."""
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _attention(layer: AttnBlock, x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    q, k, v = layer.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
    weights = (q @ k.transpose(1, 2) * C**-0.5).softmax(dim=2)
    return layer.out(weights @ v).transpose(1, 2).reshape(B, C, H, W)
