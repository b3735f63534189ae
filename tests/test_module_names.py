"""A module is what its name gives, however it is asked for: no function has the name of a module beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import LONGEST

SCRIPT = """
import importlib, json, pkgutil, sys
import hqtvae_fast

def leaves(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name.endswith(("triton_kernels", "__main__", "._cpu")):
            continue  # they need Triton, are a program, or are no module but compiled code
        parent, leaf = sys.modules[package.__name__], found.name.rpartition(".")[2]
        before = getattr(parent, leaf, None)  # what a package gives by itself, before the module is loaded
        module = importlib.import_module(found.name)
        exec(f"import {found.name} as by_import", names := {})
        if not (before in (None, module) and getattr(parent, leaf) is module is names["by_import"]):
            hidden.append(found.name)
        seen.append(found.name)
        if found.ispkg:
            leaves(module)

seen, hidden = [], []
leaves(hqtvae_fast)
print(json.dumps([seen, hidden]))
"""


def test_no_function_hides_a_module():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen, hidden = json.loads(result.stdout.splitlines()[-1])
    assert {"hqtvae_fast.ops.kernels.nearest_code.torch", "hqtvae_fast.engine.loop"} <= set(seen)
    assert hidden == [], hidden


def test_the_test_files_that_begin_first_are_there():
    files = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert set(LONGEST) <= set(files)
    assert len(files) == len(set(files)), "expected test files of names of their own"
