"""The last convolution to bytes, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import conv_bytes
from hqtvae_fast.ops.kernels.conv_bytes import triton
from hqtvae_fast.ops.kernels.conv_bytes.spec import SPEC, make_inputs
from hqtvae_fast.pictures.images import to_pil

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_small_cases(case):
    inputs = make_inputs(case, CPU, 0)
    SPEC.check(conv_bytes(*inputs), SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_pictures_are_made_from_floats(dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in make_inputs(SPEC.small[1], CPU, 0))
    pixels = F.conv2d(x, weight * 4, bias, padding=1).float() * 0.5 + 0.5
    assert pixels.min() < 0 and pixels.max() > 1  # noqa: PT018
    pictures = np.stack([np.asarray(image) for image in to_pil(pixels)])
    assert np.array_equal(conv_bytes(x, weight * 4, bias).numpy(), pictures)


def test_the_check_sees_a_level():
    inputs = make_inputs(SPEC.small[0], CPU, 0)
    with pytest.raises(AssertionError, match="levels, more than"):
        SPEC.check(conv_bytes(*inputs) + 1, SPEC.reference(*inputs), inputs)


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.hqtvae_fast.conv_bytes.default, (*make_inputs(case, CPU, 0), "reference"))


X, WEIGHT, BIAS = torch.zeros(1, 32, 2, 2), torch.zeros(3, 32, 3, 3), torch.zeros(3)


@pytest.mark.parametrize(
    "inputs,message",
    [
        ((X[:0], WEIGHT, BIAS), r"x: expected \[B, C, H, W\], none of them 0; got \[0, 32, 2, 2\]"),
        ((X, WEIGHT[:2], BIAS), r"weight: expected \[3, 32, 3, 3\] for 3 biases; got \[2, 32, 3, 3\]"),
        ((X, WEIGHT, BIAS.half()), "expected one floating dtype; got torch.float32, torch.float32 and torch.float16"),
    ],
)
def test_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        conv_bytes(*inputs)


@pytest.mark.parametrize("channels,outputs,once", [(128, 3, True), (32, 3, True), (96, 1, True), (128, 4, False)])
def test_a_pixel_is_read_once_where_its_products_fit(channels, outputs, once):
    tile = triton.pick_tile(channels, outputs)
    assert isinstance(tile, triton.Gathered) == once
    assert channels % tile.depth == 0


def test_triton_says_why_not():
    with pytest.raises(BackendError, match=r"expected bf16 or fp16 throughout; got torch\.float32"):
        conv_bytes(X, WEIGHT, BIAS, backend="triton")
    with pytest.raises(BackendError, match="expected at most 16 output channels; got 17"):
        conv_bytes(X, torch.zeros(17, 32, 3, 3), torch.zeros(17), backend="triton")
    with pytest.raises(BackendError, match="expected at most 3 output channels; got 4"):
        conv_bytes(X, torch.zeros(4, 32, 3, 3), torch.zeros(4), backend="triton/gathered-16x16x32")


@pytest.mark.gpu
@pytest.mark.parametrize("case", SPEC.cases, ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = make_inputs(case, torch.device("cuda"), 0)
    SPEC.check(SPEC.run(*inputs, backend="triton"), SPEC.reference(*inputs), inputs)
