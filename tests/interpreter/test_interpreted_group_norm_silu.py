"""The Triton kernels of GroupNorm with SiLU, interpreted on the CPU, against float64.

The interpreter cuts off digits where a GPU rounds to bf16, so that narrow results are looked at to a unit only.
"""

from __future__ import annotations

import pytest
from interpreted import Checks, needs_triton, outcomes

PROGRAM = """
import torch

from hqtvae_fast.ops.kernels.group_norm_silu import add_group_norm_silu, group_norm_silu, reference, triton
from hqtvae_fast.ops.kernels.group_norm_silu.spec import SPEC, make_inputs
from hqtvae_fast.ops.kernels.round_map import Rounding, round_map

torch.set_num_threads(1)
CPU = torch.device("cpu")


def small_cases():
    for case in SPEC.small:
        for silu in (True, False):
            *most, _, shift, form, scale, zero = make_inputs(case, CPU, 0)
            if form == "uint8":
                continue
            inputs = (*most, silu, shift, form, scale, zero)
            got = SPEC.run(*inputs, backend="triton")
            try:
                SPEC.check(got, SPEC.reference(*inputs), inputs)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, silu {silu}: {error}") from error


def large_means():
    for case in SPEC.small:
        if case.sizes.get("form"):
            continue
        inputs = make_inputs(case, CPU, 0, offset=50.0 if case.dtype is torch.float16 else 300.0)
        SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)


def an_image_alone_and_in_a_batch():
    x, residual, weight, bias, *_ = make_inputs(SPEC.small[2], CPU, 0)
    total, y = add_group_norm_silu(x, residual, weight, bias, backend="triton")
    for image in range(len(x)):
        alone = add_group_norm_silu(x[image : image + 1], residual[image : image + 1], weight, bias, backend="triton")
        assert torch.equal(alone[0][0], total[image]) and torch.equal(alone[1][0], y[image])


def rounded_as_the_result_is():
    x, residual, weight, bias, groups, eps, silu, *_ = make_inputs(SPEC.small[2], CPU, 0)
    cases = ((Rounding("int8", 0.031, -97), None), (Rounding("fp8", 0.01), torch.randn(x.shape[1])))
    for rounding, shift in cases:
        how = dict(shift=shift, backend="triton")
        total, y = add_group_norm_silu(x, residual, weight, bias, groups, eps, **how)
        own, numbers = add_group_norm_silu(x, residual, weight, bias, groups, eps, rounding=rounding, **how)
        assert torch.equal(total, own)
        assert torch.equal(numbers.float(), round_map(y, rounding, backend="reference").float())


def backward():
    for case in (SPEC.small[1], SPEC.small[2], SPEC.small[3], SPEC.small[4], SPEC.small[6]):
        for silu in (True, False):
            x, _, weight, bias, groups, eps, *_ = make_inputs(case, CPU, 0, offset=30.0)
            dy = torch.randn(x.shape).to(x.dtype).contiguous(memory_format=torch.channels_last)
            _, _, mean, rstd = triton.forward(x, None, weight, bias, groups, eps, silu)
            got = triton.backward(dy, x, weight, bias, mean, rstd, silu)
            wide = [y.double() for y in (dy, x, weight, bias)]
            _, _, mean, rstd = reference.forward(wide[1], None, *wide[2:], groups, eps, silu)
            wanted = reference.backward(*wide, mean, rstd, silu)
            for name, one, other in zip(("x", "weight", "bias"), got, wanted, strict=True):
                size = float(other.abs().max())
                unit = torch.finfo(one.dtype).eps
                error = float((one.double() - other).abs().max())
                assert error <= (64 if one.dtype is torch.float32 else 1) * unit * size + 1e-5, (case.name, name, error)


def strided_vectors():
    x, residual, weight, bias, groups, eps, silu, *_ = make_inputs(SPEC.small[2], CPU, 0)
    vectors = (weight, bias, torch.randn(weight.shape))
    strided = [torch.stack([y, -y], 1)[:, 0] for y in vectors]
    one, other = (triton.forward(x, residual, w, b, groups, eps, silu, s) for w, b, s in (vectors, strided))
    assert all(map(torch.equal, one, other))
    one, other = (triton.backward(x, residual, w, b, *one[2:], silu) for w, b, _ in (vectors, strided))
    assert all(map(torch.equal, one, other))


def operators():
    x, residual, weight, bias, groups, eps, silu, *_ = make_inputs(SPEC.small[2], CPU, 0)
    x, residual, weight, bias = (y.requires_grad_() for y in (x, residual, weight, bias))
    for added in (None, residual):
        inputs = (x, added, weight, bias, groups, eps, silu, None, None, 1.0, 0, "triton")
        torch.library.opcheck(torch.ops.hqtvae_fast.group_norm_silu.default, inputs)
"""

CHECKS = Checks(
    ("small_cases", "an_image_alone_and_in_a_batch", "rounded_as_the_result_is", "backward"),
    slow=("large_means", "strided_vectors", "operators"),
)


@needs_triton
@pytest.mark.parametrize("check", CHECKS.params)
def test_interpreted(check):
    assert outcomes(PROGRAM, CHECKS.beside(check))[check] == ""
