"""How our functions become operators of torch, without loading its compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hqtvae_fast.backend import Backend

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

NAMESPACE = "hqtvae_fast"
operators = torch.library.Library(NAMESPACE, "FRAGMENT")
"""Where they are defined. A sampling step's own kernels (``native.py`` of an op) are, by hand: without what autograd
asks of an operator a call is 3 microseconds shorter, and a step makes a hundred."""


def operator(name: str, *, mutates_args: Iterable[str]) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """As ``torch.library.custom_op("hqtvae_fast::name", mutates_args=...)`` on every device, except that the function
    itself is the kernel.

    ``custom_op`` puts two more around it: one that keeps torch.compile out, for which the first call imports
    torch._dynamo and sympy (1.6 s of CPU), and one that looks at every call for results that are its inputs (opcheck
    does, in the tests). Named no devices it registers none of the three, and all else: the schema, the fake, the error
    of a gradient that there is none of, and new versions of what is changed in place.
    """

    def define(kernel: Callable[..., Any]) -> CustomOpDef:
        definition = torch.library.custom_op(f"{NAMESPACE}::{name}", kernel, mutates_args=mutates_args, device_types=())
        operators.impl(name, kernel, "CompositeExplicitAutograd")
        return definition

    return define


def dispatched(
    name: str, backends: Sequence[Backend], *, mutates_args: Iterable[str]
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """An :func:`operator` whose last argument names which of ``backends`` computes it from the others.

    The function declares it: its signature gives the schema, and it is the fake, which returns tensors of the results'
    shapes, dtypes and layout. The backend is chosen outside: a fake has no device to choose by.
    """
    run = {backend.name: backend.run for backend in backends}

    def kernel(*inputs: Any) -> Any:
        return run[inputs[-1]](*inputs[:-1])

    def declare(fake: Callable[..., Any]) -> CustomOpDef:
        definition = torch.library.custom_op(f"{NAMESPACE}::{name}", fake, mutates_args=mutates_args, device_types=())
        definition.register_fake(fake)
        operators.impl(name, kernel, "CompositeExplicitAutograd")
        return definition

    return declare
