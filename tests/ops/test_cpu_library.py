"""A compiled library that lacks what this version calls is not used, and says so."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hqtvae_fast.ops import cpu_library


@pytest.mark.skipif(cpu_library.load()[0] is None, reason=f"compiled kernels: {cpu_library.load()[1]}")
def test_a_library_built_from_older_sources(monkeypatch):
    monkeypatch.setitem(cpu_library._SIGNATURES, "hqtvae_of_tomorrow", ())
    kernels, reason = cpu_library.load.__wrapped__()
    assert kernels is None
    assert "built from older sources" in reason
    assert "has no hqtvae_of_tomorrow; install again" in reason


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_fake_tensor_has_no_memory_to_read():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"got \[2, 3\] .* on cpu without memory, a fake tensor"):
        cpu_library.buffer(torch.zeros(2, 3), torch.float32, 6)
