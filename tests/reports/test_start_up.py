"""What loading the package, opening a model and the first call of everything cost, and what they leave alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hqtvae_fast
from hqtvae_fast import ops
from hqtvae_fast.ops.operator import operator

ROOT = Path(__file__).parents[2]
COMPILER = ("torch._dynamo", "sympy")


def fresh(script: str) -> dict[str, object]:
    """What a new process prints as JSON at the end of ``script``, which may call ``loaded()``."""
    prelude = f"""
import json, sys, time

def loaded(*names):
    return [name for name in names or {COMPILER} if name in sys.modules]
"""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", prelude + script],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_T7_the_package_alone_loads_no_torch():
    found = fresh(
        "import hqtvae_fast; dir(hqtvae_fast); print(json.dumps(loaded('torch', 'numpy', 'hqtvae_fast.ops')))"
    )
    assert found == []


def test_T7_every_public_name_is_found_when_asked_for():
    assert set(hqtvae_fast.__all__) | {"__version__"} <= set(dir(hqtvae_fast))
    for name in hqtvae_fast.__all__:
        assert getattr(hqtvae_fast, name) is not None
    assert hqtvae_fast.__version__
    assert hqtvae_fast.ops is ops
    assert hqtvae_fast.pictures.__name__ == "hqtvae_fast.pictures"  # modules too, as when importing had loaded them
    assert callable(ops.skinny_linear)
    assert sys.modules["hqtvae_fast.model.linear"].pack_linears
    for wrong in ("no_such_name", "_no_such_name"):
        with pytest.raises(AttributeError, match=f"module 'hqtvae_fast' has no attribute '{wrong}'"):
            getattr(hqtvae_fast, wrong)


def test_T7_neither_opening_nor_first_calls_load_the_compiler():
    """Of a model: opened, drawing, decoding and encoding. Of operators: one that changes its arguments, and one with
    gradients, backward pass included."""
    found = fresh("""
import torch
from hqtvae_fast import HQTVAEPipeline, ops
for dtype in ("bf16", "fp32"):
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype=dtype)
    drawn = pipe(prompt="a red circle", progress=False)
    pipe.encode([drawn.images[0]])
    pipe.decode(drawn.codes)
x, weight = torch.randn(2, 32, 4, 4), torch.ones(32, requires_grad=True)
ops.group_norm_silu(x, weight, weight).sum().backward()
qkv, keys, values = torch.zeros(1, 1, 3, 1, 32), *torch.zeros(2, 1, 1, 4, 32)
torch.ops.hqtvae_fast.decode_attention(qkv, None, keys, values, 0, None, None, "reference")
print(json.dumps(loaded()))
""")
    assert found == []


@pytest.fixture(scope="module")
def add_one():
    """An operator that changes an argument: counter += 1, and twice x is returned."""

    @operator("add_one_for_a_test", mutates_args=("counter",))
    def add_one(x: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
        counter.add_(1)
        return x * 2

    @add_one.register_fake
    def _(x: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    return torch.ops.hqtvae_fast.add_one_for_a_test.default


def test_T7_an_operator_keeps_the_guarantees_of_custom_op(add_one):
    x, counter = torch.ones(2), torch.zeros(2)
    torch.library.opcheck(add_one, (x, counter))
    assert str(add_one._schema).endswith("(Tensor x, Tensor(a1!) counter) -> Tensor")
    version = counter._version
    add_one(x, counter)
    assert counter._version > version  # autograd sees that what it may have saved is no longer the same
    result = add_one(x.requires_grad_(), counter)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        result.sum().backward()


def test_T7_opcheck_still_refuses_a_result_that_is_an_argument():
    @operator("alias_for_a_test", mutates_args=())
    def alias(x: torch.Tensor) -> torch.Tensor:
        return x

    alias.register_fake(torch.empty_like)
    with pytest.raises(Exception, match="alias"):
        torch.library.opcheck(torch.ops.hqtvae_fast.alias_for_a_test.default, (torch.ones(2),))


@pytest.mark.slow
def test_T7_operators_compile_whole(add_one):
    def twice(x, counter):
        return add_one(add_one(x, counter), counter)

    counter = torch.zeros(2)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(2), counter), torch.full((2,), 4.0))
    assert torch.equal(counter, torch.full((2,), 2.0))


@pytest.mark.slow
def test_T7_seconds_of_cpu():
    """Each bound is several times what an idle EPYC takes: 0.35, 0.13 and 0.10."""
    script = """
import torch
times = [time.process_time()]
from hqtvae_fast import HQTVAEPipeline
times.append(time.process_time())
pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu")
times.append(time.process_time())
pipe(prompt="a red circle", progress=False)
times.append(time.process_time())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""
    imported, opened, drew = map(min, zip(*(fresh(script) for _ in range(2)), strict=True))
    assert imported < 0.9
    assert opened < 0.6
    assert drew < 0.6
