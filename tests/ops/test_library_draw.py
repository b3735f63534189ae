"""The draw by torch alone that waits for no device: the reference's codes, whatever the filters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast.ops import sample_logits
from hqtvae_fast.ops.kernels.sample_logits import BACKENDS

BY_NAME = {backend.name: backend for backend in BACKENDS}


def drawn(name, logits, seeds, temperature, top_k, top_p, step=3, position=1):
    """As the operator calls a backend: numbers are scalars of the device."""
    B, G, _ = logits.shape
    out, invalid = torch.full((B, G), -1), torch.zeros((), dtype=torch.bool)
    numbers = (torch.tensor(step), torch.tensor(position), torch.tensor(temperature), torch.tensor(top_k))
    BY_NAME[name].run(logits, out, invalid, seeds, *numbers, torch.tensor(top_p))
    return out, bool(invalid)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    temperature=st.sampled_from([1e-30, 0.3, 1.0, 7.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999999, 1.0]),
    kind=st.sampled_from(["spread", "ties", "equal", "infinite"]),
    seed=st.integers(0, 2**31),
)
def test_the_references_codes(shape, dtype, temperature, share, top_p, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    if kind == "ties":
        logits = logits.round()
    elif kind == "equal":
        logits = torch.zeros(shape)
    elif kind == "infinite" and shape[2] > 1:
        logits[:, :, ::2] = float("-inf")
    logits = logits.to(dtype)
    seeds = torch.randint(-(2**62), 2**62, shape[:1], generator=generator)
    filters = (temperature, max(1, round(share * shape[2])), top_p)
    got, wanted = (drawn(name, logits, seeds, *filters) for name in ("torch", "reference"))
    assert torch.equal(got[0], wanted[0])
    assert (got[1], wanted[1]) == (False, False)


def test_nan_sets_the_flag_and_gives_a_code():
    logits = torch.randn(2, 2, 9)
    logits[1, 0, 4] = float("nan")
    for top_k, top_p in ((9, 1.0), (3, 0.5), (1, 1.0)):
        codes, invalid = drawn("torch", logits, torch.tensor([1, 2]), 1.0, top_k, top_p)
        assert invalid
        assert ((codes >= 0) & (codes < 9)).all()


@pytest.mark.parametrize("top_k", [None, 1, 5])
def test_by_name(top_k):
    logits, seeds = torch.randn(3, 4, 33), torch.tensor([5, -6, 7])
    options = {"seeds": seeds, "step": 2, "position": 1, "top_k": top_k, "top_p": 0.8}
    wanted = sample_logits(logits, backend="reference", **options)
    assert torch.equal(sample_logits(logits, backend="torch", **options), wanted)


@pytest.mark.gpu
def test_captured_on_a_gpu():
    logits, seeds = torch.randn(3, 4, 8192, device="cuda"), torch.arange(3, device="cuda")
    numbers = {"step": torch.zeros((), dtype=torch.int64, device="cuda"), "top_k": torch.tensor(50, device="cuda")}
    out, invalid = torch.empty(3, 4, dtype=torch.int64, device="cuda"), torch.zeros((), dtype=torch.bool, device="cuda")
    options = {**numbers, "seeds": seeds, "position": torch.zeros_like(numbers["step"]), "out": out, "invalid": invalid}
    options |= {"temperature": torch.ones((), device="cuda"), "top_p": torch.tensor(0.9, device="cuda")}
    sample_logits(logits, backend="torch", **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample_logits(logits, backend="torch", **options)
    out.zero_()
    graph.replay()
    options = {"seeds": seeds, "step": 0, "position": 0, "top_k": 50, "top_p": 0.9}
    assert torch.equal(out, sample_logits(logits, backend="reference", **options))
