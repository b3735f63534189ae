"""What is computed from weights once and kept: packed, folded, rounded, transformed, tabled.

Each such thing is a :class:`Made`. It is right as long as the tensors that it was made of are the same ones, in the
same memory, and have not been written since. Their versions tell that: torch counts an optimizer's writes, ``copy_``,
``load_state_dict``, whatever is done to the tensor itself. What is done to ``weight.data`` it does not count, nor, up
to 2.13, the step of an optimizer with ``fused=True``: after these, :meth:`Made.doubt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hqtvae_fast.modes import no_autocast

T = TypeVar("T")
Mark = tuple[int, int, int, torch.dtype, torch.Size]


def mark(tensor: Tensor) -> Mark:
    """Differs where the tensor is another one, has moved or has been written."""
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version, tensor.dtype, tensor.shape


class Made(Generic[T]):
    """One value, made when it is first wanted and again when its sources have changed.

    Made again, its tensors keep their memory if shapes, dtypes and device are the same, so that a captured graph which
    reads them goes on being right. Copies and pickles begin without a value and make the same again.
    """

    def __init__(self) -> None:
        self.value: T | None = None
        self._sources: tuple[Tensor, ...] = ()  # held, so that no other tensor can have the name of one of them
        self._marks: tuple[Mark, ...] | None = None
        self._make: Callable[[], T] | None = None

    def __reduce__(self) -> tuple[type[Made[T]], tuple[()]]:
        return Made, ()

    def is_right(self, *sources: Tensor) -> bool:
        return self._marks == tuple(map(mark, sources))

    def of(self, make: Callable[[], T], *sources: Tensor, lasting: bool = False) -> T:
        """The value: what ``make`` gives for ``sources`` as they are. ``lasting``: keep ``make`` for :meth:`again`;
        it should hold no module, which would then hold itself."""
        if not self.is_right(*sources):
            with torch.inference_mode(False), torch.no_grad(), no_autocast():
                self.value = _into(self.value, make())
            self._sources, self._marks = sources, tuple(map(mark, sources))
            self._make = make if lasting else None
        return self.value  # type: ignore[return-value]

    def again(self) -> None:
        """Make it again, if there is one, where its sources have been written since."""
        if self._make is not None and not self.is_right(*self._sources):
            self.of(self._make, *self._sources, lasting=True)

    def unwritten(self, source: Tensor | None) -> bool:
        """Whether the one source is still this tensor at this version: a look that costs next to nothing."""
        if self._marks is None or not self._sources or source is not self._sources[0]:
            return False
        return source.is_inference() or source._version == self._marks[0][2]

    def doubt(self) -> None:
        """Make it again when it is next wanted, whatever versions say."""
        self._marks = None

    def drop(self) -> None:
        """Give up its memory."""
        self.value, self._sources, self._marks, self._make = None, (), None, None


def _into(old: Any, new: Any) -> Any:
    """``new``, in the memory of ``old`` where it fits: of tensors, and of tuples, dicts and dataclasses of them."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        kind = (old.shape, old.stride(), old.dtype, old.device)
        return old.copy_(new) if kind == (new.shape, new.stride(), new.dtype, new.device) else new
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return tuple(map(_into, old, new))
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return {key: _into(old[key], new[key]) for key in new}
    if is_dataclass(new) and type(old) is type(new):
        build: Any = type(old)
        return build(*(_into(getattr(old, field.name), getattr(new, field.name)) for field in fields(new)))
    return new


def tree(root: nn.Module) -> Iterator[nn.Module]:
    """``root`` and all modules inside, in a fixed order, as ``root.modules()`` in a fraction of its time."""
    stack: list[nn.Module | None] = [root]
    while stack:
        module = stack.pop()
        if module is not None:
            yield module
            stack.extend(module.__dict__["_modules"].values())


def weights_of(root: nn.Module) -> list[Tensor]:
    """All parameters and buffers, in a fixed order."""
    owned = (module.__dict__[kind] for module in tree(root) for kind in ("_parameters", "_buffers"))
    return [tensor for tensors in owned for tensor in tensors.values() if tensor is not None]
