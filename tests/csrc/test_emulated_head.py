"""The prediction head's kernel itself, run on a CPU by an emulator: its logits and draws against the reference."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from hqtvae_fast import _nvrtc
from hqtvae_fast.ops.kernels.prediction_head import spec
from hqtvae_fast.ops.kernels.prediction_head.cuda import shared_bytes
from hqtvae_fast.ops.kernels.prediction_head.table import HeadTable
from hqtvae_fast.ops.spec import Case

from .emulated import compile_emulated, emulated_source
from .host_library import pointer

ENTRY = """
static struct { const void *table, *h; long long* codes; bool* invalid; const long long *seeds, *step;
  const float* temperature; const long long* top_k; const float* top_p; int images, draw_top, slots; } given;
template <auto kernel>
void call() {
  kernel(static_cast<const hqtvae::HeadTable*>(given.table), static_cast<const uint16_t*>(given.h), given.codes,
         given.invalid, given.seeds, given.step, given.temperature, given.top_k, given.top_p, 5, given.images,
         given.draw_top, given.slots);
}
extern "C" bool run_head(int stored, int mma_rows, int blocks, int shared, const void* table, const void* h,
    long long* codes, bool* invalid, const long long* seeds, const long long* step, const float* temperature,
    const long long* top_k, const float* top_p, int images, int draw_top, int slots) {
  given = {table, h, codes, invalid, seeds, step, temperature, top_k, top_p, images, draw_top, slots};
  void (*const kernels[3][3])() = {
      {call<prediction_head_bf16_1>, call<prediction_head_bf16_2>, call<prediction_head_bf16_4>},
      {call<prediction_head_int8_1>, call<prediction_head_int8_2>, call<prediction_head_int8_4>},
      {call<prediction_head_fp8_1>, call<prediction_head_fp8_2>, call<prediction_head_fp8_4>}};
  return run_grid(blocks, hqtvae::kHeadThreads, shared, kernels[stored][mma_rows / 2]);
}
"""


@pytest.fixture(scope="module", params=[0, 1], ids=["cp.async", "bulk copies"])
def run_head(request, tmp_path_factory):
    """As an A100 and as an H100 run it."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("emulated")
    return compile_head(folder, emulated_source("prediction_head"), f"-DHAS_BULK_COPIES={request.param}")


def compile_head(folder, text, *options):
    function = compile_emulated(folder, text, ENTRY, *options).run_head
    function.restype = ctypes.c_bool
    return function


def run(run_head, inputs, mma_rows, blocks, slots=9):
    """Codes, and bottom logits, of the kernel on these inputs."""
    h, codes, invalid, *rest, head, draw_top = inputs
    made, drawn = HeadTable.of(head.weights, head.num_heads, head.gelu), codes.clone()
    addresses = map(pointer, (made.table, h, drawn, invalid, *rest))
    stored, shared = _nvrtc.STORED.index(made.stored), shared_bytes(slots, made.stored)
    finished = run_head(stored, mma_rows, blocks, shared, *addresses, len(h), int(draw_top), slots)
    assert finished, "a deadlock, a misaligned access, or one beyond shared memory"
    assert made.barrier.tolist() == [0, 0]
    return drawn, made.logits(1, len(h)).clone()


def check(inputs, drawn, logits):
    spec.check(drawn, spec.define(*inputs), inputs)
    exact, error = spec.logits_with_errors(drawn, inputs)[1]
    assert float((logits.double() - exact.flatten(0, 1)).abs().max()) <= error


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes,mma_rows,blocks",
    [
        ({"B": 2, "D": 256, "L": 2, "K": 40, "bias": 1}, 1, 2),
        ({"B": 5, "D": 256, "L": 1, "K": 33, "sigmoid": 1}, 2, 3),
        ({"B": 9, "D": 256, "L": 1, "K": 24}, 4, 2),
        ({"B": 2, "D": 512, "L": 1, "K": 40, "bias": 1, "quantized": 1}, 1, 3),
        ({"B": 8, "D": 512, "L": 1, "K": 33, "sigmoid": 1, "quantized": 2}, 2, 2),
        ({"B": 16, "D": 512, "L": 1, "K": 24, "bias": 1, "quantized": 1}, 4, 1),
    ],
)
def test_the_kernel_computes_the_head(run_head, sizes, mma_rows, blocks):
    inputs = spec.make_inputs(Case("", sizes, torch.bfloat16), torch.device("cpu"), 3)
    check(inputs, *run(run_head, inputs, mma_rows, blocks))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"D": 256}, {"D": 512, "quantized": 1}])
def test_its_bits_depend_on_neither_grid_nor_ring_nor_rows(run_head, sizes):
    """Nor on the other images."""
    case = Case("", {"B": 2, "L": 1, "K": 40, **sizes}, torch.bfloat16)
    inputs = spec.make_inputs(case, torch.device("cpu"), 4)
    codes, logits = run(run_head, inputs, 1, 1)
    for mma_rows, blocks, slots in ((1, 3, 20), (2, 2, 8)):
        again, bits = run(run_head, inputs, mma_rows, blocks, slots)
        assert torch.equal(again, codes)
        assert torch.equal(bits, logits)
    h, drawn, invalid, seeds, *rest = inputs
    alone, bits = run(run_head, (h[1:], drawn[1:], invalid, seeds[1:], *rest), 4, 2)
    assert torch.equal(alone, codes[1:])
    assert torch.equal(bits, logits[4:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        ("    worker.barrier();\n  });", "  });"),  # between products
        ("team.sync();\n    const int cells", "const int cells"),  # before warps' sums are added
        ("mbarrier_wait(ring.empty(), ring.cursor.parity ^ 1);", ""),  # before a slot is overwritten
        ("if (lane == 0) mbarrier_arrive(ring.empty());", ";"),  # a slot is never given back
        ("if (run + 1 < Ring<Weight>::Own::kRuns) return;", ""),  # a slot is given back before its second run is read
        ("arrive_and_expect(ring.full(), rows * kRowBytes)", "arrive_and_expect(ring.full(), 8 * kRowBytes)"),
        ("+ 16 * lane, from + row * stride", "+ 8 * lane, from + row * stride"),  # misaligned
        ("value = mul(value, scale[column]);", ";"),
        ("qkv.scale ? qkv.scale + skipped", "qkv.scale ? qkv.scale"),  # pass 1 has no rows of queries
        ("int64_t{D} * D * Weight::kBytes", "0"),
    ],
)
def test_planted_faults_are_seen(tmp_path, fault):
    """The gate itself: without one of its barriers or with a wrong scale the kernel is wrong, or never ends."""
    text = emulated_source("prediction_head")
    assert text.count(fault[0]) == 1
    broken = compile_head(tmp_path, text.replace(*fault), f"-DHAS_BULK_COPIES={int('rows * kRowBytes' in fault[0])}")
    case = Case("", {"B": 2, "D": 512, "L": 1, "K": 40, "quantized": 1}, torch.bfloat16)
    inputs = spec.make_inputs(case, torch.device("cpu"), 4)
    with pytest.raises(AssertionError):
        check(inputs, *run(broken, inputs, 1, 2))
