"""A kernel of csrc/cuda as a CPU can run it: its own text, as NVRTC gets it, on the emulator's instructions."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

from hqtvae_fast import _nvrtc

EMULATOR = Path(__file__).with_name("emulator.h")
REPLACED = {  # what no C++ compiler takes, by what the emulator has
    'asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");': "emulated->team.arrive_and_wait();",
    'asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = std::log2(x);",
    'asm("add.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));': "c = a + b;",
    'asm("mul.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));': "c = a * b;",
    'asm("div.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));': "c = a / b;",
    'asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));': "d = std::fma(a, b, c);",
    'asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));': "y = x;",
    'asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));': (
        "sum = uint32_t{to_bf16(high_bf16(a) * high_bf16(b) + high_bf16(c))} << 16"
        " | to_bf16(low_bf16(a) * low_bf16(b) + low_bf16(c));"
    ),
    "extern __shared__ __align__(128) unsigned char memory[];": "unsigned char* memory = emulated->memory();",
    "extern __shared__ __align__(1024) unsigned char memory[];": "unsigned char* memory = emulated->memory();",
}
LDMATRIX = re.compile(r'asm volatile\("ldmatrix.*?"memory"\);', re.S)
FLAGS = ("-O1", "-std=c++20", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-pthread", "-fno-strict-aliasing")


def emulated_source(name: str) -> str:
    """With the instructions of ptx.h taken from the emulator."""
    text = _nvrtc.source(name)
    for original, replacement in REPLACED.items():
        assert text.count(original) <= 1
        text = text.replace(original, replacement)
    text = LDMATRIX.sub("load_four_matrices(r, address);", text)
    end = "}  // namespace hqtvae"
    first = text.rindex("namespace hqtvae {", 0, text.index("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900"))
    last = text.index(end, text.index("void let_next_kernel_start()")) + len(end)
    return text[:first] + text[last:]


def compile_emulated(folder: Path, text: str, entry: str, *options: str) -> ctypes.CDLL:
    """``entry``: C++ that follows the kernel and exports what the test calls."""
    source, library = folder / "emulated.cpp", folder / "emulated.so"
    source.write_text(f'#include "{EMULATOR}"\n{text}{entry}')
    subprocess.run(["g++", *FLAGS, *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
