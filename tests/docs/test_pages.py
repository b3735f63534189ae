"""What README and docs/ look like: short, narrow, code first, no link or picture that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, blocks, commands, options, words

LINES = {"README.md": 80, "benchmarks/README.md": 150, "CONTRIBUTING.md": 150, "docs/ARCHITECTURE.md": 150}
NARROW = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md"]
WIDTH = 120
LINKED = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "STATUS.md"]
THEIRS = {"--max-restarts", "--nproc-per-node", "--nnodes", "--rdzv-endpoint"}  # torchrun's
THEIRS |= {"--no-build-isolation", "--no-deps"}  # pip's
THEIRS |= {"--arch", "--checkpoint", "--candidates"}  # of modules and examples, which run in test_commands.py
THEIRS |= {"--explain"}  # of hqtvae_fast.compat


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", NARROW, ids=name_of)
def test_lines_are_few_and_narrow(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES.get(name_of(page), 149)
    assert [f"{number}: {len(line)}" for number, line in enumerate(lines, 1) if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_what_it_links_to_is_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.split("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [page for page in DOCS if page.name != "ARCHITECTURE.md"], ids=name_of)
def test_a_page_begins_with_what_one_does(page):
    assert blocks(page)[0].line <= 12


def test_readme_begins_with_what_it_is_a_picture_a_figure_and_two_commands():
    readme = PAGES[0].read_text(encoding="utf-8")
    places = [readme.index(text) for text in ("**HQ-TVAE**", "](docs/demo.jpg)", "3.83", "make demo", "make test")]
    assert places == sorted(places)
    assert blocks(PAGES[0])[0].line <= 16
    assert len([line for line in blocks(PAGES[0])[1].text.splitlines() if line]) <= 6


def test_each_page_is_linked_from_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in DOCS if f"](docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_name_their_language(page):
    shell = [block.line for block in blocks(page) if block.language not in ("bash", "python", "yaml", "bibtex")]
    assert shell == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_it_names_exist(page):
    """Of each command in a block, its own; of those in the text, any command's."""
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8"))) <= options([]) | THEIRS
    for command in commands(page):
        said = words(re.sub(r"\{(\d+)\.\.\d+\}", r"\1", command)) if not command.startswith("(") else []
        if "hqtvae" in said:
            given = said[said.index("hqtvae") + 1 :]
        elif "hqtvae_fast.cli" in said:
            given = said[said.index("hqtvae_fast.cli") + 1 :]
        else:
            continue
        deep = given[0] in ("figure", "bench") or given[1] in ("stage1", "stage2", "presets")
        assert {word for word in given if word.startswith("--")} <= options(given[: 1 + deep]), command


def test_the_page_of_operations_has_each_of_them_with_its_arguments():
    from hqtvae_fast import ops

    page = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    code = "".join(block.text for block in blocks(ROOT / "docs" / "ops.md") if block.language == "python")
    for name in ops.__all__:
        assert f"`{name}" in page, name
        if inspect.isfunction(getattr(ops, name)):
            assert f"ops.{name}(" in code, name
