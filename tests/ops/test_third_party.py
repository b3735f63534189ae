"""Other people's libraries as baselines: that they are called as they document, and what is said where they are not."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import third_party
from hqtvae_fast.ops.kernels.decode_attention.spec import SPEC as DECODE
from hqtvae_fast.ops.kernels.local_attention.spec import SPEC as LOCAL
from hqtvae_fast.ops.kernels.nearest_code import third_party as searches
from hqtvae_fast.ops.kernels.nearest_code.spec import SPEC as SEARCH

CPU = torch.device("cpu")


def attend(q, k, v, **options):
    """[B, positions, H, E] each, as both packages take them."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def flash_attn_with_kvcache(q, k_cache, v_cache, k, v, *, cache_seqlens):
    """New keys and values [B, T, H, E] go into the caches [B, C, H, E] behind each row's length, int32 [B]."""
    assert cache_seqlens.dtype is torch.int32
    assert cache_seqlens.shape == (len(q),)
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    rows = []
    for row, length in enumerate(cache_seqlens.tolist()):
        end = length + q.shape[1]
        k_cache[row, length:end], v_cache[row, length:end] = k[row], v[row]
        rows.append(attend(q[row : row + 1], k_cache[row : row + 1, :end], v_cache[row : row + 1, :end]))
    return torch.cat(rows)


def memory_efficient_attention(query, key, value, attn_bias=None):
    """A bias [B, H, T, C] of the queries' dtype is added to the scores."""
    if attn_bias is not None:
        assert attn_bias.dtype is query.dtype
        assert attn_bias.shape == (len(query), query.shape[2], query.shape[1], key.shape[1])
    return attend(query, key, value, attn_mask=attn_bias)


PACKAGES = {
    "flash_attn": SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache, flash_attn_func=attend),
    "xformers": SimpleNamespace(),
    "xformers.ops": SimpleNamespace(memory_efficient_attention=memory_efficient_attention),
}


def own(case):
    """What is set of a case."""
    return {name for name, value in case.sizes.items() if value}


ATTENTION = [(spec, case) for spec in (DECODE, LOCAL) for case in spec.small if not {"levels", "int8"} & own(case)]


@pytest.mark.parametrize("name", ["flash-attn", "xformers"])
@pytest.mark.parametrize("spec,case", ATTENTION, ids=[f"{spec.op}, {case.name}" for spec, case in ATTENTION])
def test_attention_is_called_as_documented(spec, case, name, monkeypatch):
    monkeypatch.setattr(third_party, "attention", lambda package, qkv: PACKAGES[package])
    monkeypatch.setattr(third_party, "installed", PACKAGES.get)
    inputs = spec.make_inputs(case, CPU, 0)
    y = spec.baselines[name](*inputs)
    cached = () if inputs[2] is None else inputs[2:4]
    spec.check((y, *cached), spec.reference(*spec.make_inputs(case, CPU, 0)), spec.make_inputs(case, CPU, 0))


@pytest.mark.parametrize("name", ["flash-attn", "xformers"])
def test_what_attention_cannot_do_is_said(name, monkeypatch):
    with pytest.raises(BackendError, match=r"expected bf16 or fp16 on a CUDA device; got torch\.float32 on cpu"):
        DECODE.baselines[name](*DECODE.make_inputs(DECODE.small[0], CPU, 0))
    monkeypatch.setattr(third_party, "attention", lambda package, qkv: PACKAGES[package])
    eight = next(case for case in DECODE.small if case.sizes["int8"])
    with pytest.raises(BackendError, match=f"{name.replace('-', '_')}: expected keys and values in the queries' dtype"):
        DECODE.baselines[name](*DECODE.make_inputs(eight, CPU, 0))
    levels = next(case for case in LOCAL.small if case.sizes["levels"])
    with pytest.raises(BackendError, match="expected mask 'full'; got 'levels'"):
        LOCAL.baselines[name](*LOCAL.make_inputs(levels, CPU, 0))


def test_searches_that_cannot_run_say_why(monkeypatch):
    inputs = SEARCH.make_inputs(SEARCH.small[0], CPU, 0)
    monkeypatch.setattr(third_party.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="faiss is not installed"):
        SEARCH.baselines["faiss"](*inputs)
    with pytest.raises(BackendError, match="cuvs: expected a CUDA device; got cpu"):
        SEARCH.baselines["cuVS"](*inputs)
    monkeypatch.setattr(searches.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match=r"no C\+\+ compiler on PATH"):
        SEARCH.baselines["torch.compile, product + argmin"](*inputs)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed, and is no dependency")
@pytest.mark.parametrize("case", [case for case in SEARCH.small if case["N"]], ids=lambda case: case.name)
def test_faiss_finds_the_same(case):
    inputs = SEARCH.make_inputs(replace(case, dtype=torch.float32), CPU, 0)
    assert torch.equal(SEARCH.baselines["faiss"](*inputs), SEARCH.reference(*inputs))


def test_cuvs_is_called_as_documented(monkeypatch):
    """A stand-in with its functions, which write into the tensors given to them, on the stream of torch."""
    said = []

    def search(index, queries, k, *, neighbors, distances, resources):
        values, places = torch.cdist(queries, index).topk(k, largest=False)
        neighbors.copy_(places)
        distances.copy_(values.square())
        said.append(resources)

    packages = {
        "cuvs": None,
        "cuvs.neighbors.brute_force": SimpleNamespace(build=lambda data, metric, resources: data, search=search),
        "cuvs.common": SimpleNamespace(Resources=lambda stream: stream),
    }
    monkeypatch.setattr(searches, "installed", packages.get)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    z, codebook = SEARCH.make_inputs(SEARCH.small[0], CPU, 0)

    class OnGPU(torch.Tensor):
        is_cuda = True

    got = searches.cuvs(z.as_subclass(OnGPU), codebook)
    assert torch.equal(got.as_subclass(torch.Tensor), SEARCH.reference(z, codebook))
    assert said == [7]


@pytest.mark.slow
def test_the_compiled_search_is_the_written_one():
    inputs = SEARCH.make_inputs(SEARCH.small[0], CPU, 0)
    got = SEARCH.baselines["torch.compile, product + argmin"](*inputs)
    assert torch.equal(got, SEARCH.baselines["torch, product + argmin"](*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("spec,name", [(s, n) for s in (DECODE, LOCAL) for n in ("flash-attn", "xformers")])
def test_attention_on_a_gpu(spec, name):
    package = name.replace("-", "_")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    case, device = spec.cases[1], torch.device("cuda")
    inputs = spec.make_inputs(case, device, 0)
    y, before = spec.baselines[name](*inputs), spec.make_inputs(case, device, 0)
    cached = () if inputs[2] is None else inputs[2:4]
    spec.check((y, *cached), spec.reference(*before), before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["faiss", "cuVS"])
def test_searches_on_a_gpu(name):
    if importlib.util.find_spec(name.lower()) is None:
        pytest.skip(f"{name.lower()} is not installed")
    inputs = SEARCH.make_inputs(SEARCH.cases[2], torch.device("cuda"), 0)
    found, exact = SEARCH.baselines[name](*inputs).cpu(), SEARCH.reference(*inputs)
    assert (found != exact).float().mean() < 0.01  # where rounding decides they may differ from float64
