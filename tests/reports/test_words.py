"""The field's words, not private ones, in the names and texts that a reader meets; CONTRIBUTING.md has the glossary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRIVATE = {  # what a word was called here, and what everybody calls it
    r"few rows?": "skinny",
    r"narrow(ed|er|s)?": "quantized",
    r"lanes?": "streams",
    r"tall(y|ies)": "counters",
    r"yardsticks?": "baseline",
}
PLAIN = {  # where such a word is plain English or somebody else's name
    ("hqtvae_fast/tune/launches.py", "narrow"): "torch's Tensor.narrow",
}


def words(name: str) -> str:
    """``draw_fewRows`` -> ``draw few rows``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+", " ", name).lower()


def private(text: str) -> list[str]:
    return [found[0] for word in PRIVATE for found in re.finditer(rf"\b{word}\b", text)]


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every identifier, and every string that could be one: the keys of a case, choices of an option."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "asname", "arg", "module"):
            if isinstance(found := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), found
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.lineno, node.value


def helps(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts of more than a word that are no docstrings of ours: options' helps, messages, headings of tables."""
    quiet = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
            yield node.lineno, node.value


def in_source(file: Path, name: str) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lines = {
        (line, word)
        for line, text in [(0, name), *names(tree), *helps(tree)]
        for word in private(words(text))
        if (name, word) not in PLAIN
    }
    return [f"{name}:{line}: {word}" for line, word in sorted(lines)]


def in_page(file: Path, name: str) -> list[str]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        found += [f"{name}:{number}: {word}" for word in private(line.lower())]
    return found


def test_the_check_sees_names_keys_helps_and_files(tmp_path):
    file = tmp_path / "few_rows.py"
    file.write_text(
        '"""Narrow things."""\nimport lanes\n\n\nclass FewRows:\n    def run(self, narrow):\n'
        '        case["tally"] = 1\noption(help="Of narrower numbers.")\nrow, few = lane_of, 3\n'
    )
    assert in_source(file, "few_rows.py") == [
        "few_rows.py:0: few rows",
        "few_rows.py:2: lanes",
        "few_rows.py:5: few rows",
        "few_rows.py:6: narrow",
        "few_rows.py:7: tally",
        "few_rows.py:8: narrower",
        "few_rows.py:9: lane",
    ]
    page = tmp_path / "page.md"
    page.write_text("# A page\n\nOf yardsticks, and arrows.\n")
    assert in_page(page, "page.md") == ["page.md:3: yardsticks"]


def test_names_and_texts_use_the_fields_words():
    sources = [file for folder in ("hqtvae_fast", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
    found = [line for file in sources for line in in_source(file, file.relative_to(ROOT).as_posix())]
    found += [line for file in pages for line in in_page(file, file.relative_to(ROOT).as_posix())]
    assert len(sources) > 300
    assert found == [], "\n".join(found)
