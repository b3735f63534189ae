"""The compiled part of the package; everything static is in pyproject.toml.

``csrc/cpu`` becomes ``hqtvae_fast/_cpu*.so``: plain C functions that are loaded through ctypes, so its build needs a
C++ compiler (GCC 10 or Clang 9 for the AVX512-BF16 instructions) and neither Python's nor torch's headers. Without one
the package works as well, only slower on such processors, and ``hqtvae info`` says so. ``BUILD_CPU=0`` leaves it out,
``BUILD_CPU=1`` makes a failing build an error; the default builds it where that succeeds.
"""

import os

from setuptools import Extension, setup

BUILD_CPU = os.environ.get("BUILD_CPU", "auto")
if BUILD_CPU not in ("auto", "0", "1"):
    raise SystemExit(f"BUILD_CPU: expected auto, 0 or 1; got {BUILD_CPU!r}")

# -fopenmp at compile time only: the OpenMP library must be the one that torch has loaded, so none is linked. Nobody
# traps on floating-point exceptions, and GCC vectorises a choice between two numbers only where it may raise them. Its
# own intrinsics draw the two warnings.
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-exceptions", "-fno-trapping-math"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
FLAGS += ["-Wno-psabi"]  # vectors are handed to nothing but what is compiled into the caller
SOURCES = ("attention_bf16", "group_norm_silu", "linear_bf16", "philox", "winograd")

cpu = Extension(
    "hqtvae_fast._cpu",
    sources=[f"csrc/cpu/{name}.cpp" for name in SOURCES],
    depends=["csrc/cpu/avx512.h"],
    extra_compile_args=FLAGS,
    language="c++",
    optional=BUILD_CPU == "auto",
)

setup(ext_modules=[] if BUILD_CPU == "0" else [cpu])
