"""Networks that turn pictures into features, by name or by local file. Nothing is downloaded.

| name | features | |
|---|---|---|
| ``inception:FILE`` | 2,048, Inception v3 | FID's, if FILE is the shared ``pt_inception-2015-12-05-6726825d.pth`` |
| ``clip:DIR`` | CLIP's picture embedding | DIR in Hugging Face's format; also gives the CLIP-score |
| ``efficientnet-lite0`` | 1,280 | from a package of the ``eval`` extra; its distances are not FID |
| ``FILE.pt2``, ``FILE.pt`` | any | saved by torch.export or as TorchScript: uint8 [B, 3, R, R] -> [B, d] |
| ``package.module:factory`` | any | ``factory()`` gives such a module |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hqtvae_fast.evaluate.extractors.clip import load_clip
from hqtvae_fast.evaluate.extractors.efficientnet import NAME as EFFICIENTNET
from hqtvae_fast.evaluate.extractors.efficientnet import EfficientNetFeatures, load_efficientnet
from hqtvae_fast.evaluate.extractors.inception import FID_WEIGHTS, load_inception
from hqtvae_fast.evaluate.extractors.modules import SAVED, load_module, name_module
from hqtvae_fast.evaluate.extractors.weights import file_hash

EXPECTED = f"inception:FILE, clip:DIR, {EFFICIENTNET}, a saved module (.pt2, .pt), or package.module:factory"


@dataclass(frozen=True)
class Extractor:
    """``module``: uint8 [B, 3, R, R] to [B, d]. ``name``: which network with which weights; features of two names must
    not be compared. ``is_fid``: whether the Fréchet distance on these features is what is called FID. ``classifier``:
    features to logits [B, C], where the network has them."""

    module: nn.Module
    name: str
    device: torch.device
    is_fid: bool = False
    classifier: nn.Module | None = None

    @property
    def distance_name(self) -> str:
        """What to call the Fréchet distance, so that nobody takes it for FID where it is not."""
        return "FID" if self.is_fid else f"Fréchet distance, {self.name}"

    @property
    def kernel_name(self) -> str:
        """Likewise of the kernel distance."""
        return "KID" if self.is_fid else f"kernel distance, {self.name}"

    @property
    def score_name(self) -> str:
        """Likewise of the score of classes."""
        return "Inception Score" if self.is_fid else f"class score, {self.name}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, d], float32 on the extractor's device, of uint8 [B, 3, R, R]."""
        if images.dtype is not torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 [B, 3, R, R]; got {images.dtype} {list(images.shape)}")
        features: Tensor = self.module(images.to(self.device))
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"{self.name}: expected features [{len(images)}, d]; got {list(features.shape)}")
        return features.float()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """What these features are of, [B, C], where there is a classifier."""
        if self.classifier is None:
            raise ValueError(f"{self.name}: expected a network with a classifier; it gives features alone")
        return self.classifier(features)


def open_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """By its name in this module's table. ValueError naming what was expected and what came."""
    kind, _, rest = spec.partition(":")
    device = torch.device(device)
    module: nn.Module
    classifier: nn.Module | None = None
    if spec == EFFICIENTNET:
        network = load_efficientnet()
        module, name, is_fid, classifier = EfficientNetFeatures(network), EFFICIENTNET, False, network._fc
    elif kind == "inception" and rest:
        digest = file_hash(Path(rest))
        is_fid = digest.startswith(FID_WEIGHTS)
        inception = load_inception(Path(rest))
        module, name, classifier = inception, f"inception-v3 {digest[:8]}", inception.fc
    elif kind == "clip" and rest:
        module, name, is_fid = load_clip(Path(rest)).pictures, f"clip {Path(rest).name}", False
    elif kind and (rest or spec.endswith(SAVED)):
        module, name, is_fid = load_module(spec, device), name_module(spec), False
    else:
        raise ValueError(f"features: expected {EXPECTED}; got {spec!r}")
    return Extractor(module.to(device), name, device, is_fid, None if classifier is None else classifier.to(device))
