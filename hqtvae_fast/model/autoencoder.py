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
from hqtvae_fast.model.plain import plain
from hqtvae_fast.modes import is_traced
from hqtvae_fast.ops.kernels.add_maps import add_maps
from hqtvae_fast.ops.kernels.conv3x3 import INT8, WINOGRAD, Int8Conv, way
from hqtvae_fast.ops.kernels.conv_bytes import conv_bytes
from hqtvae_fast.ops.kernels.conv_bytes.reference import to_bytes
from hqtvae_fast.ops.kernels.group_norm_silu import add_group_norm_silu, group_norm_silu
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, upsample_conv
from hqtvae_fast.ops.kernels.winograd_conv import transform_weights, winograd_conv
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

    def take(self) -> tuple[Tensor, Tensor | None]:
        assert self._maps is not None, "expected a trunk whose maps are still there"
        maps, self._maps = self._maps, None
        return maps

    def sum(self) -> Tensor:
        x, branch = self.take()
        if branch is None:
            return x if self.shift is None else x.add_(self.shift[:, None, None])
        return x + branch if self.shift is None else add_maps(x, branch, self.shift)


def normalise(norm: nn.GroupNorm, trunk: Trunk, *, silu: bool) -> tuple[Tensor, Tensor]:
    """The trunk's sum (of a map and a bias alone: the map), and the norm of it, with x*sigmoid(x) after it or not."""
    if not plain(norm, nn.GroupNorm):
        x = trunk.sum()
        return x, F.silu(norm(x)) if silu else norm(x)
    rest = (norm.weight, norm.bias, GROUPS, GROUP_NORM_EPS)
    x, branch = trunk.take()
    if branch is None:
        return x, group_norm_silu(x, *rest, silu=silu, shift=trunk.shift)
    return add_group_norm_silu(x, branch, *rest, silu=silu, shift=trunk.shift)


class Conv(nn.Conv2d):
    """A convolution that may leave its bias to who reads its output."""

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        return super().forward(x) if with_bias else self._conv_forward(x, self.weight, None)


class Remade(nn.Module):
    """A convolution of a CPU for inference, by other weights that are made of its own when they are first needed and
    never saved: four times as many for a kernel with a quarter of the multiplications, in fp32; or 8-bit ones, where
    :func:`hqtvae_fast.model.calibration.calibrate` has set ``span`` and a plan says so."""

    span: Tensor | None = None
    """The least and the largest number of its input that 8 bits keep, fp32 [2] on the CPU."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._transformed: Made[Tensor] = Made()
        self._int8: Made[Int8Conv] = Made()

    def remade(self, x: Tensor, weight: Tensor, bias: Tensor, *, doubled: bool = False) -> Tensor | None:
        """The convolution; None where it is to be the plain one."""
        chosen, span = way(x, weight, bias, self.span, doubled=doubled), self.span
        if chosen == WINOGRAD:
            transformed = self._transformed.of(lambda: transform_weights(weight), weight)
            return winograd_conv(x, transformed, bias, doubled=doubled)
        if chosen == INT8 and span is not None:
            return self._int8.of(lambda: Int8Conv(weight, bias, doubled, span), weight, bias, span)(x)
        return None

    def drop(self) -> None:
        self._transformed.drop()
        self._int8.drop()

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self.drop()  # to another device or dtype
        return super()._apply(*arguments, **options)

    def train(self, mode: bool = True) -> Any:
        if mode:  # the weights are about to change, and with them what later layers read
            self.drop()
            self.span = None
        return super().train(mode)


class Conv3x3(Remade, Conv):
    """3x3 convolution, padded by 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        weight = self._parameters.get("weight")  # None: a parametrization's, computed anew each time
        if with_bias and weight is not None and self.bias is not None:
            y = self.remade(x, weight, self.bias)
            if y is not None:
                return y
        return super().forward(x, with_bias=with_bias)


def adds_bias_later(x: Tensor) -> bool:
    """Whether convolutions of ``x`` leave their bias to the next norm: in inference on a GPU, where torch would add it
    in a pass over memory of its own, since cuDNN's convolution takes none. (On a CPU it is added before outputs are
    written.) Where a sum is wanted and no norm, the later pass costs what the earlier would have."""
    return x.is_cuda and not torch.is_grad_enabled()


def convolve(conv: Conv, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution of ``x``, and the bias that is yet to be added to it."""
    if adds_bias_later(x) and plain(conv, Conv, Conv3x3):
        return conv(x, with_bias=False), conv.bias
    return conv(x), None


class NormSwish(nn.Module):
    """GroupNorm(32), then x*sigmoid(x), of a trunk's sum; the sum is returned first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=GROUP_NORM_EPS)

    def forward(self, trunk: Trunk) -> tuple[Tensor, Tensor]:
        return normalise(self.norm, trunk, silu=True)


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
        x, y = self.norm1(trunk)
        first, shift = convolve(self.conv1, y)
        hidden = Trunk(first, shift=shift)
        del y, first  # so that three maps are alive at once, not four
        branch, shift = convolve(self.conv2, self.dropout(self.norm2(hidden)[1]))
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
            trunk = layer(trunk) if isinstance(layer, (ResBlock, AttnBlock)) else Trunk(layer(trunk.sum()))
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
