"""Nought is a number: nothing that may be a number or None is tested by ``or``, which takes 0 for None."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hqtvae_fast"
MAYBE = re.compile(
    r"(?=.*\bNone\b)(?=.*\b(int|float|Counted|Weight|Interval)\b)(?!.*[tT]uple|.*list|.*dict|.*Sequence)"
)
"""An annotation of what may be a number or None."""


def may_be_none(annotation: ast.expr | None) -> bool:
    return annotation is not None and MAYBE.match(ast.unparse(annotation)) is not None


def fields_of(trees: list[ast.Module]) -> set[str]:
    """Fields of classes that may be a number or None."""
    bodies = [node.body for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    declared = [line for body in bodies for line in body if isinstance(line, ast.AnnAssign)]
    return {line.target.id for line in declared if isinstance(line.target, ast.Name) and may_be_none(line.annotation)}


def swallowed(tree: ast.Module, fields: set[str]) -> list[str]:
    """``or``s of a module whose first part may be 0."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        own = {argument.arg for argument in arguments if may_be_none(argument.annotation)}
        for node in ast.walk(function):
            for part in node.values[:-1] if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) else []:
                if (isinstance(part, ast.Name) and part.id in own) or (
                    isinstance(part, ast.Attribute) and part.attr in fields
                ):
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_G5_no_number_is_tested_by_or():
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
    fields = fields_of(list(trees.values()))
    assert {"learning_rate", "steps", "stop_after", "scale"} <= fields
    found = {str(file.relative_to(PACKAGE)): swallowed(tree, fields) for file, tree in trees.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_G5_the_check_sees_one():
    tree = ast.parse("def f(rate: float | None, run: Run) -> float:\n    return rate or run.scale or 1.0")
    assert swallowed(tree, {"scale"}) == ["line 2: rate or run.scale or 1.0"] * 2


@pytest.mark.parametrize("columns", [0, -1])
def test_G5_a_sheet_of_no_columns(columns):
    from PIL import Image

    from hqtvae_fast.pictures.images import grid

    with pytest.raises(ValueError, match=f"columns: expected 1 or more; got {columns}"):
        grid([Image.new("RGB", (2, 2))], columns)
