"""The Triton kernels of a sampling step, interpreted on the CPU, against each op's definition.

What the interpreter cannot show is how a GPU multiplies (here products are exact fp32) and rounds.
"""

from __future__ import annotations

import pytest
import torch
from interpreted import Checks, file_outcomes, main, needs_triton
from torch.utils._python_dispatch import TorchDispatchMode

from hqtvae_fast.ops.spec import all_specs

CPU = torch.device("cpu")
OPS = ["sample_logits", "draw_from_head", "add_layer_norm", "bias_gelu", "local_attention", "decode_attention"]
OPS += ["embed_codes", "skinny_linear"]
WITH_VECTORS = ["add_layer_norm", "bias_gelu", "local_attention", "decode_attention", "skinny_linear"]


def run(spec, case):
    """By our kernel for such inputs: of the backends "triton" and "triton/int8"."""
    inputs = spec.make_inputs(case, CPU, 0)
    names = (each.name for each in spec.backends if each.base == "triton" and each.why_not(*inputs) is None)
    return spec.run(*inputs, backend=next(names))


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    return all(map(same, left, right))


def small_cases(op):
    """Within the tolerance, and the same every time."""
    spec = all_specs()[op]
    for case in spec.small:
        got, again = (run(spec, case) for _ in range(2))
        assert same(got, again), f"{case.name}: not deterministic"
        try:
            spec.check(got, spec.reference(*spec.make_inputs(case, CPU, 0)), spec.make_inputs(case, CPU, 0))
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


class Calls(TorchDispatchMode):
    """Records the calls of our operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "hqtvae_fast":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def operator(op):
    """What ``torch.library.opcheck`` finds in the operator as the op calls it."""
    spec = all_specs()[op]
    with Calls() as record:
        for case in (*spec.small[:2], spec.small[-1]):
            run(spec, case)
    assert record.calls
    for function, args, kwargs in record.calls:
        assert {"triton", "triton/int8"} & {each for each in (*args, *kwargs.values()) if isinstance(each, str)}
        torch.library.opcheck(function, args, kwargs)


def strided_vectors(op):
    """Vectors that are every second value of others: read where they lie, or copied, but not as if they were dense."""
    spec = all_specs()[op]
    case = next(
        case for case in spec.small if case.sizes.get("bias") or case.sizes.get("extra") or "added" in case.sizes
    )
    inputs, others = (spec.make_inputs(case, CPU, 0) for _ in range(2))
    strided = [x if not isinstance(x, torch.Tensor) or x.ndim != 1 else torch.stack([x, -x], 1)[:, 0] for x in others]
    assert any(isinstance(x, torch.Tensor) and x.ndim == 1 and x.stride() == (2,) for x in strided)
    assert same(spec.run(*strided, backend="triton"), spec.run(*inputs, backend="triton"))


CHECKS = {
    f"{check.__name__} {op}": (lambda check=check, op=op: check(op))
    for checks, ops in (((small_cases, operator), OPS), ((strided_vectors,), WITH_VECTORS))
    for op in ops
    for check in checks
}


NAMES = Checks(
    tuple(name for name in CHECKS if not name.startswith("operator")),
    slow=tuple(name for name in CHECKS if name.startswith("operator")),
)


@needs_triton
@pytest.mark.parametrize("check", NAMES.params)
def test_interpreted(check):
    assert file_outcomes(__file__, NAMES.beside(check))[check] == ""


if __name__ == "__main__":
    main(CHECKS)
