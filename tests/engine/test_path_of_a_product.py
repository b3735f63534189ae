"""How much a reader opens to follow one product from the pipeline's call to its kernel.

A picture is drawn step by step on the CPU, by the fused step and with the skinny product that a GPU has. Whenever
the product's kernel (here the library's) is entered, the functions of this package that are waiting for it are counted:
Python's own stack. What is entered and left before (checks of the request, a context manager, progress, the choice of
a backend) does not wait; torch's and Python's own functions are not ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import engine

import hqtvae_fast
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import fused_step
from hqtvae_fast.ops.kernels.skinny_linear import torch as library

PACKAGE = str(Path(hqtvae_fast.__file__).parent)
NAMES, FILES = 10, 7


class Enough(Exception):
    pass


def path_to(frame) -> tuple[tuple[str, str], ...] | None:
    """(file, function) from the pipeline's call down to this frame; None where nobody called a pipeline."""
    found = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            found.append((code.co_filename.removeprefix(PACKAGE + "/"), code.co_qualname))
            if code is HQTVAEPipeline.__call__.__code__:
                return tuple(reversed(found))
        frame = frame.f_back
    return None


def test_the_path_of_a_product_is_short(monkeypatch):
    monkeypatch.setattr(fused_step, "is_skinny", lambda x: True)
    skip = engine("skip_query")  # which the fused step alone has
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="fp32", plan=skip)
    paths = set()

    def watch(frame, event, _):
        if event == "call" and frame.f_code is library.skinny_linear.__code__:
            paths.add(path_to(frame))

    def stop(step, _):
        if step == 2:
            raise Enough

    sys.setprofile(watch)
    try:
        with pytest.raises(Enough):
            pipe(prompt="a red heart", on_step=stop, progress=False, output_type="codes")
    finally:
        sys.setprofile(None)
    assert {"FusedStep.body", "FusedStep.head"} <= {name for path in paths for _, name in path}
    for path in paths:
        assert len(set(path)) <= NAMES, path
        assert len({file for file, _ in path}) <= FILES, path
