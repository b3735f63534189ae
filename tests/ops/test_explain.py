"""``explain`` on an op made up for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import hqtvae_fast
from hqtvae_fast.backend import VARIABLE, Backend
from hqtvae_fast.hardware import TERA, Device
from hqtvae_fast.ops import explain as module
from hqtvae_fast.ops.spec import Case, Cost, Spec

PEAKS = Device("abacus", flops=1 * TERA, bandwidth=1e9, memory=10**9)
BACKENDS = (
    Backend("triton", lambda x, by: x * by, lambda x, by: "needs a GPU; x is on the CPU"),
    Backend("torch", lambda x, by: x * by),
)


def make_inputs(case, device, seed):
    return torch.randn(case["N"], generator=torch.Generator().manual_seed(seed)).to(case.dtype).to(device), 2.0


def fail(*inputs):
    raise AssertionError("explain runs nothing")


SPEC = Spec(
    op="scale",
    cases=(Case("large", {"N": 10**12}), Case("small", {"N": 1000})),
    small=(Case("bf16", {"N": 1000}, torch.bfloat16),),
    make_inputs=make_inputs,
    run=fail,
    reference=fail,
    check=fail,
    cost=lambda case: Cost(case["N"], 2 * case["N"] * case.dtype.itemsize),
    describe=lambda x, by: {"tile": "128", "num_warps": "4"},
    backends=BACKENDS,
)


@pytest.fixture
def known(monkeypatch):
    """Replace the specs that there are by the one given."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def use(spec):
        monkeypatch.setattr(module, "all_specs", lambda: {spec.op: spec})

    use(SPEC)
    return use


def lines(*inputs, **options):
    text = hqtvae_fast.explain("scale", *inputs, peaks=PEAKS, **options)
    return dict(line.split("  ", 1) for line in text.splitlines())


def explained(*inputs, **options):
    return {label.strip(): text.strip() for label, text in lines(*inputs, **options).items()}


def test_says_who_would_run_and_why_not_the_others(known):
    rows = explained(torch.ones(1000), 2.0)
    assert rows["op"] == "scale(float32 [1000], 2.0) on cpu"
    assert rows["backend"] == "torch, chosen by the op's order"
    assert rows["passed over"] == "triton: needs a GPU; x is on the CPU"
    assert "tile" not in rows  # it is the passed over kernel's


def test_how_a_kernel_would_be_launched_is_told_where_it_would(known):
    known(replace(SPEC, backends=(Backend("triton", fail), *BACKENDS[1:])))
    rows = explained(torch.ones(1000), 2.0)
    assert (rows["backend"], rows["tile"], rows["num_warps"]) == ("triton, chosen by the op's order", "128", "4")


def test_prints_nothing(known, capsys):
    explained(torch.ones(1000), 2.0)
    assert capsys.readouterr() == ("", "")


def test_an_explicit_backend_is_the_callers_and_one_that_cannot_run_is_told(known):
    assert explained(torch.ones(3), 2.0, backend="torch")["backend"] == "torch, chosen by the caller"
    assert "needs a GPU" in explained(torch.ones(3), 2.0, backend="triton")["backend"]


@pytest.mark.parametrize("dtype,case,num_bytes", [(torch.float32, "small", 8000), (torch.bfloat16, "bf16", 4000)])
def test_inputs_shaped_like_a_case_have_its_cost(known, dtype, case, num_bytes):
    rows = explained(torch.ones(1000, dtype=dtype), 3.0)
    assert rows["least work"] == f"1e-06 GFLOP, {num_bytes / 1e6:g} MB (case '{case}')"
    assert rows["limited by"].startswith("memory, ")
    assert rows["time floor"] == f"{num_bytes / 1e3:g} us on abacus: 1 TFLOP/s (bfloat16), 1 GB/s"


def test_arithmetic_can_be_the_limit(known):
    known(replace(SPEC, cost=lambda case: Cost(2e12, 1e9)))
    rows = explained(torch.ones(1000), 2.0)
    assert rows["limited by"] == "arithmetic, 2 times as long as memory"
    assert rows["time floor"].startswith("2 s on abacus")


def test_other_inputs_have_no_known_cost(known):
    rows = explained(torch.ones(7), 2.0)
    assert rows["least work"].startswith("unknown")
    assert "time floor" not in rows


def test_a_spec_may_know_the_cost_of_any_inputs(known):
    @dataclass(frozen=True)
    class Knowing(Spec):
        cost_of: object = staticmethod(lambda x, by: Cost(len(x), 1e6))

    known(Knowing(**vars(SPEC)))
    assert "1 MB (of these inputs)" in explained(torch.ones(7), 2.0)["least work"]


def test_a_spec_without_backends_or_description(known):
    known(replace(SPEC, backends=(), describe=None))
    rows = explained(torch.ones(1000), 2.0)
    assert rows["backend"] == "the op's spec lists none"
    assert "tile" not in rows


def test_an_unknown_op_lists_the_known_ones(known):
    with pytest.raises(ValueError, match=r"op: expected one of scale; got 'scael'"):
        hqtvae_fast.explain("scael")


@pytest.mark.parametrize("op", ["nearest_code", "hierarchical_quantize", "ema_update", "soft_label_cross_entropy"])
def test_of_a_real_op_all_is_told(op, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    spec = module.all_specs()[op]
    inputs = spec.make_inputs(spec.small[0], torch.device("cpu"), 0)
    text = hqtvae_fast.explain(op, *inputs, peaks=PEAKS)
    labels = [line.split("  ")[0] for line in text.splitlines()]
    assert {"op", "backend", "passed over", "least work", "limited by", "time floor"} <= set(labels)
    assert "shared memory" in spec.describe(*inputs)
    assert "shared memory" not in labels  # a CPU has no such kernel
    assert "triton: expected tensors on a CUDA device" in text
