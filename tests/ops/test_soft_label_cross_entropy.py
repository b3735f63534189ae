"""Soft-label cross-entropy against its definition in double precision, the golden value, and its own gradient."""

from __future__ import annotations

import functools
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from conftest import golden_values

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops.kernels.soft_label_cross_entropy import reference, soft_label_cross_entropy, triton
from hqtvae_fast.ops.kernels.soft_label_cross_entropy.spec import SPEC

CASES = [(1, 1, 1), (5, 7, 3), (33, 64, 16), (64, 100, 1)]  # N, K, C


def draw(N, K, C, dtype=torch.float64):
    generator = torch.Generator().manual_seed(N * K + C)
    shapes = ((N, K), (N, C), (K, C))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def define(logits, z, codebook, temperature):
    """The definition, in double precision and with everything written out."""
    logits, z, codebook = (x.double() for x in (logits, z, codebook))
    distances = (z[:, None] - codebook[None]).square().sum(dim=-1)
    return F.cross_entropy(logits, (-distances / temperature).softmax(dim=1))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("N,K,C", CASES)
def test_value_and_gradient(N, K, C, temperature):
    logits, z, codebook = draw(N, K, C)
    ours, exact = (logits.clone().requires_grad_() for _ in range(2))
    loss, expected = soft_label_cross_entropy(ours, z, codebook, temperature), define(exact, z, codebook, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    logits, z, codebook = draw(6, 9, 4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_label_cross_entropy(x, z, codebook, 0.7), logits)


def test_golden_value():
    """The released loss adds 1e-7 inside its logarithm of the sum, which moves it by less than 1e-6 here.

    Its labels are given, not their distances; codes of width 1 at sqrt(-log label) from z = 0 have those labels.
    """
    golden = golden_values("functions")
    rows = []
    for logits, target in zip(golden["soft_ce.logits"].double(), golden["soft_ce.target"].double(), strict=True):
        codebook = (-target.log()).sqrt()[:, None]
        rows.append(soft_label_cross_entropy(logits[None], torch.zeros(1, 1).double(), codebook, 1.0))
    torch.testing.assert_close(torch.stack(rows).mean().float(), golden["soft_ce.loss"], rtol=0, atol=1e-5)


def test_single_precision_is_as_exact_as_the_written_out_form():
    """Wide codes of the size that the top level has: distances around 2048, labels decided by their differences."""
    logits, z, codebook = draw(50, 200, 1024, torch.float32)
    exact = define(logits, z, codebook, 4.0)
    distances = torch.cdist(z, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
    plain = F.cross_entropy(logits, (-distances / 4.0).softmax(dim=1))
    ours = soft_label_cross_entropy(logits, z, codebook, 4.0)
    assert abs(float(ours - exact)) <= 2 * abs(float(plain - exact)) + 1e-5


def test_far_codes_do_not_overflow():
    logits, z, codebook = draw(4, 6, 3, torch.float32)
    loss = soft_label_cross_entropy(1e4 * logits, z, 1e4 * codebook, 1e-3)
    torch.testing.assert_close(loss.double(), define(1e4 * logits, z, 1e4 * codebook, 1e-3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_chunks_change_nothing_and_bound_the_labels(rows, monkeypatch):
    logits, z, codebook = draw(33, 64, 16)
    logits.requires_grad_()
    whole = torch.autograd.grad(soft_label_cross_entropy(logits, z, codebook, 1.0), logits)[0]
    held, soft_labels = [], reference.soft_labels

    def count(z_MC, *rest):
        held.append(len(z_MC))
        return soft_labels(z_MC, *rest)

    monkeypatch.setattr(reference, "CHUNK_ENTRIES", rows * 64)
    monkeypatch.setattr(reference, "soft_labels", count)
    loss = soft_label_cross_entropy(logits, z, codebook, 1.0)
    torch.testing.assert_close(loss, define(logits, z, codebook, 1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], whole, rtol=1e-12, atol=1e-15)
    assert max(held) == rows
    assert sum(held) == 2 * 33  # forward and backward


def test_only_logits_get_a_gradient():
    inputs = [x.requires_grad_() for x in draw(5, 7, 3)]
    soft_label_cross_entropy(*inputs, 1.0).backward()
    assert [x.grad is not None for x in inputs] == [True, False, False]


def test_half_precision_logits_give_a_single_precision_loss():
    logits, z, codebook = draw(33, 64, 16, torch.float32)
    low = logits.bfloat16().requires_grad_()
    loss = soft_label_cross_entropy(low, z, codebook, 1.0)
    loss.backward()
    assert (loss.dtype, low.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss.double(), define(low.detach(), z, codebook, 1.0), rtol=1e-5, atol=0)


def test_autocast_leaves_distances_alone():
    logits, z, codebook = draw(33, 64, 16, torch.float32)
    plain = soft_label_cross_entropy(logits, z, codebook, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_label_cross_entropy(logits, z, codebook, 1.0), plain)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"logits": torch.zeros(5)}, r"logits: expected \[N, K\], at least one row and one code; got \[5\]"),
        ({"logits": torch.zeros(0, 7)}, r"got \[0, 7\]"),
        ({"z": torch.zeros(4, 3)}, r"expected \[5, C\] and \[7, C\] for logits \[5, 7\]; got \[4, 3\] and \[7, 3\]"),
        ({"codebook": torch.zeros(7, 2)}, r"got \[5, 3\] and \[7, 2\]"),
        ({"codebook": torch.zeros(7, 3).double()}, "one floating dtype; got torch.float32, torch.float32 and torch.fl"),
        ({"logits": torch.zeros(5, 7).long()}, "floating logits"),
        ({"temperature": 0.0}, "temperature: expected a number from 1e-30 to 1e[+]30 .*; got 0.0"),
        ({"temperature": float("inf")}, "temperature"),
    ],
)
def test_refusals(change, message):
    logits, z, codebook = draw(5, 7, 3, torch.float32)
    arguments = {"logits": logits, "z": z, "codebook": codebook, "temperature": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        soft_label_cross_entropy(**arguments)


# ------------------------------------------------------------------------------------------------- operators, backends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_torchs_rules(dtype):
    """Schema, autograd registration, fakes and tracing, of both operators."""
    operators = torch.ops.hqtvae_fast
    logits, z, codebook = draw(5, 7, 3, torch.float32)
    logits = logits.to(dtype)
    inputs = (logits.clone().requires_grad_(), z, codebook, 0.7, "reference")
    torch.library.opcheck(operators.soft_label_cross_entropy.default, inputs)
    statistics = operators.soft_label_cross_entropy(*inputs)[1].detach()
    backward = (torch.tensor(2.0), logits, z, codebook, statistics, 0.7, "reference")
    torch.library.opcheck(operators.soft_label_cross_entropy_backward.default, backward)


def test_a_fake_has_what_the_kernels_return():
    """No GPU is needed to trace the backend of one: 4 numbers a row go from the forward to the backward pass."""
    operators = torch.ops.hqtvae_fast
    logits, z, codebook = (x.to("meta") for x in draw(5, 7, 3, torch.bfloat16))
    loss, statistics = operators.soft_label_cross_entropy(logits, z, codebook, 1.0, "triton")
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert (statistics.shape, statistics.dtype) == ((4, 5), torch.float32)
    out = operators.soft_label_cross_entropy_backward(loss, logits, z, codebook, statistics, 1.0, "triton")
    assert (out.shape, out.dtype) == ((5, 7), torch.bfloat16)


def test_there_is_no_second_derivative():
    logits, z, codebook = draw(5, 7, 3)
    logits.requires_grad_()
    loss = soft_label_cross_entropy(logits, z, codebook, 1.0)
    gradient = torch.autograd.grad(loss, logits, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="soft_label_cross_entropy_backward"):
        gradient.square().sum().backward()


def test_narrow_logits_beside_double_codes_give_a_single_precision_loss():
    logits, z, codebook = draw(5, 7, 3)
    loss = soft_label_cross_entropy(logits.float(), z, codebook, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), define(logits.float(), z, codebook, 1.0), rtol=1e-6, atol=0)


def test_a_logit_of_minus_infinity():
    """Forbidden by the model though a label has it: the loss is infinite, the gradient pulls as it would anywhere."""
    logits, z, codebook = draw(5, 7, 3, torch.float32)
    logits[2, 4] = -torch.inf
    loss, gradient = SPEC.run(logits, z, codebook, 1.0)
    assert loss == torch.inf
    assert bool(gradient.isfinite().all())
    assert gradient[2, 4] < 0


def test_backend_by_name_and_by_variable(monkeypatch):
    inputs = (*draw(5, 7, 3, torch.float32), 1.0)
    plain = soft_label_cross_entropy(*inputs)
    assert torch.equal(soft_label_cross_entropy(*inputs, backend="reference"), plain)
    monkeypatch.setenv("HQTVAE_BACKEND", "soft_label_cross_entropy=reference")
    assert torch.equal(soft_label_cross_entropy(*inputs), plain)
    with pytest.raises(BackendError, match="asked for backend 'cuda'; expected one of triton, reference"):
        soft_label_cross_entropy(*inputs, backend="cuda")


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = (*draw(5, 7, 3, torch.float32), 1.0)
    where = r"'triton', which cannot run: expected tensors on a CUDA device \(or TRITON_INTERPRET=1\); got cpu"
    with pytest.raises(BackendError, match=f"the caller asked for backend {where}"):
        soft_label_cross_entropy(*inputs, backend="triton")
    monkeypatch.setenv("HQTVAE_BACKEND", "soft_label_cross_entropy=triton")
    with pytest.raises(BackendError, match=f"HQTVAE_BACKEND asked for backend {where}"):
        soft_label_cross_entropy(*inputs)
    double = (*draw(5, 7, 3), 1.0)
    with pytest.raises(BackendError, match=r"expected fp32, bf16 or fp16; got torch.float64"):
        soft_label_cross_entropy(*double, backend="triton")


def test_without_triton_the_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.why_not(*draw(5, 7, 3, torch.float32), 1.0) == "Triton is not installed"


def peak_of(function):
    """The most bytes that ``function`` holds at once beyond what was held before, as torch's allocator tells."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak


def test_memory_of_the_reference_is_bounded(monkeypatch):
    """A few chunks beside the gradient, where labels alone, all at once, would take N x K."""
    N, K, chunk = 2048, 512, 2**14
    inputs = (*draw(N, K, 8, torch.float32), 1.0)
    monkeypatch.setattr(reference, "CHUNK_ENTRIES", chunk)
    gradient = 4 * N * K
    assert gradient < peak_of(functools.partial(SPEC.run, *inputs)) < gradient + 6 * 4 * chunk + 2**17


@pytest.mark.slow
def test_memory_of_64_images_is_that_of_the_logits_and_5_percent():
    """Both levels, 20,480 rows x 8192 in fp32: loss and gradient, itself as large as the logits. C does not matter."""
    logits = 20480 * 8192 * 4
    for rows in (4096, 16384):
        inputs = (*draw(rows, 8192, 4, torch.float32), 1.0)
        gradient = 4 * rows * 8192
        assert gradient < peak_of(functools.partial(SPEC.run, *inputs)) < gradient + 0.05 * logits


def test_the_kernels_scratch_is_within_5_percent_of_the_narrowest_logits():
    """Of one launch's rows: five numbers a row and tile of codes, and what is made of them while they are combined."""
    tiles = -(-8192 // triton.LARGE.codes)
    scratch = triton.CHUNK_ROWS * tiles * 4 * (5 + 5)
    kept = 4 * 4 * 16384
    assert scratch + kept < 0.05 * 20480 * 8192 * 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_on_a_gpu(dtype):
    for case in SPEC.cases[:2]:
        logits, *rest = SPEC.make_inputs(case, torch.device("cuda"), 0)
        inputs = (logits.to(dtype), *rest)
        del logits
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        SPEC.run(*inputs, backend="triton")
        extra = torch.cuda.max_memory_allocated() - before - inputs[0].nbytes  # the gradient
        assert extra < 0.05 * 20480 * 8192 * dtype.itemsize


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*SPEC.small, *SPEC.cases], ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = SPEC.make_inputs(case, torch.device("cuda"), 0)
    got, again = (SPEC.run(*inputs, backend="triton") for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))
    SPEC.check(got, SPEC.reference(*inputs), inputs)


# ---------------------------------------------------------------------------------------------------------------- spec


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_spec(case):
    """The inputs are of the sizes named, and the op on the CPU is within the tolerance that kernels are held to."""
    inputs = SPEC.make_inputs(case, torch.device("cpu"), 0)
    logits, z, codebook, _ = inputs
    assert (logits.shape, logits.dtype) == ((case["N"], case["K"]), case.dtype)
    assert (z.shape, codebook.shape) == ((case["N"], case["C"]), (case["K"], case["C"]))
    wanted = SPEC.reference(*inputs)
    SPEC.check(SPEC.run(*inputs), wanted, inputs)
    SPEC.check(SPEC.baselines["torch, written out"](*inputs), wanted, inputs)
    with pytest.raises(AssertionError, match="loss: off by"):
        SPEC.check((wanted[0] + 1e-2, wanted[1].to(case.dtype)), wanted, inputs)
    with pytest.raises(AssertionError, match="gradient: off by"):
        SPEC.check((wanted[0], wanted[1].to(case.dtype) + 1 / case["N"]), wanted, inputs)
