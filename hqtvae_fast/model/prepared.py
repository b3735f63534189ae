"""Models that are prepared for inference once, and stay right when their weights, or they themselves, are changed.

They compute with things made from their weights (:mod:`hqtvae_fast.ops.made`). Where a computation begins they look at
these, and what is no longer right is made again from the weights as they are. So numbers do not depend on whether,
when, or in which copy of a model something was made.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor, nn

from hqtvae_fast.model.plain import hooked
from hqtvae_fast.modes import is_traced, no_autocast
from hqtvae_fast.ops.made import Made, tree, weights_of

Own = TypeVar("Own", bound="Prepared")
ALTERED = "is another module than the model was built of, or has hooks"


class Prepared(nn.Module):
    """Base of such a model."""

    prepared = False
    """Set by :meth:`prepare`; copied with the model."""
    _built: tuple[type[nn.Module], ...] = ()

    def prepare(self: Own) -> Own:
        """Make for inference what it gains by, and again whenever that is no longer right. While the model is in
        training mode, nothing is."""
        self.prepared = True
        self.look()
        return self

    def look(self) -> list[Tensor]:
        """Make again what is no longer right. All tensors that were made, which captured graphs read. A look at preset
        S, where all is right, takes 0.15 ms on a CPU (189 modules, 66 weights)."""
        return [] if self.training or is_traced() else self._make()

    def _make(self) -> list[Tensor]:
        raise NotImplementedError

    def doubt(self) -> None:
        """Take nothing for right any more: after what no version tells of, see :mod:`hqtvae_fast.ops.made`."""
        for module in tree(self):
            for value in module.__dict__.values():
                if isinstance(value, Made):
                    value.doubt()

    def addresses(self) -> list[int]:
        """Where captured graphs find this model's tensors: others once one has moved or was replaced."""
        return [tensor.data_ptr() for tensor in (*self.look(), *weights_of(self))]

    def in_own_dtype(self) -> AbstractContextManager[None]:
        """Around a computation. Autocast is meant for training, and for models that were not prepared."""
        return no_autocast() if self.prepared and not self.training else nullcontext()

    def remember(self) -> None:
        """To be called once the model is built, for :meth:`altered`."""
        self._built = tuple(map(type, tree(self)))

    def altered(self) -> str | None:
        """The first module that the model was not built of, or that has hooks, by name; None if there is none. (What
        is done to the model itself is of its ``forward``, which no drawing and no decoding calls.)"""
        found = list(tree(self))
        if tuple(map(type, found)) == self._built and not any(map(hooked, found[1:])):
            return None
        built = dict(enumerate(self._built))
        for index, module in enumerate(found[1:], start=1):
            if type(module) is not built.get(index) or hooked(module):
                return next(name for name, other in self.named_modules() if other is module)
        return "a module that was taken out"
