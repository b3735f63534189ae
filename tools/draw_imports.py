"""Draws who imports whom: ``python tools/draw_imports.py`` writes the picture of ``docs/ARCHITECTURE.md``.

Exit code 1, and nothing written, where an import runs upwards or modules import each other in a circle. The layers
below are the one list of them; ``tests/test_layers.py`` holds every file to it.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hqtvae_fast"
PICTURE = ROOT / "docs" / "imports.svg"

# From the bottom up: a module may import from its own layer and those before it. A box is drawn for each name.
LAYERS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "files and formats": (
            *("arguments", "classes", "codes", "config", "fields", "file_kinds", "files", "modes", "picture_files"),
            *("tensor_files", "world"),
        ),
        "backend, hardware": ("backend", "hardware", "threads", "_cuda", "_nvrtc"),
    },
    {"ops": ("ops",)},
    {"model": ("model",)},
    {"released": ("released",), "engine": ("engine",)},
    {"checkpoint": ("run_folder",)},
    {"checkpoint": ("checkpoint_config",)},
    {"checkpoint": ("checkpoint",)},
    {
        "pictures and text": ("bare_pictures", "images", "pixels", "plots", "progress", "sheet", "shard_files", "text"),
        "pipeline, compat": ("__init__", "compat", "hub", "output", "pipeline", "request", "tuning"),
    },
    {"train": ("train",), "distributed": ("distributed",)},
    {"evaluate": ("evaluate",)},
    {"cli": ("cli",)},
)
BOX = {part: box for layer in LAYERS for box, parts in layer.items() for part in parts}
RANK = {part: rank for rank, layer in enumerate(LAYERS) for parts in layer.values() for part in parts}
PLACES = {  # of boxes: columns and rows, from the bottom up
    "files and formats": (0.0, 0),
    "backend, hardware": (2.0, 0),
    "ops": (2.0, 1),
    "model": (1.6, 2),
    "released": (0.4, 3),
    "engine": (2.0, 3),
    "checkpoint": (0.8, 4),
    "pictures and text": (0.2, 5),
    "pipeline, compat": (1.8, 5),
    "train": (0.6, 6),
    "distributed": (2.0, 6),
    "evaluate": (1.2, 7),
    "cli": (1.2, 8),
}


@dataclass(frozen=True)
class Import:
    """Module ``of`` imports module ``what``, both without the package's name; ``late``: inside a function."""

    of: str
    what: str
    late: bool = False


def part(module: str) -> str:
    """``model.layers`` -> ``model``; the package itself, and what it only exports -> ``__init__``."""
    first = module.split(".")[0]
    return first if first in RANK else "__init__"


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module, without the package's name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        names = file.relative_to(package).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" and len(names) > 1 else names)] = file
    return found


def imports(file: Path, of: str, known: dict[str, Path]) -> Iterator[Import]:
    """What a file imports of the package, by the module that holds it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_once = {node for statement in tree.body for node in _walk_outside_functions(statement)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                what = name.removeprefix(PACKAGE.name).removeprefix(".")
                while what and what not in known:
                    what = what.rpartition(".")[0]
                yield Import(of, what or "__init__", node not in at_once)


def _walk_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Also not into what only a type checker reads."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for child in ast.iter_child_nodes(node):
            yield from _walk_outside_functions(child)


def all_imports() -> list[Import]:
    known = modules()
    return [one for of, file in known.items() for one in imports(file, of, known)]


def upward(found: list[Import]) -> list[str]:
    """Imports of what stands above, in words."""
    return [
        f"{one.of} imports {one.what}, which stands above it"
        for one in found
        if RANK[part(one.what)] > RANK[part(one.of)]
    ]


def circle(found: list[Import]) -> list[str]:
    """Modules that import each other when they are imported, in order; empty where there are none."""
    after: dict[str, set[str]] = {}
    for one in found:
        if not one.late and one.what != one.of:
            after.setdefault(one.of, set()).add(one.what)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(after.get(module, ())):
            if other_circle := visit(other, [*path, module]):
                return other_circle
        done.add(module)
        return []

    for module in sorted(after):
        if there := visit(module, []):
            return there
    return []


def edges(found: list[Import]) -> dict[tuple[str, str], int]:
    """How many imports run from one box to another."""
    pairs = ((BOX[part(one.of)], BOX[part(one.what)]) for one in found)
    return dict(sorted(Counter(pair for pair in pairs if pair[0] != pair[1]).items()))


def shown(counts: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Those that no longer way implies. Boxes of one layer must not import each other."""
    pairs = set(counts)
    ways = set(pairs)
    for _ in PLACES:  # as many steps as there are boxes reach whatever can be reached
        ways |= {(upper, far) for upper, middle in ways for near, far in pairs if near == middle}
    if both := sorted(box for box, other in ways if box == other):
        raise ValueError(f"boxes: expected that none imports itself by way of others; got {both}")
    return pairs - {(upper, far) for upper, middle in pairs for near, far in ways if near == middle}


def description(counts: dict[tuple[str, str], int]) -> str:
    """What the picture is drawn from; kept in it, so that a test can tell whether it is still true."""
    return "; ".join(f"{upper} -> {lower}: {count}" for (upper, lower), count in counts.items())


def draw(counts: dict[tuple[str, str], int], file: Path) -> None:
    """An arrow for each pair that is shown, its number of imports beside it; wider for more."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    plt.rcParams.update({"svg.hashsalt": "imports", "svg.fonttype": "path", "font.size": 11})
    figure, axes = plt.subplots(figsize=(9, 9.5))
    wide, high = 0.9, 0.44
    for name, (x, y) in PLACES.items():
        accent = name in ("engine", "ops")
        style = {"facecolor": "#1f5fbf" if accent else "#f3f5f8", "edgecolor": "#1f5fbf" if accent else "#9aa4b2"}
        corner = (x - wide / 2, y - high / 2)
        axes.add_patch(FancyBboxPatch(corner, wide, high, boxstyle="round,pad=0,rounding_size=0.08", zorder=2, **style))
        axes.text(x, y, name, ha="center", va="center", zorder=3, color="white" if accent else "#1c2430")
    for upper, lower in sorted(shown(counts)):
        (x0, y0), (x1, y1) = PLACES[upper], PLACES[lower]
        shift = 0.3 * max(-wide, min(wide, x1 - x0))
        start, end = (x0 + shift, y0 - high / 2), (x1 - shift, y1 + high / 2)
        if y0 == y1:  # from side to side
            start, end = (x0 + (wide if x1 > x0 else -wide) / 2, y0), (x1 + (wide if x0 > x1 else -wide) / 2, y1)
        width = 0.8 + min(2.4, counts[upper, lower] / 40)
        arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=width, color="#5b6675", zorder=1)
        axes.add_patch(arrow)
        where = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": 9, "color": "#5b6675"}
        axes.annotate(str(counts[upper, lower]), ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), **where)
    axes.set_xlim(-0.55, 2.55)
    axes.set_ylim(-0.35, 8.35)
    axes.axis("off")
    figure.savefig(file, bbox_inches="tight", facecolor="white", metadata={"Date": None, "Title": description(counts)})
    plt.close(figure)


def main() -> int:
    found = all_imports()
    wrong = upward(found)
    if there := circle(found):
        wrong.append(f"a circle: {' -> '.join(there)}")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        return 1
    counts = edges(found)
    draw(counts, PICTURE)
    print(f"wrote {PICTURE.relative_to(ROOT)}: {sum(counts.values())} imports between {len(counts)} pairs, none upward")
    return 0


if __name__ == "__main__":
    sys.exit(main())
