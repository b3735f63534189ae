"""The prediction head's kernel itself, run on a CPU by an emulator: its logits and draws against the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hqtvae_fast import _nvrtc
from hqtvae_fast.ops.prediction_head import spec
from hqtvae_fast.ops.prediction_head.cuda import shared_bytes
from hqtvae_fast.ops.prediction_head.table import HeadTable
from hqtvae_fast.ops.spec import Case

from .host_library import pointer

EMULATOR = Path(__file__).with_name("emulator.h")
REPLACED = {  # what no C++ compiler takes, by what the emulator has
    'asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");': "emulated->team.arrive_and_wait();",
    'asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = std::log2(x);",
    "extern __shared__ __align__(128) unsigned char memory[];": "unsigned char* memory = emulated->memory();",
}
ENTRY = """
static struct { const void *table, *h; long long* codes; bool* invalid; const long long *seeds, *step;
  const float* temperature; const long long* top_k; const float* top_p; int images, draw_top, slots; } given;
template <auto kernel>
void call() {
  kernel(static_cast<const hqtvae::HeadTable*>(given.table), static_cast<const uint16_t*>(given.h), given.codes,
         given.invalid, given.seeds, given.step, given.temperature, given.top_k, given.top_p, 5, given.images,
         given.draw_top, given.slots);
}
extern "C" bool run_head(int mma_rows, int blocks, int shared, const void* table, const void* h, long long* codes,
    bool* invalid, const long long* seeds, const long long* step, const float* temperature, const long long* top_k,
    const float* top_p, int images, int draw_top, int slots) {
  given = {table, h, codes, invalid, seeds, step, temperature, top_k, top_p, images, draw_top, slots};
  return run_grid(blocks, hqtvae::kHeadThreads, shared, mma_rows == 1 ? call<prediction_head_1>
                  : mma_rows == 2 ? call<prediction_head_2> : call<prediction_head_4>);
}
"""


def emulated_source() -> str:
    """The kernel's own text, as NVRTC gets it, with the instructions of ptx.h taken from the emulator."""
    text = _nvrtc.source("prediction_head")
    for original, replacement in REPLACED.items():
        assert text.count(original) == 1
        text = text.replace(original, replacement)
    end = "}  // namespace hqtvae"
    first = text.index("// The instructions that CUDA C++ has no words for")
    last = text.index(end, text.index("void let_next_kernel_start()")) + len(end)
    return text[:first] + text[last:]


@pytest.fixture(scope="module")
def run_head(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return compile_head(tmp_path_factory.mktemp("emulated"), emulated_source())


def compile_head(folder, text):
    source, library = folder / "head.cpp", folder / "head.so"
    source.write_text(f'#include "{EMULATOR}"\n{text}{ENTRY}')
    flags = ("-O1", "-std=c++20", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-pthread", "-fno-strict-aliasing")
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).run_head
    function.restype = ctypes.c_bool
    return function


def run(run_head, inputs, mma_rows, blocks, slots=9):
    """Codes, and bottom logits, of the kernel on these inputs."""
    h, codes, invalid, *rest, head, draw_top = inputs
    made, drawn = HeadTable.of(head.weights, head.num_heads, head.gelu), codes.clone()
    addresses = map(pointer, (made.table, h, drawn, invalid, *rest))
    finished = run_head(mma_rows, blocks, shared_bytes(slots), *addresses, len(h), int(draw_top), slots)
    assert finished, "a deadlock"
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
    ],
)
def test_the_kernel_computes_the_head(run_head, sizes, mma_rows, blocks):
    inputs = spec.make_inputs(Case("", sizes, torch.bfloat16), torch.device("cpu"), 3)
    check(inputs, *run(run_head, inputs, mma_rows, blocks))


@pytest.mark.slow
def test_its_bits_depend_on_neither_grid_nor_ring_nor_rows(run_head):
    inputs = spec.make_inputs(Case("", {"B": 2, "D": 256, "L": 1, "K": 40}, torch.bfloat16), torch.device("cpu"), 4)
    codes, logits = run(run_head, inputs, 1, 1)
    for mma_rows, blocks, slots in ((1, 3, 20), (2, 2, 8)):
        again, bits = run(run_head, inputs, mma_rows, blocks, slots)
        assert torch.equal(again, codes)
        assert torch.equal(bits, logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        ("    worker.barrier();\n  });", "  });"),  # between products
        ("team.sync();\n    const int cells", "const int cells"),  # before warps' sums are added
        ("mbarrier_wait(ring.empty(), ring.cursor.parity ^ 1);", ""),  # before a slot is overwritten
        ("if (lane == 0) mbarrier_arrive(taken.empty());", ";"),  # a slot is never given back
    ],
)
def test_planted_faults_are_seen(tmp_path, fault):
    """The gate itself: without one of its barriers the kernel is wrong, or never ends."""
    text = emulated_source()
    assert text.count(fault[0]) == 1
    broken = compile_head(tmp_path, text.replace(*fault))
    inputs = spec.make_inputs(Case("", {"B": 2, "D": 256, "L": 1, "K": 40}, torch.bfloat16), torch.device("cpu"), 4)
    with pytest.raises(AssertionError):
        check(inputs, *run(broken, inputs, 1, 2))
