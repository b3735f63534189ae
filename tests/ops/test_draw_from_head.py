"""Drawing from the head's inputs: the same codes as from stored logits, their distribution, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from hqtvae_fast.ops import draw_from_head, sample_logits
from hqtvae_fast.ops.spec import all_specs

SPEC = all_specs()["draw_from_head"]


def whole_numbers(B, G, D, K, device="cpu", dtype=torch.float32):
    """Any order of summation gives the same logits."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-1, 2, shape, generator=generator) for shape in ((B, G, D), (K, D)))
    return x.to(device, dtype), weight.to(device, dtype), torch.arange(B, device=device)


@pytest.mark.parametrize("backend", [None, "unfused", "reference"])
def test_it_is_the_product_and_then_the_draw(backend):
    x, weight, seeds = whole_numbers(7, 3, 20, 90)
    options = {"temperature": 0.8, "seeds": seeds, "step": 3, "position": 1}
    drawn = draw_from_head(x, weight, backend=backend, **options)
    assert torch.equal(drawn, sample_logits(F.linear(x, weight), **options))
    assert torch.equal(draw_from_head(x[:, 1], weight, backend=backend, **options | {"position": 2}), drawn[:, 1])
    out = torch.zeros(7, 9, dtype=torch.int64)
    assert torch.equal(draw_from_head(x, weight, out=out[:, 2:5], backend=backend, **options), out[:, 2:5])
    assert torch.equal(out[:, 2:5], drawn)


def test_distribution():
    count = 200_000
    weight = torch.tensor([[1.5], [0.0], [-2.0], [0.5], [0.5]])
    x = torch.ones(count, 1)
    drawn = draw_from_head(x, weight, temperature=0.7, seeds=torch.arange(count), step=1, position=0)
    expected = (weight[:, 0].double() / 0.7).softmax(0).numpy() * count
    assert stats.chisquare(torch.bincount(drawn, minlength=5).numpy(), expected).pvalue > 0.001


def test_the_tolerance_sees_a_code_that_is_not_the_best():
    case = SPEC.small[1]
    inputs = SPEC.make_inputs(case, torch.device("cpu"), 0)
    wanted = SPEC.reference(*inputs)
    SPEC.check(wanted, wanted, inputs)
    with pytest.raises(AssertionError, match="drawn: 36 codes"):
        SPEC.check((wanted + 1) % case["K"], wanted, inputs)
    with pytest.raises(AssertionError, match="out of range"):
        SPEC.check(wanted + case["K"], wanted, inputs)


def test_opcheck():
    x, weight, seeds = whole_numbers(2, 3, 8, 20)
    out, invalid = torch.zeros(2, 3, dtype=torch.int64), torch.zeros((), dtype=torch.bool)
    numbers = (torch.tensor(1), torch.tensor(2), torch.tensor(0.9))
    for backend in ("unfused", "reference"):
        torch.library.opcheck(torch.ops.hqtvae_fast.draw_from_head, (x, weight, out, invalid, seeds, *numbers, backend))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"weight": torch.zeros(4, 3)}, r"expected \[B, D\] or \[B, G, D\], and \[K, D\] of the same dtype"),
        ({"weight": torch.zeros(4, 2).double()}, "same dtype; got torch.float32"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds: expected \[2\]; got \[3\]"),
        ({"temperature": 0.0}, "temperature: expected a number from 1e-30 to 1e[+]30 .*; got 0.0"),
        ({"out": torch.zeros(2)}, r"out: expected int64 \[2\]; got torch.float32 \[2\]"),
        ({"x": torch.full((2, 2), float("nan"))}, "NaN logits"),
    ],
)
def test_refusals(change, message):
    values = {"x": torch.zeros(2, 2), "weight": torch.zeros(4, 2), "seeds": torch.zeros(2, dtype=torch.int64)}
    values |= change
    with pytest.raises(ValueError, match=message):
        draw_from_head(values.pop("x"), values.pop("weight"), step=0, position=0, **values)


@pytest.mark.gpu
@pytest.mark.parametrize("B,G", [(2, 4), (50, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_codes_on_a_gpu(B, G, dtype):
    """Where products are exact, every code is that of the definition: the noise has the same bits."""
    x, weight, seeds = whole_numbers(B, G, 64, 8192, "cuda", dtype)
    options = {"temperature": 0.9, "step": 3, "position": 1}
    drawn = draw_from_head(x, weight, seeds=seeds, backend="triton", **options)
    wanted = draw_from_head(x.cpu(), weight.cpu(), seeds=seeds.cpu(), backend="reference", **options)
    assert torch.equal(drawn.cpu(), wanted)
