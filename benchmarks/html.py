"""``hqtvae bench report``: tables, pictures and one HTML page from results files.

hqtvae bench report benchmarks/results/*.json --out report/

Writes ``table.md`` (for a README), the pictures as PNG for light and dark pages, and ``index.html``, which holds them
all: it loads nothing, so that it can be mailed or kept as an artifact. Rows in which a baseline wins come first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.schema import Results, Row, read

Files = Annotated[list[Path], typer.Argument(help="Results files, of any suites and devices.")]
Out = Annotated[Path, typer.Option(help="The folder to write to; it is made if need be.")]

Cells = list[str]


def report(files: Files, out: Out = Path("report")) -> None:
    """Make tables, plots and one self-contained HTML page from results files."""
    every = [read(file) for file in files]
    out.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(every)
    for name, data in pictures.items():
        (out / name).write_bytes(data)
    (out / "table.md").write_text(markdown(every), encoding="utf-8")
    (out / "index.html").write_text(page(every, pictures), encoding="utf-8")
    typer.echo(f"{out}: index.html, table.md and {len(pictures)} pictures from {len(every)} files")


def _pictures(every: Sequence[Results]) -> dict[str, bytes]:
    """PNGs by file name: ``<what>-<theme>.png``."""
    from benchmarks import plots  # matplotlib is not needed for what else this module does

    wanted = {f"throughput-{Path(model).name}": (plot, plots.SIZE) for model, plot in plots.throughput(every).items()}
    for number, results in enumerate(r for r in every if r.benchmark == "ops"):
        suffix = f"-{number + 1}" if number else ""
        if (roof := plots.roofline(results)) is not None:
            wanted[f"roofline{suffix}"] = (roof, plots.WIDE)
        if (bars := plots.bars(results)) is not None:
            wanted[f"ops{suffix}"] = bars
    return {
        f"{name}-{theme.name}.png": plots.draw(plot, theme, size)
        for name, (plot, size) in wanted.items()
        for theme in plots.THEMES
    }


# ------------------------------------------------------------------------------------------------------------- tables

HEADS = {
    "generate": ["what", "by whom", "ms", "95% interval", "images/s", "of its floor", "images/J", "/ ours", "runs"],
    "ops": ["op and case", "by whom", "ms", "95% interval", "GB/s", "TFLOP/s", "of the floor", "/ ours"],
    "train": ["what", "by whom", "ms", "95% interval", "images/s", "runs"],
    "encode": ["what", "by whom", "ms", "95% interval", "images/s", "runs"],
    "other": ["what", "by whom", "median", "95% interval", "unit", "runs"],
}


def table(results: Results) -> tuple[Cells, list[Cells]]:
    """Heads and rows; those in which something is faster than ours first."""
    head = HEADS.get(results.benchmark, HEADS["other"])
    rows = sorted(results.rows, key=lambda row: not _beats_ours(row))
    return head, [_cells(results.benchmark, row) for row in rows]


def _beats_ours(row: Row) -> bool:
    return row.work.get("times_longer_than_ours", 1.0) < 1


def _cells(benchmark: str, row: Row) -> Cells:
    entry = row.to_dict()
    low, high = entry["interval"]["low"], entry["interval"]["high"]
    runs = f"{len(row.runs)}" + (f" in {len(row.samples)} processes" if len(row.samples) > 1 else "")
    name = row.name + (" †" if row.unfit else "")
    if benchmark in ("generate", "train", "encode"):
        images = row.work["images"]
        cells = [name, row.entrant, _number(row.median * 1e3), _span(low, high, 1e3), _number(images / row.median)]
        if benchmark == "generate":  # files from before these were measured have neither
            floor, joules = row.work.get("floor_seconds"), row.work.get("joules")
            cells += [
                f"{floor / row.median:.1%}" if floor else "-",
                _number(images / joules) if joules else "-",
                _ratio(row),
            ]
        return [*cells, runs]
    if benchmark == "ops":
        cells = [name, row.entrant, _number(row.median * 1e3), _span(low, high, 1e3)]
        cells += [_number(row.work["bytes"] / row.median / 1e9), f"{row.work['flops'] / row.median / 1e12:,.3g}"]
        return [*cells, f"{row.work['floor_seconds'] / row.median:.1%}", _ratio(row)]
    return [name, row.entrant, _number(row.median), _span(low, high, 1), row.unit, runs]


def _ratio(row: Row) -> str:
    ratio = row.work.get("times_longer_than_ours")
    return "-" if ratio is None else f"**{ratio:.2f}x**" if _beats_ours(row) else f"{ratio:.2f}x"


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"


def _span(low: float, high: float, scale: float) -> str:
    return "" if low == high else f"{_number(low * scale)} to {_number(high * scale)}"


def caption(results: Results) -> str:
    facts = results.environment
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    return (
        f"{facts['device']}{driver}, {facts['cpus']} CPUs, {facts['threads']} threads; torch {facts['torch']}, Python"
        f" {facts['python']}; revision {facts['git_revision'] or 'unknown'}; {facts['date']}"
    )


def unfit(results: Results) -> list[str]:
    """Why rows are marked: of reasons that differ in figures only the first, and how many rows have one like it."""
    kinds: dict[str, list[str]] = {}
    for row in results.rows:
        if row.unfit:
            kinds.setdefault(re.sub(r"\d+(\.\d+)?", "#", row.unfit), []).append(row.unfit)
    return [f"{found[0]} (and so in {len(found)} rows)" if len(found) > 1 else found[0] for found in kinds.values()]


def markdown(every: Sequence[Results]) -> str:
    blocks = []
    for results in every:
        head, rows = table(results)
        numbers = [":--" if index < 2 else "--:" for index in range(len(head))]
        lines = [f"| {' | '.join(cells)} |" for cells in (head, numbers, *rows)]
        notes = [f"† unfit to quote: {'; '.join(unfit(results))}."] if unfit(results) else []
        command = f"`{results.environment['command']}`"
        blocks.append(
            "\n".join([f"**{results.benchmark}**, {caption(results)}", command, "", *lines, "", *notes]).strip()
        )
    return "\n\n".join(blocks) + "\n"


# --------------------------------------------------------------------------------------------------------------- page

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #24292f; background: #ffffff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.facts { color: #57606a; font-size: 0.85rem; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; white-space: normal; }
tr.lost td { background: #ffebe9; }
img { max-width: 100%; display: block; margin: 1rem 0; }
img.dark { display: none; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } p.facts { color: #9198a1; }
  th, td { border-color: #3d444d; } tr.lost td { background: #4b1d1d; }
  img.light { display: none; } img.dark { display: block; }
}
"""


def page(every: Sequence[Results], pictures: dict[str, bytes]) -> str:
    """One page that loads nothing: pictures are inside, and the browser picks the theme."""
    parts = ["<h1>hqtvae_fast: benchmarks</h1>"]
    names = list(dict.fromkeys(name.rpartition("-")[0] for name in pictures))
    parts += [_picture(name, pictures) for name in names]
    for results in every:
        parts.append(f"<h2>{escape(results.benchmark)}</h2>")
        command = escape(str(results.environment["command"]))
        parts.append(f'<p class="facts">{escape(caption(results))}<br><code>{command}</code></p>')
        parts.append(_html_table(results))
        if unfit(results):
            parts.append(f'<p class="facts">† unfit to quote: {escape("; ".join(unfit(results)))}.</p>')
    meta = "<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>Benchmarks</title>"
    head = f"{meta}<style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _picture(name: str, pictures: dict[str, bytes]) -> str:
    tags = []
    for theme in ("light", "dark"):
        data = base64.b64encode(pictures[f"{name}-{theme}.png"]).decode()
        tags.append(f'<img class="{theme}" alt="{escape(name)}" src="data:image/png;base64,{data}">')
    return "".join(tags)


def _html_table(results: Results) -> str:
    head, rows = table(results)
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for cells in rows:
        lost = any(cell.startswith("**") for cell in cells)
        inner = "".join(f"<td>{escape(cell.strip('*'))}</td>" for cell in cells)
        lines.append(f'<tr class="lost">{inner}</tr>' if lost else f"<tr>{inner}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
