"""Code usage, on counts whose answer is plain."""

from __future__ import annotations

import pytest
import torch

from hqtvae_fast.train.code_usage import perplexity, running_usage


def test_perplexity():
    assert float(perplexity(torch.full((8,), 5))) == pytest.approx(8)
    assert float(perplexity(torch.tensor([3, 0, 0, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([2.0, 2.0, 0.0]))) == pytest.approx(2)
    assert float(perplexity(torch.zeros(4))) == pytest.approx(1)


def test_running_usage_is_a_share_of_the_mean():
    counts = torch.tensor([10.0, 9.0, 0.5, 0.4])  # a tenth of the mean is 0.4975
    assert float(running_usage(counts)) == 0.75
    assert float(running_usage(counts * 1e-3)) == 0.75
