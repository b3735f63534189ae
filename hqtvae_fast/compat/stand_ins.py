"""Modules that stand for packages which a released script imports and does not need to sample.

They are given where the package is not installed, or fails when it is imported. What is used of one beyond an import,
a base class or an argument raises ImportError, and says what is missing.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

ROOTS = {
    "pytorch_lightning": "an nn.Module without a trainer",
    "torchvision": "names alone: transforms that are not applied, data sets' base",
    "ftfy": "names alone, for a tokenizer that is not used",
    "regex": "names alone, for a tokenizer that is not used",
}
"""What is stood for, by what."""


class Absent:
    """An object of a package that is not there: it can be made and inherited from, and no more."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise self._error()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error()

    def _error(self) -> ImportError:
        kind = type(self)
        root = kind.__module__.partition(".")[0]
        return ImportError(
            f"{kind.__module__}.{kind.__name__} is used: install {root}, of which only a stand-in is here"
        )


class StandIn(ModuleType):
    """A package that is not there: every name in it is a class of :class:`Absent`, but for those that are known."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # any module may be imported from it
        self.__dict__.update(_KNOWN.get(name, {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = type(name, (Absent,), {"__module__": self.__name__})
        setattr(self, name, found)
        return found


class LightningModule(nn.Module):
    """A module, with what is called outside of training."""

    def log(self, *arguments: Any, **options: Any) -> None:
        pass

    def save_hyperparameters(self, *arguments: Any, **options: Any) -> None:
        pass

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class VisionDataset:
    """A data set's base, which holds what it was given."""

    def __init__(self, root: Any, transforms: Any = None, transform: Any = None, target_transform: Any = None) -> None:
        self.root, self.transforms = root, transforms
        self.transform, self.target_transform = transform, target_transform


_KNOWN: dict[str, dict[str, Any]] = {
    "pytorch_lightning": {
        "LightningModule": LightningModule,
        "LightningDataModule": type("LightningDataModule", (), {}),
    },
    "torchvision.datasets": {"VisionDataset": VisionDataset},
}
