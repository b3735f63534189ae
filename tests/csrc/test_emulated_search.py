"""The exact search's kernels themselves (their form for sm_80), run on a CPU by an emulator."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from hqtvae_fast.ops import nearest_code
from hqtvae_fast.ops.kernels.nearest_code import cuda as search

from .emulated import compile_emulated, emulated_source
from .host_library import pointer

ENTRY = """
static struct { const uint16_t *z[2], *codes[2]; const float* square; float *best, *second; int *index, rows, count,
  width; } scoring;
static struct { const float *z, *book; const double *length, *longest; const float *best, *second; const int* index;
  long long* found; signed char* settled; int rows, codes, channels; float bound[4]; } settling;

template <auto kernel>
void score() {
  const auto& s = scoring;
  kernel(s.z[0], s.z[1], s.codes[0], s.codes[1], s.square, s.best, s.second, s.index, s.rows, s.count, s.width);
}
void settle() {
  const auto& [z, book, length, longest, best, second, index, found, settled, rows, codes, channels, bound] = settling;
  settle_codes(z, book, length, longest, best, second, index, found, settled, rows, codes, channels, bound[0], bound[1],
               bound[2], bound[3]);
}
extern "C" bool run_scores(const uint16_t* z_high, const uint16_t* z_low, const uint16_t* high, const uint16_t* low,
    const float* square, float* best, float* second, int* index, int rows, int count, int width, int split) {
  scoring = {{z_high, z_low}, {high, low}, square, best, second, index, rows, count, width};
  const int tiles = hqtvae::ceil_div(rows, 128) * hqtvae::ceil_div(count, 128);
  return run_grid(tiles, 256, 128 * 1024, split ? score<score_codes_split> : score<score_codes_plain>);
}
extern "C" bool run_settle(const float* z, const float* book, const double* length, const double* longest,
    const float* best, const float* second, const int* index, long long* found, signed char* settled, int rows,
    int codes, int channels, float a, float b, float c, float d) {
  settling = {z, book, length, longest, best, second, index, found, settled, rows, codes, channels, {a, b, c, d}};
  return run_grid(hqtvae::ceil_div(rows, 8), 256, 0, settle);
}
"""


def operators(folder, text):
    """As _cuda.operator gives them."""
    library = compile_emulated(folder, text, ENTRY)
    library.run_scores.restype = library.run_settle.restype = ctypes.c_bool

    def score_codes(*arguments):
        *tensors, split = arguments
        sizes = (len(tensors[0]), len(tensors[2]), tensors[0].shape[1])
        assert library.run_scores(*map(pointer, tensors), *sizes, int(split)), "a deadlock or a misaligned access"

    def settle_codes(*arguments):
        tensors, bound = arguments[:9], map(ctypes.c_float, arguments[9:])
        sizes = (len(tensors[0]), len(tensors[1]), tensors[0].shape[1])
        assert library.run_settle(*map(pointer, tensors), *sizes, *bound)

    return {"score_codes": score_codes, "settle_codes": settle_codes}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return operators(tmp_path_factory.mktemp("search"), emulated_source("nearest_code"))


def check(kernels, monkeypatch, dtype):
    """Codes of 130 rows, near a code each or anywhere, among 150 of 72 channels: no size a multiple of its tile."""
    monkeypatch.setattr(search._cuda, "operator", kernels.get)
    generator = torch.Generator().manual_seed(5)
    book = torch.randn(150, 72, generator=generator)
    book[140] = book[3]  # of equal codes the first is the answer
    z = torch.randn(130, 72, generator=generator)
    z[:60] = book[torch.arange(60)] + 0.1 * z[:60]
    z[60], z[61] = book[140], float("nan")
    z, book = z.to(dtype), book.to(dtype)
    found, settled = search.search(z, book)
    assert torch.equal(found, nearest_code(z, book, backend="reference"))
    assert bool(settled[60])
    assert int(settled.sum()) < 20


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_find_the_nearest_codes(emulated, monkeypatch, dtype):
    check(emulated, monkeypatch, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        ("(piece ^ row % 8) * 16", "piece * 16"),  # no swizzle
        ("i / 4 * 8 + lane % 4 * 2 + i % 2", "i / 4 * 8 + i % 2"),
        ("found[half].join_lane(2);", ""),
        ("{place(chunk, 2), place(chunk, 0), place(chunk, 0)}", "{place(chunk, 2), place(chunk, 0), place(chunk, 2)}"),
        ("if (apart < closest)", "if (apart > 0.0 && apart < closest)"),  # what float64 decides
    ],
)
def test_planted_faults_are_seen(tmp_path, monkeypatch, fault):
    """The gate itself."""
    text = emulated_source("nearest_code")
    assert text.count(fault[0]) == 1
    with pytest.raises(AssertionError):
        check(operators(tmp_path, text.replace(*fault)), monkeypatch, torch.float32)
