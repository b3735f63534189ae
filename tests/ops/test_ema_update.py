"""The codebook's EMA step: against its definition in float64, in place, and with statistics in any order."""

from __future__ import annotations

import pytest
import torch
from conftest import golden_values
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import code_statistics, ema_update
from hqtvae_fast.ops.kernels.ema_update.spec import SPEC


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 60),
    codes=st.integers(1, 20),
    width=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**20),
)
def test_counts_and_sums(rows, codes, width, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, width, generator=generator).to(dtype)
    chosen = torch.randint(codes, (rows,), generator=generator)
    counts, sums = code_statistics(z, chosen, codes, deterministic=bool(seed % 2))
    one_hot = torch.nn.functional.one_hot(chosen, codes).double()
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert (counts.dtype, sums.dtype) == (wide, wide)
    assert torch.equal(counts.double(), one_hot.sum(dim=0))
    torch.testing.assert_close(sums.double(), one_hot.T @ z.double(), rtol=1e-6, atol=1e-5)


def test_bf16_rows_are_counted_and_summed_in_single_precision():
    """bf16 itself stops counting at 256."""
    counts, sums = code_statistics(torch.ones(1000, 2, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.int64), 3)
    assert counts.tolist() == [1000, 0, 0]
    assert sums.tolist() == [[1000, 1000], [0, 0], [0, 0]]


def test_the_step_is_the_released_one():
    golden = golden_values("functions")
    names = ("embedding", "cluster_size", "embedding_avg")
    by_name = {key.removeprefix("ema.before."): value for key, value in golden.items() if key.startswith("ema.before.")}
    state = [next(value for key, value in by_name.items() if key.startswith(name)).clone() for name in names]
    z = golden["ema.z"].permute(0, 2, 3, 1).flatten(0, 2)
    ema_update(*state, *code_statistics(z, golden["ema.codes"].flatten(), len(state[0])), 0.99, 1e-5)
    for name, value in zip(names, state, strict=True):
        wanted = next(wanted for key, wanted in golden.items() if key.startswith(f"ema.after.{name}"))
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_written_out():
    state = torch.zeros(2, 1), torch.tensor([1.0, 3.0]), torch.tensor([[2.0], [-4.0]])
    ema_update(*state, torch.tensor([0.0, 4.0]), torch.tensor([[0.0], [8.0]]), 0.5, 0.25)
    size, total = torch.tensor([0.5, 3.5]), torch.tensor([[1.0], [2.0]])
    assert torch.equal(state[1], size)
    assert torch.equal(state[2], total)
    torch.testing.assert_close(state[0], total / ((size + 0.25) / 4.5 * 4)[:, None])


def test_rows_with_a_gradient_and_views_are_taken():
    z = torch.randn(5, 8).T.requires_grad_()
    counts, sums = code_statistics(z, torch.arange(8) % 3, 3)
    assert not sums.requires_grad
    torch.testing.assert_close(sums[0], z.detach()[[0, 3, 6]].sum(dim=0))
    assert counts.tolist() == [3, 3, 2]


@pytest.mark.parametrize("codes", [[0, 5, 1], [0, -1, 1]])
def test_a_code_outside_raises_on_a_cpu(codes):
    with pytest.raises((RuntimeError, IndexError)):
        code_statistics(torch.zeros(3, 2), torch.tensor(codes), 5)


@pytest.mark.parametrize(
    "z,codes,size,message",
    [
        (torch.zeros(3), torch.zeros(3).long(), 5, r"expected \[N, C\] and \[N\]; got \[3\] and \[3\]"),
        (torch.zeros(3, 2), torch.zeros(4).long(), 5, r"got \[3, 2\] and \[4\]"),
        (
            torch.zeros(3, 2),
            torch.zeros(3).int(),
            5,
            "int64 codes on one device; got torch.float32 on cpu and torch.int32",
        ),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), 5, "expected floating z"),
        (torch.zeros(3, 2), torch.zeros(3, device="meta").long(), 5, "torch.int64 on meta"),
        (torch.zeros(3, 2), torch.zeros(3).long(), 0, "num_codes: expected at least 1; got 0"),
    ],
)
def test_refusals_of_statistics(z, codes, size, message):
    with pytest.raises(ValueError, match=message):
        code_statistics(z, codes, size)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"sums": torch.zeros(4, 3)}, r"sums: expected \[4, 2\] in torch\.float32 .*; got \[4, 3\]"),
        (
            {"counts": torch.zeros(4).double()},
            r"counts: expected \[4\] in torch.float32 .*; got \[4\] in torch.float64",
        ),
        ({"embedding": torch.zeros(4)}, "embedding"),
    ],
)
def test_refusals_of_the_step(change, message):
    state = {"embedding": torch.zeros(4, 2), "cluster_size": torch.zeros(4), "embedding_sum": torch.zeros(4, 2)}
    statistics = {"counts": torch.zeros(4), "sums": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=message):
        ema_update(**{**state, **statistics, **change}, decay=0.99, epsilon=1e-5)


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"'triton', which cannot run: expected tensors on a CUDA device"):
        code_statistics(torch.zeros(3, 2), torch.zeros(3).long(), 5, backend="triton")
    state = [torch.zeros(4, 2).double(), torch.zeros(4).double(), torch.zeros(4, 2).double()]
    with pytest.raises(BackendError, match=r"expected state and statistics in fp32; got torch\.float64"):
        ema_update(*state, state[1], state[0], 0.99, 1e-5, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_torchs_rules(dtype):
    operators = torch.ops.hqtvae_fast
    z, codes = torch.randn(7, 4).to(dtype), torch.arange(7) % 3
    for deterministic in (False, True):
        torch.library.opcheck(operators.code_statistics.default, (z, codes, 3, deterministic, "reference"))
    counts, sums = code_statistics(z, codes, 3)
    state = (torch.randn(3, 4), torch.rand(3) + 1, torch.randn(3, 4))
    torch.library.opcheck(operators.ema_update.default, (*state, counts, sums, 0.99, 1e-5, "reference"))


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_spec(case):
    inputs = SPEC.make_inputs(case, torch.device("cpu"), 0)
    assert (inputs[0].shape, inputs[0].dtype) == ((case["N"], case["C"]), case.dtype)
    before = [x.clone() for x in inputs[:-1]]
    wanted = SPEC.reference(*inputs)
    SPEC.check(SPEC.run(*inputs), wanted, inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs[:-1], before, strict=True))  # the state given is left alone
    SPEC.check(SPEC.baselines["torch, one-hot product"](*inputs), wanted, inputs)
    with pytest.raises(AssertionError, match="embedding: off by"):
        SPEC.check((wanted[0] * 1.001, *wanted[1:]), wanted, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", [*SPEC.small, *SPEC.cases], ids=lambda case: case.name)
def test_on_a_gpu(case, deterministic):
    inputs = (*SPEC.make_inputs(case, torch.device("cuda"), 0)[:-1], deterministic)
    got = SPEC.run(*inputs, backend="triton")
    SPEC.check(got, SPEC.reference(*inputs), inputs)
    if deterministic:
        again = SPEC.run(*inputs, backend="triton")
        assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))
