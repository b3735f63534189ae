"""Imports of the released repository, seen to: stand-ins for what no longer imports, and ours in place of its own
sampling. Nothing in the checkout is changed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from hqtvae_fast.compat.stand_ins import ROOTS, StandIn
from hqtvae_fast.compat.whole import accelerate, replace_functions
from hqtvae_fast.progress import say

PACKAGE = "hqvae"
"""Of the released repository."""


class Finder(MetaPathFinder):
    """First in ``sys.meta_path``. ``after``: what is done to a module once it has run, by its name."""

    def __init__(self, after: dict[str, Callable[[ModuleType], None]]) -> None:
        self.after = after
        self.standing: set[str] = set()
        """Roots that a stand-in stands for."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        root = name.partition(".")[0]
        if root in self.standing:
            return ModuleSpec(name, _StandInLoader(), is_package=True)
        if name not in ROOTS and name not in self.after:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None and name in ROOTS:
            self.standing.add(name)
            return ModuleSpec(name, _StandInLoader(), is_package=True)
        if spec is not None and spec.loader is not None:
            spec.loader = _Fallback(spec.loader, self) if name in ROOTS else _Then(spec.loader, self.after[name])
        return spec


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Around(Loader):
    """Another loader, with something more done."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)


class _Then(_Around):
    def __init__(self, loader: Loader, after: Callable[[ModuleType], None]) -> None:
        super().__init__(loader)
        self.after = after

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.after(module)


class _Fallback(_Around):
    """The package itself, or its stand-in where it fails."""

    def __init__(self, loader: Loader, finder: Finder) -> None:
        super().__init__(loader)
        self.finder = finder

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        try:
            self.loader.exec_module(module)
        except Exception as error:
            for other in [other for other in sys.modules if other.startswith(f"{name}.")]:
                del sys.modules[other]
            self.finder.standing.add(name)
            sys.modules[name] = stand_in = StandIn(name)  # which the import then returns
            stand_in.__spec__ = module.__spec__
            say(f"hqtvae_fast: {name} fails ({type(error).__name__}: {error}): {ROOTS[name]} in its place")


# ------------------------------------------------------------------------------------------------------- what is done


def install(dtype: Any = None, *, accelerated: bool = True) -> Finder:
    """See to the imports that follow; ``dtype``: of :func:`accelerate`."""
    ours: dict[str, Callable[[ModuleType], None]] = {
        f"{PACKAGE}.utils.sampling": replace_functions,
        f"{PACKAGE}.models": partial(_accelerate_instances, dtype),
    }
    finder = Finder(ours if accelerated else {})
    sys.meta_path.insert(0, finder)
    dataclasses.dataclass = _dataclass
    return finder


def _accelerate_instances(dtype: Any, module: ModuleType) -> None:
    """Each model is accelerated once it is built."""
    model = module.ImageGPT2
    build = model.__init__

    @wraps(build)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        try:
            accelerate(self, dtype=dtype)
        except ValueError as error:
            say(f"hqtvae_fast: stage 2 of {type(self).__name__} runs as it is: {error}")
            accelerate(self.stage1, dtype=dtype)

    model.__init__ = __init__


_ordinary_dataclass = dataclasses.dataclass


@wraps(_ordinary_dataclass)
def _dataclass(cls: Any = None, /, **options: Any) -> Any:
    """As before Python 3.11: a default that is an instance of another dataclass is no error; each object has its own
    copy."""
    if cls is None:
        return partial(_dataclass, **options)
    for name, value in list(vars(cls).items()):
        if dataclasses.is_dataclass(value) and type(value).__hash__ is None:
            setattr(cls, name, dataclasses.field(default_factory=partial(deepcopy, value)))
    return _ordinary_dataclass(cls, **options)
