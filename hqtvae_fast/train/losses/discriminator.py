"""The discriminator of stage-1 training: PatchGAN with GroupNorm, so that the batch size does not matter (3.1.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.modes import single_precision

GROUPS = 32
KERNEL = 4
SLOPE = 0.2  # of LeakyReLU below zero
MAX_WIDTH = 8  # in units of the first layer's width
INIT_STD = 0.02


class PatchLayer(nn.Module):
    """4x4 convolution, GroupNorm(32), LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, KERNEL, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE)


class PatchDiscriminator(nn.Module):
    """Images [B, 3, R, R] to a map of scores [B, 1, s, s]: high where the patch below looks real.

    A stride-2 convolution, ``num_layers`` layers of which all but the last have stride 2, and a convolution to one
    channel; widths double from ``channels`` up to eight times that. With two layers s = R/4 - 2 and a score sees a
    patch of 34 x 34 pixels. ``channels`` is a multiple of 16, as GroupNorm has 32 groups.
    """

    @single_precision()
    def __init__(self, channels: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        widths = [channels * min(2**depth, MAX_WIDTH) for depth in range(num_layers + 1)]
        strides = [2] * (num_layers - 1) + [1]
        self.conv_in = nn.Conv2d(3, channels, KERNEL, stride=2, padding=1)
        self.layers = nn.Sequential(*map(PatchLayer, widths, widths[1:], strides))
        self.conv_out = nn.Conv2d(widths[-1], 1, KERNEL, padding=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Convolution weights N(0, 0.02), as the released discriminator begins."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_out(self.layers(F.leaky_relu(self.conv_in(images), SLOPE)))
