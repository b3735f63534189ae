"""VQGAN's convolutional encoder and decoder, as HQ-VAE uses them.

Feature maps are [B, C, H, W] in channels-last memory (NHWC): that is what GPU tensor-core and oneDNN convolutions
read without a transposition, and it makes the attention's [B, H*W, C] a view.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.config import GROUPS, VAEConfig
from hqtvae_fast.model.attention import attention
from hqtvae_fast.model.convolution import Conv, Conv3x3, Remade
from hqtvae_fast.model.plain import plain
from hqtvae_fast.modes import is_traced
from hqtvae_fast.ops.kernels.add_maps import add_maps
from hqtvae_fast.ops.kernels.conv_bytes import conv_bytes
from hqtvae_fast.ops.kernels.conv_bytes.reference import to_bytes
from hqtvae_fast.ops.kernels.group_norm_silu import add_group_norm_silu, group_norm_silu
from hqtvae_fast.ops.kernels.round_map import Rounding
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, upsample_conv
from hqtvae_fast.ops.made import Made

GROUP_NORM_EPS = 1e-6
IMAGE_CHANNELS = 3


class Trunk:
    """A map, and what is yet to be added to it, which the next norm does while it reads the maps anyway: what the last
    block adds, and a bias [C]. (A bias alone: of a map that nothing but that norm reads.)

    Who takes the maps has them alone: callers keep the trunk, not its maps, which are the decoder's memory.
    """

    def __init__(self, x: Tensor, branch: Tensor | None = None, shift: Tensor | None = None) -> None:
        self._maps: tuple[Tensor, Tensor | None] | None = (x, branch)
        self.shape = x.shape
        self.shift = shift

    @property
    def like(self) -> Tensor:
        """The first map, to be looked at and not kept."""
        assert self._maps is not None, "expected a trunk whose maps are still there"
        return self._maps[0]

    def take(self) -> tuple[Tensor, Tensor | None]:
        assert self._maps is not None, "expected a trunk whose maps are still there"
        maps, self._maps = self._maps, None
        return maps

    def sum(self) -> Tensor:
        x, branch = self.take()
        if branch is None:
            return x if self.shift is None else x.add_(self.shift[:, None, None])
        return x + branch if self.shift is None else add_maps(x, branch, self.shift)


def normalise(
    norm: nn.GroupNorm, trunk: Trunk, *, silu: bool, rounding: Rounding | None = None
) -> tuple[Tensor, Tensor]:
    """The trunk's sum (of a map and a bias alone: the map), and the norm of it, with x*sigmoid(x) after it or not, in
    8 bits by ``rounding`` or not. (Of a norm that is another module than was built: never.)"""
    if not plain(norm, nn.GroupNorm):
        x = trunk.sum()
        return x, F.silu(norm(x)) if silu else norm(x)
    rest = (norm.weight, norm.bias, GROUPS, GROUP_NORM_EPS)
    how: dict[str, Any] = {"silu": silu, "shift": trunk.shift, "rounding": rounding}
    x, branch = trunk.take()
    if branch is None:
        return x, group_norm_silu(x, *rest, **how)
    return add_group_norm_silu(x, branch, *rest, **how)


def adds_bias_later(x: Tensor) -> bool:
    """Whether convolutions of ``x`` leave their bias to the next norm: in inference on a GPU, where torch would add it
    in a pass over memory of its own, since cuDNN's convolution takes none. (On a CPU it is added before outputs are
    written.) Where a sum is wanted and no norm, the later pass costs what the earlier would have."""
    return x.is_cuda and not torch.is_grad_enabled()


def convolve(conv: Conv, x: Tensor, eight: Any = None) -> tuple[Tensor, Tensor | None]:
    """The convolution of ``x``, and the bias that is yet to be added to it; in 8 bits none."""
    if eight is not None:
        return eight(x), None
    if adds_bias_later(x) and plain(conv, Conv, Conv3x3):
        return conv(x, with_bias=False), conv.bias
    return conv(x), None


class NormSwish(nn.Module):
    """GroupNorm(32), then x*sigmoid(x), of a trunk's sum; the sum is returned first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=GROUP_NORM_EPS)

    def forward(self, trunk: Trunk, rounding: Rounding | None = None) -> tuple[Tensor, Tensor]:
        """``rounding``: in 8 bits, for a convolution that is computed in them."""
        return normalise(self.norm, trunk, silu=True, rounding=rounding)


def eight_bits(conv: nn.Module, norm: nn.Module, trunk: Trunk) -> Any:
    """What computes ``conv`` of the norm of a trunk in 8 bits, which that norm can write; None where it is not to."""
    if plain(norm, NormSwish) and isinstance(conv, Conv3x3) and plain(conv, Conv3x3):
        return conv.in_eight_bits(trunk.like)
    return None


def normed(norm: nn.Module, trunk: Trunk, eight: Any) -> tuple[Tensor, Tensor]:
    return norm(trunk) if eight is None else norm(trunk, eight.rounding)


class ResBlock(nn.Module):
    """(GroupNorm, swish, 3x3 convolution) twice, plus the input, through a 1x1 convolution where channels change."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = NormSwish(in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = NormSwish(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut: Any = nn.Identity() if same else Conv(in_channels, out_channels, 1)

    def forward(self, trunk: Trunk) -> Trunk:
        eight = eight_bits(self.conv1, self.norm1, trunk)
        x, y = normed(self.norm1, trunk, eight)
        first, shift = convolve(self.conv1, y, eight)
        hidden = Trunk(first, shift=shift)
        del y, first  # so that three maps are alive at once, not four
        eight = eight_bits(self.conv2, self.norm2, hidden)
        branch, shift = convolve(self.conv2, self.dropout(normed(self.norm2, hidden, eight)[1]), eight)
        if not isinstance(self.shortcut, nn.Identity):
            x, other = convolve(self.shortcut, x)
            shift = other if shift is None or other is None else shift + other
        return Trunk(x, branch, shift)


class AttnBlock(nn.Module):
    """GroupNorm, single-head attention over all positions with scale C^-1/2, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=GROUP_NORM_EPS)
        self.qkv = nn.Linear(channels, 3 * channels)  # 1x1 convolutions, rows q, then k, then v
        self.out = nn.Linear(channels, channels)

    def forward(self, trunk: Trunk) -> Trunk:
        x, y = normalise(self.norm, trunk, silu=False)
        B, C, H, W = x.shape
        tokens_BSC = y.permute(0, 2, 3, 1).reshape(B, H * W, C)
        q, k, v = self.qkv(tokens_BSC).unsqueeze(1).chunk(3, dim=-1)
        y_BSC = self.out(attention(q, k, v).squeeze(1))
        return Trunk(x, y_BSC.view(B, H, W, C).permute(0, 3, 1, 2))


class Blocks(nn.Sequential):
    """Layers in a row: blocks hand on what they add, resampling takes sums."""

    def forward(self, trunk: Trunk) -> Trunk:
        for layer in self:
            if isinstance(layer, (ResBlock, AttnBlock)):
                trunk = layer(trunk)
            elif isinstance(layer, Upsample) and plain(layer, Upsample):
                trunk = Trunk(layer.of(trunk))
            else:
                trunk = Trunk(layer(trunk.sum()))
        return trunk


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(Remade):
    """Nearest-neighbour doubling, then a 3x3 convolution.

    A 3x3 window of the doubled map holds only 2x2 different pixels of the small one, in one of four arrangements: one
    for each parity of the output's row and column. :meth:`fold` sums the weights that fall on the same pixel, after
    which inference runs 2x2 convolutions with four times the channels on the small map and interleaves their results:
    4/9 of the arithmetic.
    """

    folds = False
    """Whether to run like that in inference; set by :meth:`fold`, and copied with the layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self._folded: Made[Tensor] = Made()

    def fold(self) -> None:
        """Run on folded weights, which are made when they are first needed."""
        self.folds = True

    @property
    def folded(self) -> Tensor | None:
        """The weights as they are, folded: summed in fp32 at least and rounded once. None in training, where
        :meth:`fold` was not called, and where the convolution is another module than was built."""
        if not self.folds or self.training or is_traced() or not plain(self.conv, nn.Conv2d):
            return None
        return self._folded.of(lambda: _fold(self.conv.weight), self.conv.weight)

    def drop(self) -> None:
        super().drop()
        self._folded.drop()

    def of(self, trunk: Trunk) -> Tensor:
        """:meth:`forward` of a trunk's sum, which in 8 bits is added while it is rounded."""
        folded = None if torch.is_grad_enabled() or self.span is None else self.folded
        eight = None
        if folded is not None and self.conv.bias is not None:
            eight = self.eight_bits(trunk.like, folded, self.conv.bias, doubled=True)
        if eight is None:
            return self(trunk.sum())
        return eight.multiply(eight.round(*trunk.take(), trunk.shift))

    def forward(self, x: Tensor) -> Tensor:
        folded = None if torch.is_grad_enabled() else self.folded
        if folded is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        assert self.conv.bias is not None
        y = self.remade(x, folded, self.conv.bias, doubled=True)
        return upsample_conv(x, folded, self.conv.bias, self.conv.weight) if y is None else y


def _fold(weight: Tensor) -> Tensor:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return fold_upsampling(wide).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _middle(channels: int, config: VAEConfig) -> Blocks:
    if not config.mid_block:
        return Blocks()
    return Blocks(
        ResBlock(channels, channels, config.dropout),
        AttnBlock(channels) if config.attention else nn.Identity(),
        ResBlock(channels, channels, config.dropout),
    )


def _level(blocks: int, in_channels: int, out_channels: int, attention: bool, config: VAEConfig) -> Blocks:
    """Residual blocks, each followed by attention where the level has it."""
    layers: list[nn.Module] = []
    for index in range(blocks):
        layers.append(ResBlock(in_channels if index == 0 else out_channels, out_channels, config.dropout))
        if attention:
            layers.append(AttnBlock(out_channels))
    return Blocks(*layers)


class Encoder(nn.Module):
    """Images [B, 3, R, R] to features [B, latent_channels, R/f, R/f].

    Attention goes to the levels whose *nominal* side is in ``attention_resolutions``. The nominal side starts at R:
    the initial stride-2 convolution does not halve it, so with R = 256, multipliers (1, 2, 4, 4) and attention at 16
    the encoder has attention in its middle alone. (The decoder counts from the true latent side.)
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        kernel, stride = (4, 2) if config.init_downsample else (3, 1)
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config.channels, kernel, stride=stride, padding=1)
        self.down = nn.ModuleList()
        for level, (before, width) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            attention = config.attention and config.resolution // 2**level in config.attention_resolutions
            layers = _level(config.num_res_blocks, before, width, attention, config)
            if level < len(widths) - 1:
                layers.append(Downsample(width))
            self.down.append(layers)
        self.middle = _middle(widths[-1], config)
        self.norm_out = NormSwish(widths[-1])
        self.conv_out = Conv3x3(widths[-1], config.latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        trunk = Trunk(self.conv_in(images.contiguous(memory_format=torch.channels_last)))
        for level in self.down:
            trunk = level(trunk)
        return self.conv_out(self.norm_out(self.middle(trunk))[1])


class Decoder(nn.Module):
    """Features [B, latent_channels, R/f, R/f] to images [B, 3, R, R]: the encoder's mirror, a block more a level."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = Conv3x3(config.latent_channels, widths[-1])
        self.middle = _middle(widths[-1], config)
        self.up = nn.ModuleList()  # in the order of running: smallest map first
        side, before = config.resolution // config.downsampling, widths[-1]
        for level in reversed(range(len(widths))):
            attention = config.attention and side in config.attention_resolutions
            layers = _level(config.num_res_blocks + 1, before, widths[level], attention, config)
            before = widths[level]
            if level > 0 or config.init_downsample:
                layers.append(Upsample(before))
                side *= 2
            self.up.append(layers)
        self.norm_out = NormSwish(before)
        self.conv_out = nn.Conv2d(before, IMAGE_CHANNELS, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weight at which stage-1 training compares gradient norms."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self._last_map(z))

    def to_bytes(self, z: Tensor) -> Tensor:
        """The images as bytes, uint8 [B, R, R, 3]: [-1, 1] to the nearest of 0 to 255. For inference."""
        x = self._last_map(z)
        if not plain(self.conv_out, nn.Conv2d):
            return to_bytes(self.conv_out(x))
        assert self.conv_out.bias is not None
        return conv_bytes(x, self.conv_out.weight, self.conv_out.bias)

    def _last_map(self, z: Tensor) -> Tensor:
        """What the last convolution reads: [B, C, R, R]."""
        trunk = self.middle(Trunk(self.conv_in(z.contiguous(memory_format=torch.channels_last))))
        for level in self.up:
            trunk = level(trunk)
        return self.norm_out(trunk)[1]
