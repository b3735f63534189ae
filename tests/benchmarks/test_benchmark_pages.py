"""The pages of ``benchmarks/``: short enough to be read, and their links and programs exist."""

from __future__ import annotations

import importlib.util
import re

import pytest

from benchmarks.measuring.environment import HERE

PAGES = sorted(page for page in HERE.rglob("*.md"))


def test_the_first_page_is_short():
    lines = (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE)))
def test_links_and_programs_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for program in re.findall(r"python -m (benchmarks[.\w]*)", text):
        assert importlib.util.find_spec(program), program


def test_every_study_is_in_the_list():
    listed = (HERE / "studies/README.md").read_text(encoding="utf-8")
    for file in [*(HERE / "studies").glob("*.md"), *(HERE / "studies").glob("*.py")]:
        assert file.name in listed or file.stem in ("README", "__init__"), file.name


BELOW = {  # what a folder's modules import of the others'
    "measuring": set(),
    "entrants": set(),
    "report": {"measuring"},
    "suites": {"measuring", "entrants", "options"},
    "gate": {"measuring", "entrants", "suites"},
    "studies": {"measuring", "entrants", "gate", "options"},
}


@pytest.mark.parametrize("folder", BELOW)
def test_imports_run_one_way(folder):
    text = "".join(file.read_text(encoding="utf-8") for file in (HERE / folder).glob("*.py"))
    assert set(re.findall(r"^\s*from benchmarks\.(\w+)", text, re.M)) <= {*BELOW[folder], folder}
