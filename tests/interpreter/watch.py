"""Watches what interpreted kernels do with memory: the interpreter runs programs one by one and follows any pointer, so
that it forgives what a GPU would not. :func:`install` makes each of these an error:

- a load or store beyond the tensors of the launch (a view's own places, not all of its memory);
- arithmetic of signed integers that does not fit: an offset of a large tensor kept in 32 bits;
- a place that two programs store differently, or that one stores and another loads or adds to: which is first, nobody
  knows. A program that has made an atomic operation with acquire semantics may do both from there on;
- a load of what the same program stored since its last barrier: other threads may have stored it.

With :func:`last_programs` only the first and last programs of a grid are run, and nothing is copied: large tensors can
be memory that was never touched (:func:`untouched`).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import math
import mmap
from typing import Any

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor
from triton.language.semantic import TritonSemantic

NOBODY, SEVERAL = -1, -2
_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name from 3.11 on


class Place:
    """A launch's tensor, and for each of its bytes the number of the program that stored, loaded or added there."""

    def __init__(self, tensor: Tensor, tracked: bool) -> None:
        span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.start, self.bytes = tensor.data_ptr(), span * tensor.element_size()
        count = self.bytes if tracked else 0
        self.stored, self.loaded, self.added, self.since = (np.full(count, NOBODY, np.int64) for _ in range(4))


class Watch:
    def __init__(self) -> None:
        self.places: list[Place] = []
        self.program = self.barriers = 0
        self.acquired = False
        self.tracked = True

    def launch(self, tensors: list[Tensor]) -> None:
        unique = {(x.data_ptr(), x.shape, x.stride()): x for x in tensors if x.numel()}
        self.places = [Place(x, self.tracked) for x in unique.values()]
        self.program = -1

    def begin(self) -> None:
        self.program, self.acquired = self.program + 1, False
        self.barriers += 1

    def check(self, what: str, pointers: Any, mask: Any, value: Any = None) -> None:
        """``what``: "load", "store" or "add"."""
        addresses = pointers.data.reshape(-1)
        chosen = np.broadcast_to(mask.data, pointers.data.shape).reshape(-1).astype(bool)
        values = None if value is None else np.broadcast_to(value.data, pointers.data.shape).reshape(-1)[chosen]
        addresses, size = addresses[chosen].astype(np.int64), pointers.get_element_ty().primitive_bitwidth // 8 or 1
        inside = np.zeros(addresses.shape, bool)
        for place in self.places:
            own = (addresses >= place.start) & (addresses + size <= place.start + place.bytes)
            inside |= own
            if self.tracked and own.any():
                self._track(what, place, addresses[own] - place.start, None if values is None else values[own])
        assert inside.all(), f"{what}: {int((~inside).sum())} of {inside.size} places are in none of the tensors"

    def _track(self, what: str, place: Place, at: np.ndarray, values: np.ndarray | None) -> None:
        me = self.program
        if what == "load":
            mine = (place.stored[at] == me) & (place.since[at] == self.barriers)
            assert not mine.any(), "load: stored by the same program since its last barrier"
            assert self.acquired or self._alone(place.stored, at), "load: stored by another program"
            place.loaded[at] = np.where((place.loaded[at] == NOBODY) | (place.loaded[at] == me), me, SEVERAL)
            return
        other = place.added if what == "store" else place.stored
        assert self.acquired or self._alone(other, at), f"{what}: stored or added to by another program"
        if what == "add":
            place.added[at] = np.where((place.added[at] == NOBODY) | (place.added[at] == me), me, SEVERAL)
            return
        if not self.acquired and not (self._alone(place.stored, at) and self._alone(place.loaded, at)):
            assert values is not None
            there = torch.frombuffer(_bytes(place), dtype=torch.uint8).numpy()
            same = all(there[i : i + values.itemsize].tobytes() == v.tobytes() for i, v in zip(at, values, strict=True))
            assert same, "store: stored or loaded by another program"
        place.stored[at], place.since[at] = me, self.barriers

    def _alone(self, who: np.ndarray, at: np.ndarray) -> bool:
        return bool(((who[at] == NOBODY) | (who[at] == self.program)).all())


def _bytes(place: Place) -> Any:
    return (ctypes.c_uint8 * place.bytes).from_address(place.start)


@functools.cache
def install() -> Watch:
    """From now on, in this process; once."""
    watch, builder = Watch(), interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, debug=True)  # what overflows is an assertion of the device's
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    barrier, begin, call = builder.create_barrier, builder.set_grid_idx, interpreter.GridExecutor.__call__
    acquiring = (interpreter._ir.MEM_SEMANTIC.ACQUIRE, interpreter._ir.MEM_SEMANTIC.ACQUIRE_RELEASE)

    def watched_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.check("load", pointers, mask)
        return load(pointers, _as_bool(mask), *rest)

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.check("store", pointers, mask, value)
        return store(pointers, value, _as_bool(mask), *rest)

    def watched_atomic(operation: Any, pointers: Any, value: Any, mask: Any, semantics: Any, scope: Any) -> Any:
        watch.check("add", pointers, mask)
        watch.acquired |= semantics in acquiring
        return atomic(operation, pointers, value, mask, semantics, scope)

    def watched_barrier() -> Any:
        watch.barriers += 1
        return barrier()

    def watched_begin(*index: int) -> None:
        watch.begin()
        begin(*index)

    def watched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch.launch([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])
        return call(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    builder.create_atomic_rmw, builder.create_barrier = watched_atomic, watched_barrier
    builder.set_grid_idx, interpreter.GridExecutor.__call__ = watched_begin, watched_call
    TritonSemantic.binary_op_sanitize_overflow_impl = _no_overflow
    _forgive_nan()
    _patch_once()
    return watch


def _no_overflow(self: Any, left: Any, right: Any, operation: Any) -> None:
    """What Triton's own does in a dozen of the language's operations, which took a third of the time."""
    kind = left.type.scalar
    if kind.is_int_unsigned() or kind.int_bitwidth >= 64:  # hashes are meant to wrap
        return
    name = operation.__name__
    exact = _EXACT[name](left.handle.data, right.handle.data, dtype=np.int64)
    least, most = kind.get_int_min_value(), kind.get_int_max_value()
    inside = least <= exact.min() and exact.max() <= most
    assert inside, f"int{kind.int_bitwidth} overflow detected for operation {name}"


def _as_bool(mask: Any) -> Any:
    """A scalar comparison spread over a block is bytes to Triton 3.9's interpreter, whose loads refuse such a mask."""
    return interpreter.TensorHandle(mask.data.astype(bool), mask.dtype)


def _forgive_nan() -> None:
    """The least of nothing but NaN is at the first place, as on a GPU: NumPy, which Triton 3.9's interpreter asks,
    finds it nowhere."""
    min_max = interpreter.ReduceOps.min_max
    places = {np.nanargmin: (np.argmin, np.inf), np.nanargmax: (np.argmax, -np.inf)}

    def forgiving(self: Any, input: Any, val_reduce_op: Any = None, idx_reduce_op: Any = None) -> Any:
        if idx_reduce_op in places:
            plain, last = places[idx_reduce_op]
            idx_reduce_op = lambda data, **where: plain(np.where(np.isnan(data), last, data), **where)  # noqa: E731
        return min_max(self, input, val_reduce_op, idx_reduce_op)

    interpreter.ReduceOps.min_max = forgiving


class _Kept:
    def restore(self) -> None:
        """The language stays as the interpreter has it."""


def _patch_once() -> None:
    """The language is patched once for each function, not at each call, which took a third of the time: nobody here
    wants it as it was before."""
    patch = functools.cache(interpreter._patch_lang)

    def patch_and_keep(function: Any) -> _Kept:
        patch(function)
        return _Kept()

    interpreter._patch_lang = patch_and_keep
    known = functools.cache(interpreter._get_np_dtype)  # which makes a table at each call
    interpreter._get_np_dtype = lambda kind: np.dtype(np.uint64) if kind.scalar.is_ptr() else known(kind.scalar)


# -------------------------------------------------------------------------------------------------------- large tensors


def last_programs() -> None:
    """From now on a launch runs only the programs at the corners of its grid and the last but one, and who did
    what is not kept: only where."""
    install().tracked = False
    executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
    init, call, set_dim, begin = executor.__init__, executor.__call__, builder.set_grid_dim, builder.set_grid_idx
    current: dict[str, tuple[int, ...]] = {}

    def one_program(self: Any, fn: Any, names: Any, grid: Any, *rest: Any) -> None:
        init(self, fn, names, (1,), *rest)
        self.whole = (*grid, *(1,) * (3 - len(grid)))

    def corners(self: Any, *args: Any, **kwargs: Any) -> None:
        # CUDA's limits; and Triton launches nothing where the product, an int, is not positive.
        assert max(self.whole[1:]) <= 65535, f"grid: {self.whole}"
        assert 0 < math.prod(self.whole) < 2**31, f"grid: {self.whole}"
        current["grid"] = self.whole
        first, *others = self.whole
        some = [{0, max(0, first - 2), first - 1}, *({0, size - 1} for size in others)]
        for current["index"] in itertools.product(*some):
            call(self, *args, **kwargs)

    executor.__init__, executor.__call__ = one_program, corners
    executor._restore_args_dev = lambda *args: None  # it copies whole tensors onto themselves
    builder.set_grid_dim = lambda *_: set_dim(*current["grid"])
    builder.set_grid_idx = lambda *_: begin(*current["index"])


def untouched(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written, more of them than the machine has."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def untouched_map(B: int, C: int, H: int, W: int, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] in channels-last memory."""
    return untouched(B, H, W, C, dtype=dtype).permute(0, 3, 1, 2)
