"""Attention that is written out for training on a CPU, against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hqtvae_fast.model import attention as module
from hqtvae_fast.model.attention import attention

MASK = torch.tensor([[1, 0, 0, 0, 0]] + 4 * [[1, 1, 1, 1, 1]], dtype=torch.bool)


def inputs(dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, 5, 16, generator=draw).to(dtype).requires_grad_() for _ in range(3)]


def both(dtype: torch.dtype, **how):
    """Outputs and gradients of ours and of torch's in fp64."""
    found = []
    for values, run in ((inputs(dtype), attention), ([x.detach().double() for x in inputs(dtype)], torch_attention)):
        values = [value.detach().requires_grad_() for value in values]
        result = run(*values, **how)
        result.backward(torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result))
        found.append([result.detach(), *(value.grad for value in values)])
    return found


def torch_attention(q, k, v, mask=None, causal=False):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


@pytest.mark.parametrize("how", [{}, {"mask": MASK}, {"causal": True}], ids=["all", "mask", "causal"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_as_torch_has_it(how, dtype, bound):
    for ours, theirs in zip(*both(dtype, **how), strict=True):
        assert ours.dtype is dtype
        assert (ours.double() - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max()))


def test_torchs_own_without_gradients_and_for_long_sequences(monkeypatch):
    called = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or kernel(*a, **k))
    q, k, v = inputs(torch.float32)
    attention(q, k, v)
    assert not called
    with torch.no_grad():
        attention(q, k, v)
    monkeypatch.setattr(module, "WRITTEN_OUT", 4)
    attention(q, k, v)
    assert len(called) == 2


def test_dropout_leaves_weights_out():
    q, k, v = inputs(torch.float32)
    torch.manual_seed(0)
    kept = attention(q, k, torch.ones_like(v, requires_grad=True), dropout=0.5)
    sums = kept[..., 0]
    assert sums.std() > 0.1  # without dropout each is 1
    assert abs(float(sums.mean()) - 1) < 0.5


def test_under_autocast_products_are_narrow_and_the_softmax_wide():
    q, k, v = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention(q, k, v)
    exact = torch_attention(*(value.detach().double() for value in (q, k, v)))
    assert result.dtype is torch.bfloat16
    assert (result.double() - exact).abs().max() < 0.02
