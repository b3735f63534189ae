"""The layers of hqtvae_fast, its imports as they stand in its files, and whether they run one way.

``LAYERS`` is the one list of them: ``tests/test_layers.py`` holds the package to it, ``draw_imports.py`` draws it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "hqtvae_fast"


@dataclass(frozen=True)
class Box:
    """Modules and packages directly under hqtvae_fast that are one thing to a reader.

    ``modules`` stand in order: each may import those after it. ``column`` is the place in the picture: 0 left of the
    middle, 1 in it, 2 right of it.
    """

    name: str
    says: str
    modules: tuple[str, ...]
    column: int = 1


# A box may import those of the layers below its own. The last two layers are the ground.
LAYERS = (
    (Box("cli", "the hqtvae command", ("cli",)),),
    (
        Box("evaluate", "FID, code use, figures", ("evaluate",), 0),
        Box("distributed", "one set by many processes", ("distributed",), 2),
    ),
    (
        Box("train", "both stages, from a folder", ("train",), 0),
        Box(
            "pipeline",
            "request, pipeline, output, compat",
            ("__init__", "compat", "pipeline", "planning", "request", "completing", "guiding", "output", "progress"),
        ),
    ),
    (Box("tune", "variants proven, timed", ("tune",)),),
    (
        Box(
            "checkpoint",
            "ours, released ones, the hub",
            ("hub", "text", "checkpoint", "checkpoint_config", "run_folder", "released"),
            0,
        ),
        Box("engine", "loop, step, cache, graph, streams", ("engine",)),
        Box("plan file", "a plan, kept", ("plan_file",), 2),
    ),
    (Box("model", "HQ-VAE and HQ-Transformer", ("model",)),),
    (Box("ops", "a contract each, a file a backend", ("ops",)),),
    (
        Box("files", "whole or not at all", ("files",), 0),
        Box(
            "backend",
            "what runs here; what it can",
            ("backend", "plan", "threads", "_cuda", "_nvrtc", "hardware"),
        ),
        Box("pictures", "pixels, sheets, plots", ("pictures",), 2),
    ),
    (
        Box(
            "config",
            "config, classes, codes, seeds, fields, arguments, modes, world",
            ("codes", "seeds", "config", "classes", "arguments", "fields", "modes", "world"),
        ),
    ),
)
GROUND = 2  # layers

# Within a package that has folders: each module or folder may import those after it.
WITHIN = {
    "train": (
        *("whole", "run", "stage1", "stage2", "initial", "prior", "shown", "memory", "start", "changes"),
        *("tokenizer", "validation", "codes", "sizing", "loop", "losses", "data"),
        *("config", "yaml_fields", "presets", "words"),
    ),
}


class Import(NamedTuple):
    """Module ``source`` imports ``target``. ``late``: inside a function, or for type checkers only."""

    source: str
    target: str
    line: int
    late: bool


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Each module's full name with its file."""
    files = sorted(package.rglob("*.py"))
    names = (".".join((package.name, *file.relative_to(package).with_suffix("").parts)) for file in files)
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def _statements(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = late or function or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        yield from _statements(child, inside)


def _targets(statement: ast.Import | ast.ImportFrom, known: dict[str, Path]) -> Iterator[str]:
    """What a statement imports: the module where the name is one, else the one that the name is taken from."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    if statement.level:
        raise ValueError(f"expected absolute imports, got a relative one in line {statement.lineno}")
    for alias in statement.names:
        name = f"{statement.module}.{alias.name}"
        yield name if name in known else str(statement.module)


def imports(package: Path = PACKAGE) -> list[Import]:
    """All imports of the package's modules by each other, late ones included."""
    known = modules(package)
    return [
        Import(source, target, statement.lineno, late)
        for source, file in known.items()
        for statement, late in _statements(ast.parse(file.read_text(encoding="utf-8")))
        for target in dict.fromkeys(_targets(statement, known))
        if target.split(".")[0] == package.name and target != source
    ]


def part(module: str) -> str:
    """``hqtvae_fast.model.layers`` -> ``model``; the package itself -> ``__init__``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def place(module: str) -> str:
    """``hqtvae_fast.train.data.loader`` -> ``data``; a package itself -> ``__init__``: what ``WITHIN`` orders."""
    names = module.split(".")
    return names[2] if len(names) > 2 else "__init__"


def box_of(name: str) -> Box:
    found = [box for layer in LAYERS for box in layer if name in box.modules]
    if len(found) != 1:
        raise ValueError(f"expected {name} in one box of tools/layers.py, got it in {len(found)}")
    return found[0]


def _height(box: Box) -> int:
    return next(-index for index, layer in enumerate(LAYERS) if box in layer)


def allowed(source: str, target: str) -> bool:
    """Whether one module or package directly under hqtvae_fast may import another."""
    above, below = box_of(source), box_of(target)
    if above == below:
        return above.modules.index(source) <= above.modules.index(target)
    return _height(above) > _height(below)


def allowed_within(one: Import) -> bool:
    """Whether an import of a package's module by another one follows the package's own order, where it has one."""
    order = WITHIN.get(part(one.source), ())
    if not order or part(one.source) != part(one.target) or place(one.source) == place(one.target):
        return True
    if "__init__" in (place(one.source), place(one.target)):
        return False  # train/__init__.py stays empty
    return order.index(place(one.source)) < order.index(place(one.target))


def wrong(found: list[Import]) -> list[str]:
    """A line for each import that runs upwards or sideways."""
    return [
        f"{one.source}:{one.line} imports {one.target}, which stands beside or above it in tools/layers.py"
        for one in found
        if not (allowed(part(one.source), part(one.target)) and allowed_within(one))
    ]


def circles(found: list[Import]) -> list[str]:
    """A line for each circle of modules that import each other, late imports included."""
    after: dict[str, list[str]] = defaultdict(list)
    for one in found:
        after[one.source].append(one.target)
    done: set[str] = set()
    lines: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            lines.append("a circle: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in after[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in sorted({one.source for one in found}):
        visit(name, [])
    return lines
