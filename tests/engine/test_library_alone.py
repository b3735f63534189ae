"""What runs where our kernels do not: a step and a decode by libraries alone. None of it may wait for the device, or no
graph could be captured of it. On fake tensors of a fake GPU, with our operators opened to what computes them."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hqtvae_fast.backend import VARIABLE
from hqtvae_fast.config import preset
from hqtvae_fast.engine.loop import Drawing, SamplingParams
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.linear import Linear, QuantizedWeight
from hqtvae_fast.ops import sample_logits
from hqtvae_fast.plan import Plan, using

CUDA = "cuda"
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "multinomial"}
WAITS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"}


class Waits(AssertionError):
    pass


class Opened(TorchDispatchMode):
    """Runs what our operators run, counted by backend, and refuses what waits for a device."""

    def __init__(self):
        super().__init__()
        self.ran = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if function.namespace == "hqtvae_fast":
            assert not kwargs
            backends = importlib.import_module(f"hqtvae_fast.ops.kernels.{name}").BACKENDS
            (chosen,) = (backend for backend in backends if backend.name == args[-1])
            self.ran.add((name, chosen.name, chosen.source))
            with self, Indexing():  # both are put aside for what a mode itself calls
                return chosen.run(*args[:-1])
        if name in WAITS or f"{name}.{function._overloadname}" in WAITS:
            raise Waits(f"{function} waits for the device")
        result = function(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            source = next(x for x in reversed(args) if isinstance(x, Tensor))
            if source.device.type != result.device.type and source.ndim:
                raise Waits(f"{function} from {source.device} to {result.device} waits")
        return result


class Indexing(TorchFunctionMode):
    """Python's indexing by views: torch's own asks the device's driver first, of which there is none. What reads a
    number is refused, as it waits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.__getitem__:
            return view(*args)
        if function is Tensor.__setitem__:
            return torch.ops.aten.copy_.default(view(*args[:2]), args[2])
        if function is Tensor.contiguous:
            return dense(*args, **(kwargs or {}))
        if function is Tensor.copy_:
            return torch.ops.aten.copy_.default(*args, **(kwargs or {}))
        if function in READS:
            raise Waits(f"{function.__name__} reads what is on the device")
        return function(*args, **(kwargs or {}))


def dense(x, memory_format=torch.contiguous_format):
    return x if x.is_contiguous(memory_format=memory_format) else x.clone(memory_format=memory_format)


READS = (Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__, Tensor.item, Tensor.tolist, Tensor.cpu)


def view(x, where):
    dim = 0
    for item in where if isinstance(where, tuple) else (where,):
        if item is None:
            x = x.unsqueeze(dim)
        elif item is Ellipsis:
            dim = x.ndim - 1 - (len(where) - 1 - where.index(Ellipsis)) if isinstance(where, tuple) else x.ndim - 1
        elif isinstance(item, int):
            x, dim = x.select(dim, item), dim - 1
        elif isinstance(item, Tensor):  # a data-dependent shape if it is bool
            return torch.ops.aten.index.Tensor(x, [None] * dim + [item])
        else:
            x = torch.ops.aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1)
        dim += 1
    return x


def to_gpu(model, dtype):
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@pytest.fixture
def fake_gpu():
    with mock.patch.dict(os.environ), torch.inference_mode():
        os.environ.pop(VARIABLE, None)
        yield lambda: (FakeTensorMode(), torch.device(CUDA), Indexing())


def run(modes, work):
    fake, device, indexing = modes
    with fake, device, indexing, using(Plan("library")):
        ready = work()
        with Opened() as opened:
            ready()
    return opened.ran


@pytest.mark.parametrize("batch", [1, 50])
def test_a_step_by_libraries_alone_waits_for_nothing(fake_gpu, batch):
    config = preset("S").transformer
    config = replace(config, body=replace(config.body, num_layers=2))
    with without_values():
        model = HQTransformer(config).eval()

    def ready():
        to_gpu(model, torch.bfloat16)
        seeds = torch.zeros(batch, dtype=torch.int64)
        labels = torch.zeros(batch, dtype=torch.int64)
        params = SamplingParams((1.0,) * config.num_levels, (2048,) * config.num_levels, (0.9,) * config.num_levels)
        drawing = Drawing.make(model, labels, seeds, params, engine="fused")
        return lambda: drawing.run(steps=range(2))

    ran = run(fake_gpu(), ready)
    assert {source for _, _, source in ran} <= {"library", "reference"}
    ops = {"add_layer_norm", "decode_attention", "embed_codes", "local_attention", "sample_logits"}
    assert {op for op, _, _ in ran} >= ops
    assert ("sample_logits", "torch", "library") in ran


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    "kind, product", [("int8", "torch/int_mm"), pytest.param("fp8", "torch/scaled_mm", marks=pytest.mark.slow)]
)
def test_products_in_8_bits_by_libraries_alone_wait_for_nothing(fake_gpu, kind, product):
    config = preset("S").transformer
    config = replace(config, body=replace(config.body, num_layers=2))
    with without_values():
        model = HQTransformer(config).eval()

    def ready():
        to_gpu(model, torch.bfloat16)
        for layer in model.modules():
            if isinstance(layer, Linear):
                layer.adopt(QuantizedWeight.without_values(layer.weight, kind))
        seeds, labels = (torch.zeros(50, dtype=torch.int64) for _ in range(2))
        params = SamplingParams((1.0,) * 2, (2048,) * 2, (None,) * 2)
        options = EngineOptions.read("quantized_products=all")
        drawing = Drawing.make(model, labels, seeds, params, engine="fused", options=options)
        return lambda: drawing.run(steps=range(2))

    ran = run(fake_gpu(), ready)
    assert {source for _, _, source in ran} <= {"library", "reference"}
    assert {name for op, name, _ in ran if op == "quantized_linear"} == {product}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # a mark of weights looks at it
def test_a_decode_by_libraries_alone_waits_for_nothing(fake_gpu):
    config = preset("S").vae
    with without_values():
        vae = HQVAE(config).eval()

    def ready():
        to_gpu(vae, torch.bfloat16)
        vae.fold()
        codes = [torch.zeros(2, side, side, dtype=torch.int64) for side in config.level_sides]
        return lambda: vae.decode_bytes(codes)

    ran = run(fake_gpu(), ready)
    assert {source for _, _, source in ran} <= {"library", "reference"}
    assert {op for op, _, _ in ran} >= {"conv_bytes", "group_norm_silu", "upsample_conv"}


def test_the_reference_of_the_draw_would_wait(fake_gpu):
    """That the gate closes: it reads k and p."""

    def ready():
        logits, seeds = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)
        return lambda: sample_logits(logits, seeds=seeds, step=0, position=0, top_k=3, backend="reference")

    with pytest.raises(Waits, match="__int__"):
        run(fake_gpu(), ready)
