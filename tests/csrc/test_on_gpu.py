"""The CUDA kernels on a GPU, beyond what every op's spec asks of every backend (tests/ops/test_all_specs.py)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hqtvae_fast import _cuda
from hqtvae_fast.ops import nearest_code, sample_logits
from hqtvae_fast.ops.kernels.nearest_code import cuda as search
from hqtvae_fast.ops.kernels.nearest_code import spec as search_spec
from hqtvae_fast.ops.kernels.prediction_head import spec as head_spec
from hqtvae_fast.ops.kernels.sample_logits import spec as draw_spec
from hqtvae_fast.ops.spec import Case

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def kernels():
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch sees none")
    found, reason = _cuda.load()
    if found is None:
        pytest.skip(f"no CUDA kernels: {reason}")


def captured(run):
    """A replay of what ``run`` launches; it must neither allocate beyond the graph's pool nor wait."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


# ---------------------------------------------------------------------------------------------------------- the draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k,p", [(0, 0), (1, 0), (2048, 0), (0, 900), (2048, 900)])
def test_draws_are_the_references(dtype, k, p):
    """Bit for bit the CPU's; with top-p, but for its edge, which the spec's check knows."""
    inputs = draw_spec.make_inputs(Case("", {"B": 50, "G": 4, "K": 8192, "k": k, "p": p}, dtype), DEVICE, 7)
    drawn, wanted = draw_spec.run(*inputs, backend="cuda"), draw_spec.define(*inputs)
    draw_spec.check(drawn, wanted, inputs)
    if p == 0:
        assert torch.equal(drawn.cpu(), wanted)


def test_a_replayed_draw_reads_its_parameters():
    logits = torch.randn(8, 4, 1000, device=DEVICE)
    seeds, step = torch.arange(8, device=DEVICE), torch.tensor(0, device=DEVICE)
    top_k, out = torch.tensor(1000, device=DEVICE), torch.zeros(8, 4, dtype=torch.int64, device=DEVICE)
    options = {"seeds": seeds, "step": step, "position": torch.tensor(1, device=DEVICE), "out": out}
    graph = captured(lambda: sample_logits(logits, top_k=top_k, backend="cuda", **options))
    step.fill_(9)
    top_k.fill_(20)
    graph.replay()
    wanted = sample_logits(logits.cpu(), top_k=20, seeds=seeds.cpu(), step=9, position=1, backend="reference")
    assert torch.equal(out.cpu(), wanted)


# ---------------------------------------------------------------------------------------------------------- the head


def drawn_with_logits(inputs):
    codes = head_spec.run(*inputs, backend="cuda")
    return codes, inputs[-2].made.logits(1, len(codes)).clone()


@pytest.mark.parametrize("case", [*head_spec.SMALL_CASES[:7], *head_spec.CASES], ids=lambda case: case.name)
def test_logits_of_the_head(case):
    """Errors against float64 at most twice those of torch in bf16, plus the spec's absolute term."""
    inputs = head_spec.make_inputs(case, DEVICE, 3)
    codes, logits = drawn_with_logits(inputs)
    _, (exact, error) = head_spec.logits_with_errors(codes, inputs)
    assert float((logits.cpu().double() - exact.flatten(0, 1)).abs().max()) <= error


@pytest.mark.parametrize("quantized", range(3))
def test_the_bits_depend_on_neither_time_nor_batch_nor_grid(monkeypatch, quantized):
    case = next(case for case in head_spec.CASES if case["B"] == 16 and case["quantized"] == quantized)
    inputs = head_spec.make_inputs(case, DEVICE, 3)
    codes, logits = drawn_with_logits(inputs)
    for _ in range(10):
        again, bits = drawn_with_logits(inputs)
        assert torch.equal(again, codes)
        assert torch.equal(bits, logits)
    h, kept, invalid, seeds, *rest = inputs
    alone, bits = drawn_with_logits((h[5:6], kept[5:6], invalid, seeds[5:6], *rest))
    assert torch.equal(alone, codes[5:6])
    assert torch.equal(bits, logits[20:24])
    blocks, slots = head_spec.cuda.plan(h.device, inputs[-2].made.stored)
    monkeypatch.setattr(head_spec.cuda, "plan", lambda device, stored: (blocks // 2 + 1, slots - 9))
    assert torch.equal(drawn_with_logits(inputs)[1], logits)


def test_a_replayed_head_reads_its_inputs():
    inputs = head_spec.make_inputs(head_spec.SMALL_CASES[1], DEVICE, 3)
    h, codes, invalid, seeds, step, temperature, top_k, top_p, head, _ = inputs
    options = {"seeds": seeds, "step": step, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    graph = captured(lambda: head(h, codes, invalid=invalid, backend="cuda", **options))
    for number in range(5):
        step.fill_(number)
        h.normal_()
        graph.replay()
        eager = head(h, torch.zeros_like(codes), backend="cuda", **options)
        assert torch.equal(codes, eager)


@pytest.mark.parametrize("quantized", [0, 1])
def test_a_dependent_launch_gives_the_same_bits(quantized):
    """One after the other, eagerly and captured: each starts while the one before it, with the same work space and the
    same barrier, still runs."""
    case = next(case for case in head_spec.CASES if case["B"] == 4 and case["quantized"] == quantized)
    h, codes, invalid, seeds, _, temperature, top_k, top_p, plain, _ = head_spec.make_inputs(case, DEVICE, 3)
    head, options = dataclasses.replace(plain, dependent=True), {"temperature": temperature, "top_k": top_k}
    reason = head_spec.cuda.why_not(h, head, True)
    if reason is not None:
        pytest.skip(reason)
    options |= {"seeds": seeds, "top_p": top_p, "backend": "cuda", "invalid": invalid}
    steps = [torch.tensor(number, device=DEVICE) for number in range(16)]
    wanted = [plain(h, codes.clone(), step=step, **options) for step in steps]
    drawn = [torch.zeros_like(codes) for _ in steps]

    def run():
        for own, step in zip(drawn, steps, strict=True):
            head(h, own, step=step, **options)

    run()
    assert all(map(torch.equal, drawn, wanted))
    graph = captured(run)
    for own in drawn:
        own.zero_()
    graph.replay()
    assert all(map(torch.equal, drawn, wanted))
    assert plain.made.barrier.tolist() == [0, 0]


def test_given_top_codes_are_kept():
    h, codes, *rest, head, _ = head_spec.make_inputs(head_spec.SMALL_CASES[1], DEVICE, 3)
    codes[:, 0] = 7
    drawn = head_spec.run(h, codes, *rest, head, False, backend="cuda")
    assert drawn[:, 0].tolist() == [7] * len(drawn)
    free = head_spec.run(h, codes, *rest, head, True, backend="cuda")
    same = free[:, 0] == 7
    assert torch.equal(free[same], drawn[same])


# --------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e15])
def test_codes_are_those_of_float64(dtype, spread):
    if dtype is torch.float16 and spread > 1:
        pytest.skip("fp16 does not hold such numbers")
    z, codebook = search_spec.make_inputs(Case("", {"N": 1030, "C": 252, "K": 8000}, torch.float32), DEVICE, 5)
    codebook[4000:4100] = codebook[:100]  # equal codes: the first of them is the answer
    z, codebook = (z * spread).to(dtype), (codebook * spread).to(dtype)
    z[7] = float("nan")
    got = nearest_code(z, codebook, backend="cuda")
    assert torch.equal(got.cpu(), nearest_code(z.cpu(), codebook.cpu(), backend="reference"))


def test_few_rows_need_float64():
    """Of the spec's inputs none, as the Triton kernel's bound has it too."""
    z, codebook = search_spec.make_inputs(search_spec.CASES[3], DEVICE, 5)
    assert float(search.search(z, codebook)[1].float().mean()) < 0.01
