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


def vectors_in_8_bits():
    """What is hard to round, as a key and as a value of the first position and of one behind others: zeros, ties, what
    is as good as zero, the largest number at the end, and what is not finite. The definition's bits are kept, and who
    sees a NaN gets one."""
    from hqtvae_fast.ops import decode_attention
    from hqtvae_fast.ops.kernels.decode_attention import int8

    hard = torch.zeros(7, 16)
    hard[1] = torch.tensor([127.0, *(0.5 + n - 7 for n in range(15))])
    hard[2, :3] = torch.tensor([1e-44, -1e-40, 1e-36])
    hard[3, 15] = -3e38
    hard[4, 2], hard[5, 3], hard[6, 4] = float("nan"), float("inf"), -float("inf")
    B = len(hard)
    for start in (0, 5):
        qkv = torch.randn(B, 1, 3, 2, 16, generator=torch.Generator().manual_seed(0))
        qkv[:, 0, 1, 0], qkv[:, 0, 2, 1] = hard, hard
        outcomes = []
        for backend in ("triton/int8", "triton/int8/64x4", "reference"):
            numbers, scales = int8.rounded(torch.randn(2, B, 2, 8, 16, generator=torch.Generator().manual_seed(1)))
            y = decode_attention(qkv, *numbers, torch.tensor(start), scales=scales, backend=backend)
            outcomes.append((numbers, scales, y))
        for got in outcomes[:2]:
            for ours, wanted in zip(got[:2], outcomes[2][:2], strict=True):
                torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)
            seen = slice(None) if start else slice(4)  # of one position the weight is 1, whatever the score
            torch.testing.assert_close(got[2][seen], outcomes[2][2][seen], rtol=1e-5, atol=1e-5, equal_nan=True)


CHECKS = {"vectors_in_8_bits": vectors_in_8_bits} | {
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
