"""The Triton kernels of soft-label cross-entropy, interpreted on the CPU, against float64.

What the interpreter cannot show is how a GPU multiplies (here products are exact fp32) and rounds.
"""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.soft_label_cross_entropy import soft_label_cross_entropy, triton
from hqtvae_fast.ops.kernels.soft_label_cross_entropy.spec import SPEC

torch.set_num_threads(1)


def small_cases():
    for case in SPEC.small:
        for tau in (0.1, 1.0, 30.0):
            inputs = (*SPEC.make_inputs(case, torch.device("cpu"), 0)[:3], tau)
            got, again = (SPEC.run(*inputs, backend="triton") for _ in range(2))
            assert all(torch.equal(*pair) for pair in zip(got, again, strict=True)), f"{case.name}: not deterministic"
            try:
                SPEC.check(got, SPEC.reference(*inputs), inputs)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, tau {tau}: {error}") from error


def narrow_codes():
    for dtype in (torch.bfloat16, torch.float16):
        logits, z, codebook, tau = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
        inputs = (logits, z.to(dtype), codebook.to(dtype), tau)
        exact = SPEC.reference(*inputs)  # in float64, of the same narrow codes: closer than torch in their precision
        got = SPEC.run(*inputs, backend="triton")
        torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(got[1].double(), exact[1], rtol=1e-5, atol=1e-9)


def a_slice_of_rows_and_a_scaled_loss():
    logits, z, codebook, tau = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    wide = torch.cat((logits, logits), dim=1)
    part = wide[:, : logits.shape[1]].requires_grad_()
    (gradient,) = torch.autograd.grad(3 * soft_label_cross_entropy(part, z, codebook, tau, backend="triton"), part)
    exact = 3 * SPEC.reference(logits, z, codebook, tau)[1]
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-9)


def chunks_of_rows():
    inputs = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    whole, before = SPEC.run(*inputs, backend="triton"), triton.CHUNK_ROWS
    triton.CHUNK_ROWS = 33
    torch.testing.assert_close(SPEC.run(*inputs, backend="triton"), whole, rtol=1e-6, atol=1e-9)
    triton.CHUNK_ROWS = before


def far_codes_and_large_offsets():
    logits, z, codebook, _ = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    for inputs in ((1e4 * logits, z, 1e4 * codebook, 1e-3), (logits + 1e4, z, codebook, 1.0)):
        SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def infinite_logits():
    logits, z, codebook, _ = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    one, tile, row = (logits.clone() for _ in range(3))
    one[3, 100] = -torch.inf
    tile[3, :128] = -torch.inf
    row[3] = -torch.inf
    for changed in (one, tile, row):
        got, wanted = (SPEC.run(changed, z, codebook, 30.0, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-5, atol=1e-7)
    assert torch.equal(SPEC.run(one, z, codebook, 30.0)[0], torch.tensor(torch.inf))


def operators():
    operators = torch.ops.hqtvae_fast
    logits, z, codebook, tau = SPEC.make_inputs(SPEC.small[1], torch.device("cpu"), 0)
    inputs = (logits.requires_grad_(), z, codebook, tau, "triton")
    torch.library.opcheck(operators.soft_label_cross_entropy.default, inputs)
    loss, statistics = (x.detach() for x in operators.soft_label_cross_entropy(*inputs))
    backward = (loss, logits.detach(), z, codebook, statistics, tau, "triton")
    torch.library.opcheck(operators.soft_label_cross_entropy_backward.default, backward)
"""

CHECKS = Checks(
    (
        "small_cases",
        "narrow_codes",
        "a_slice_of_rows_and_a_scaled_loss",
        "chunks_of_rows",
        "far_codes_and_large_offsets",
        "infinite_logits",
    ),
    slow=("operators",),
)


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
