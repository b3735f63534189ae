"""The two ways to the CUDA kernels: what each finds, what is handed to a kernel, and what an extension refuses."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from hqtvae_fast import _cuda, _nvrtc

from .host_library import SOURCES

NAMES = sorted(file.stem for file in SOURCES.glob("*.cu"))
LIBRARY = os.environ.get("HQTVAE_TEST_EXTENSION")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.delenv(_cuda.VARIABLE, raising=False)
    _cuda.load.cache_clear()
    yield
    _cuda.load.cache_clear()


def test_without_either_both_reasons_are_given(monkeypatch, tmp_path):
    monkeypatch.setattr(_cuda, "PACKAGE", tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_nvrtc.importlib.util, "find_spec", lambda name: None)
    assert "not compiled: installing found no nvcc" in _cuda.origin()
    assert "CuPy is not installed" in _cuda.origin()
    with pytest.raises(RuntimeError, match="CUDA kernels: not compiled"):
        _cuda.operator("sample_logits")


def test_the_variable_insists(monkeypatch):
    monkeypatch.setattr(_nvrtc, "why_not", lambda: "no CuPy today")
    monkeypatch.setenv(_cuda.VARIABLE, "cupy")
    assert _cuda.origin() == "none (no CuPy today)"
    _cuda.load.cache_clear()
    monkeypatch.setenv(_cuda.VARIABLE, "ptx")
    assert "expected one of extension, cupy; got 'ptx'" in _cuda.origin()


def test_a_file_that_is_no_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "_C.so").write_text("no library")
    monkeypatch.setattr(_cuda, "PACKAGE", tmp_path)
    assert "_C.so cannot be loaded" in _cuda.origin()


@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_one_text_without_host_code(name):
    text = _nvrtc.source(name)
    assert '#include "' not in text
    assert "cuda_runtime.h" not in text
    assert text.count("struct Team {") <= 1
    assert "__global__" in text


class FakeFunction:
    max_dynamic_shared_size_bytes = 0

    def kernel(self, grid, block, arguments, *, shared_mem, enable_cooperative_groups):
        self.launched = (grid, block, arguments, shared_mem)
        self.cooperative = enable_cooperative_groups


@pytest.fixture
def launched(monkeypatch):
    """What CuPy is given, by kernel."""
    functions: dict[str, FakeFunction] = {}
    module = types.SimpleNamespace(get_function=lambda kernel: functions.setdefault(kernel, FakeFunction()))
    cuda = types.SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(), ExternalStream=lambda stream: contextlib.nullcontext()
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(_nvrtc, "_module", lambda name: module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    return functions


def parameters(kernel: str) -> list[str]:
    """Types of a kernel's parameters, as its source has them: "uint64" for addresses."""
    text = "".join(re.sub(r"\s*\\?\n", " ", _nvrtc.source(name)) for name in NAMES)
    if kernel.startswith("sample_logits"):
        found = re.search(r"SAMPLE_LOGITS_PARAMETERS\(Stored\) (.*?) template", text)
    else:
        macro = next((name for name in ("PREDICTION_HEAD", "SCORE_CODES") if kernel.startswith(name.lower())), None)
        start = rf"#define {macro}_KERNEL.*? name\(" if macro else rf"\b{kernel}\("
        found = re.search(rf"{start}([^()]*)\) *{{", text)
    assert found is not None
    one_a_type = re.split(r",\s*(?=const|int\b|long|float|bool|uint|double|signed)", found[1])
    kinds = []
    for group in one_a_type:
        kind = re.search(r"long long|float|int", group.split("*")[0])
        kinds += ["uint64" if "*" in part or "*" in group else kind[0] for part in group.split(",")]
    return [{"long long": "int64", "int": "int32", "float": "float32"}.get(kind, kind) for kind in kinds]


def given(function: FakeFunction) -> list[str]:
    return [str(value.dtype) for value in function.launched[2]]


@pytest.mark.parametrize("guidance", [None, torch.ones(3), torch.ones(()).expand(3)])
def test_arguments_of_the_draw(launched, guidance):
    rows, numbers = 3 if guidance is None else 6, torch.zeros(3, dtype=torch.int64)
    logits, out = torch.zeros(rows, 4, 10, dtype=torch.bfloat16), torch.zeros(rows, 4, dtype=torch.int64)
    scalars = (torch.tensor(1.0), torch.tensor(10), torch.tensor(1.0))
    _nvrtc.sample_logits(logits, out, torch.tensor(False), numbers, numbers, numbers, *scalars, guidance)
    function = launched["sample_logits_bf16"]
    assert given(function) == parameters("sample_logits_bf16")
    assert function.launched[0:2] == ((12,), (256,))
    assert function.launched[3] == 48
    assert not function.cooperative


@pytest.mark.parametrize("stored", range(3))
def test_arguments_of_the_head(launched, stored):
    tensors = [torch.zeros(5, 5, dtype=torch.int64) for _ in range(9)]
    _nvrtc.prediction_head(*tensors, True, stored, 132, 42, False)
    kernel = f"prediction_head_{_nvrtc.STORED[stored]}_2"
    assert f"PREDICTION_HEAD_KERNEL({kernel}, 2, " in _nvrtc.source("prediction_head")
    function = launched[kernel]
    assert given(function) == parameters(kernel)
    assert function.launched[0:2] == ((132,), (288,))
    assert function.cooperative
    assert function.max_dynamic_shared_size_bytes == function.launched[3] <= 227 * 1024


def test_cupy_refuses_a_dependent_launch(launched):
    tensors = [torch.zeros(5, 5, dtype=torch.int64) for _ in range(9)]
    with pytest.raises(RuntimeError, match="dependent: expected False, CuPy launches no kernel so; got True"):
        _nvrtc.prediction_head(*tensors, True, 0, 132, 42, True)
    assert not launched


def test_arguments_of_the_search(launched):
    z = torch.zeros(130, 16, dtype=torch.bfloat16)
    _nvrtc.score_codes(z, z, z[:129], z[:129], *[torch.zeros(2)] * 4, True)
    assert given(launched["score_codes_split"]) == parameters("score_codes_split")
    assert launched["score_codes_split"].launched[0] == (4,)
    _nvrtc.settle_codes(z, z, *[torch.zeros(2)] * 7, 0.1, 0.2, 0.3, 0.4)
    assert given(launched["settle_codes"]) == parameters("settle_codes")


# ------------------------------------------------------------------------------------------------------ the extension


@pytest.fixture(scope="session")
def extension():
    if LIBRARY is None:
        pytest.skip("not compiled here: make csrc-check compiles the extension and runs this")
    torch.ops.load_library(LIBRARY)
    return torch.ops.hqtvae_fast_cuda


def draw_arguments(**changed):
    arguments = {
        "logits": torch.zeros(2, 3, 8),
        "out": torch.zeros(2, 3, dtype=torch.int64),
        "invalid": torch.tensor(False),
        "seeds": torch.zeros(2, dtype=torch.int64),
        "step": torch.zeros(2, dtype=torch.int64),
        "position": torch.tensor(0).expand(2),
        "temperature": torch.tensor(1.0),
        "top_k": torch.tensor(8),
        "top_p": torch.tensor(1.0),
        "guidance": None,
    }
    return (arguments | changed).values()


@pytest.mark.parametrize(
    "changed,message",
    [
        ({}, "logits: expected a tensor on a CUDA device; got one that is not"),
        ({"logits": torch.zeros(2, 8)}, r"logits: expected \[\*, \*, \*\]; got \[2, 8\]"),
        ({"logits": torch.zeros(2, 3, 8).double()}, "logits: expected fp32, bf16 or fp16; got fp64"),
        (
            {"logits": torch.zeros(2, 8, 3).transpose(1, 2)},
            "logits: expected rows of neighbouring values; got stride 3",
        ),
        ({"logits": torch.zeros(2, 3, 40000)}, r"logits.shape\[2\]: expected 1 to 32768; got 40000"),
        ({"out": torch.zeros(2, 2, dtype=torch.int64)}, r"out: expected \[2, 3\]; got \[2, 2\]"),
        ({"seeds": torch.zeros(4, dtype=torch.int64)[::2]}, r"seeds: expected contiguous values; got strides \[2\]"),
        ({"guidance": torch.ones(2)}, r"seeds: expected \[1\]; got \[2\]"),
        ({"logits": torch.zeros(3, 3, 8), "guidance": torch.ones(1)}, "logits: expected two rows of each image; got 3"),
        ({"top_k": torch.tensor(8.0)}, "top_k: expected int64; got fp32"),
    ],
)
def test_what_the_draw_refuses(extension, changed, message):
    with pytest.raises(RuntimeError, match=message):
        extension.sample_logits(*draw_arguments(**changed))


def test_what_the_head_refuses(extension):
    h = torch.zeros(2 * 256 + 1, dtype=torch.bfloat16)[1:].view(2, 256)
    numbers = torch.zeros(2, dtype=torch.int64)
    rest = (torch.zeros(2, 5, dtype=torch.int64), torch.tensor(False), numbers, torch.tensor(0), torch.ones(2), numbers)
    with pytest.raises(RuntimeError, match="h: expected an address divisible by 16; got one that leaves 2"):
        extension.prediction_head(numbers, h, *rest, torch.ones(2), True, 0, 132, 42, False)
    with pytest.raises(RuntimeError, match="slots: expected 8 to 1024; got 3"):
        extension.prediction_head(numbers, h.clone(), *rest, torch.ones(2), True, 0, 132, 3, False)
    with pytest.raises(RuntimeError, match="stored: expected 0 to 2; got 3"):
        extension.prediction_head(numbers, h.clone(), *rest, torch.ones(2), True, 3, 132, 42, False)
    many = torch.zeros(17, 256, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"h.shape\[0\]: expected 1 to 16; got 17"):
        extension.prediction_head(numbers, many, *rest, torch.ones(2), True, 0, 132, 42, False)


def test_what_the_search_refuses(extension):
    z = torch.zeros(4, 12, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="z_high: expected a width divisible by 8; got 12"):
        extension.score_codes(z, z, z, z, *[torch.zeros(4)] * 4, True)


# --------------------------------------------------------------------------------------------------------------- NVRTC


def find_nvrtc() -> str | None:
    wheels = (path for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.*"))
    return os.environ.get("HQTVAE_NVRTC") or ctypes.util.find_library("nvrtc") or next(map(str, wheels), None)


def compiled(name: str) -> str:
    """PTX of a source, with the options that CuPy adds to ours."""
    found = find_nvrtc()
    if found is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc, or HQTVAE_NVRTC=path)")
    nvrtc, program = ctypes.CDLL(found), ctypes.c_void_p()
    text = _nvrtc.source(name).encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, f"{name}.cu".encode(), 0, None, None) == 0
    options = [option.encode() for option in (*_nvrtc.OPTIONS, "-ftz=true", "-arch=compute_80")]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def said(what: str) -> str:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        return text.value.decode()

    assert code == 0, said("ProgramLog")
    return said("PTX")


@pytest.mark.parametrize("name", NAMES)
def test_nvrtc_compiles_the_sources_and_subnormal_numbers_stay(name):
    """CuPy's -ftz=true reaches no operation whose bits matter."""
    ptx = compiled(name)
    assert re.findall(r"\b(?:add|mul|div)\.rn\.ftz", ptx) == []
    assert ("cvt.f64.f32" in ptx) == (name == "nearest_code")
