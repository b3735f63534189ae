"""Every file that ARCHITECTURE and CONTRIBUTING name is there, and so is every name beside a file in a table."""

from __future__ import annotations

import ast
import re

import pytest
from pages import ROOT

PAGES = ("docs/ARCHITECTURE.md", "CONTRIBUTING.md")
FILE = re.compile(r"[\w./<>-]+\.(?:py|pyi|json|md|yml|cu|cpp|svg)|[\w./<>-]+/")
ANYWHERE = {"reference.py", "spec.py", "triton.py", "cuda.py", "torch.py", "onednn.py", "native.py", "__init__.py"}


def code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def is_there(name: str) -> bool:
    places = (ROOT, ROOT / "hqtvae_fast", ROOT / ".github" / "workflows")
    return name in ANYWHERE or "<op>" in name or any((place / name).exists() for place in places)


def defined(file: str) -> set[str]:
    """Functions and classes of a file, methods as Class.method and by themselves."""
    tree = ast.parse((ROOT / "hqtvae_fast" / file).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{below.name}" for below in node.body if isinstance(below, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_file_that_a_page_names_is_there(page):
    names = [name for name in code((ROOT / page).read_text(encoding="utf-8")) if FILE.fullmatch(name)]
    assert len(names) > 10
    assert [name for name in names if not is_there(name)] == []


def test_each_name_on_the_way_to_a_kernel_is_defined_in_its_file():
    rows = re.findall(r"^\| (`.+`.*) \| `(\S+\.py)` \|$", (ROOT / PAGES[0]).read_text(encoding="utf-8"), re.MULTILINE)
    pairs = [(name, file) for cell, file in rows for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(pairs) >= 9
    missing = [f"{file}:{name}" for name, file in pairs if name not in defined(file)]
    assert missing == []
