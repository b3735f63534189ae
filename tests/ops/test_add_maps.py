"""The sum of two maps and a bias, in one pass, and where the decoder takes it."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.backend import BackendError
from hqtvae_fast.model import autoencoder
from hqtvae_fast.ops import add_maps
from hqtvae_fast.ops.kernels.add_maps.spec import SPEC, make_inputs

CPU = torch.device("cpu")
X, SHIFT = torch.zeros(1, 8, 2, 3), torch.zeros(8)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_small_cases(case, backend):
    inputs = make_inputs(case, CPU, 0)
    SPEC.check(add_maps(*inputs, backend=backend), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("lacks", range(3))
def test_the_check_sees_what_is_not_added(lacks):
    inputs = make_inputs(SPEC.small[1], CPU, 0)
    fewer = (part * (index != lacks) for index, part in enumerate(inputs))
    with pytest.raises(AssertionError, match="off by"):
        SPEC.check(add_maps(*fewer), SPEC.reference(*inputs), inputs)


def test_it_is_rounded_once():
    """256 + 1 + 1 in bf16, whose unit is 2 there: two roundings would leave 256."""
    x, one = torch.full((1, 1, 1, 1), 256.0).bfloat16(), torch.ones(1, 1, 1, 1).bfloat16()
    assert float(add_maps(x, one, one[0, 0, 0], backend="reference")) == 258
    assert float(add_maps(x, one, one[0, 0, 0], backend="torch")) == 256


def test_maps_in_other_memory_are_taken():
    x, residual, shift = make_inputs(SPEC.small[2], CPU, 0)
    got = add_maps(x.contiguous(), residual, shift)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, add_maps(x, residual, shift))


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.add_maps.default, (*make_inputs(case, CPU, 0), "reference"))


@pytest.mark.parametrize(
    "inputs,message",
    [
        ((X[0], X[0], SHIFT), r"x: expected \[B, C, H, W\], none of them 0; got \[8, 2, 3\]"),
        ((X, X[:, :4], SHIFT), r"residual: expected torch.float32 \[1, 8, 2, 3\] as x; got .*\[1, 4, 2, 3\]"),
        ((X, X.half(), SHIFT), "residual: expected torch.float32 .* got torch.float16"),
        ((X, X, SHIFT[:4]), r"expected floating dtypes and a shift of \[8\]; got torch.float32 and .*\[4\]"),
        ((X.int(), X.int(), SHIFT.int()), "expected floating dtypes .* got torch.int32"),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        add_maps(*inputs)


def test_triton_says_why_not():
    with pytest.raises(BackendError, match="expected a power of two, up to 4096 channels; got 24"):
        add_maps(X.repeat(1, 3, 1, 1), X.repeat(1, 3, 1, 1), SHIFT.repeat(3), backend="triton")
    with pytest.raises(BackendError, match="expected tensors on a CUDA device"):
        add_maps(X, X, SHIFT, backend="triton")


def test_a_trunk_adds_all_it_has():
    x, residual, shift = make_inputs(SPEC.small[3], CPU, 0)
    wanted = {(False, False): x, (True, False): x + residual, (False, True): x + shift[:, None, None]}
    wanted[True, True] = SPEC.reference(x, residual, shift).float()
    for (branch, bias), total in wanted.items():
        trunk = autoencoder.Trunk(x.clone(), residual if branch else None, shift if bias else None)
        torch.testing.assert_close(trunk.sum(), total)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = make_inputs(case, torch.device("cuda"), 0)
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)
