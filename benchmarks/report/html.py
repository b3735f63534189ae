"""``hqtvae bench report``: tables, pictures and one HTML page from results files.

hqtvae bench report benchmarks/results/*.json --out report/

Writes ``table.md`` (for a README), the pictures as PNG for light and dark pages, and ``index.html``, which holds them
all: it loads nothing, so that it can be mailed or kept as an artifact. Rows in which a baseline wins come first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measuring.figures import of_floor, plain
from benchmarks.measuring.schema import Results, Row, read
from hqtvae_fast.pictures.plots import THEMES, draw

Files = Annotated[list[Path], typer.Argument(help="Results files, of any suites and devices.")]
Out = Annotated[Path, typer.Option(help="The folder to write to; it is made if need be.")]

Cells = list[str]
PARTS = {"draw": "drawing", "decode": "decoding"}


def report(files: Files, out: Out = Path("report")) -> None:
    """Make tables, plots and one self-contained HTML page from results files."""
    every = [read(file) for file in files]
    out.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(every)
    for own in pictures:
        for name, data in own.items():
            (out / name).write_bytes(data)
    (out / "table.md").write_text(markdown(every), encoding="utf-8")
    (out / "index.html").write_text(page(every, pictures), encoding="utf-8")
    count = sum(map(len, pictures))
    typer.echo(f"{out}: index.html, table.md and {count} pictures from {len(every)} files")


def _pictures(every: Sequence[Results]) -> list[dict[str, bytes]]:
    """Of each run PNGs by file name: ``<what>-<theme>.png``, with a number from the second run's of a name on."""
    from benchmarks.report import plots  # matplotlib is not needed for what else this module does

    taken: dict[str, int] = {}
    drawn = []
    for results in every:
        wanted = {f"throughput-{Path(model).name}": (p, plots.SIZE) for model, p in plots.throughput(results).items()}
        if results.benchmark == "ops":
            if (roof := plots.roofline(results)) is not None:
                wanted["roofline"] = (roof, plots.WIDE)
            if (bars := plots.bars(results)) is not None:
                wanted["ops"] = bars
        own = {}
        for name, (plot, size) in wanted.items():
            taken[name] = taken.get(name, 0) + 1
            numbered = name if taken[name] == 1 else f"{name}-{taken[name]}"
            for theme in THEMES:
                own[f"{numbered}-{theme.name}.png"] = draw(lambda axes, plot=plot: plot(axes[0]), size, theme=theme)
        drawn.append(own)
    return drawn


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
    rows = sorted(results.rows, key=lambda row: not _beats_ours(results, row))
    return head, [_cells(results, row) for row in rows]


def _told(results: Results) -> tuple[Cells, list[Cells]]:
    """The table without columns in which nothing stands."""
    head, rows = table(results)
    kept = [n for n in range(len(head)) if n < 2 or any(cells[n] not in ("", "-") for cells in rows)]
    return [head[n] for n in kept], [[cells[n] for n in kept] for cells in rows]


def headlines(results: Results) -> list[str]:
    """What a reader wants to know first: how much faster ours was in this very run, a line for each other entrant."""
    lines = []
    for row in results.rows if results.benchmark == "generate" else ():
        ours, ratio = results.ours(row), results.ratio(row)
        if row.work.get("part") == "total" and ours is not None and ratio is not None:
            work = row.name.removesuffix(": total")
            parts = ", ".join(f"{name} {share:.2f}" for name, share in _parts(results, row))
            lines.append(
                f"{work}: {ours.entrant} ({ours.work['precision']}) is {ratio:.2f} times as fast as {row.entrant} "
                f"({row.work['precision']})" + (f"; {parts}" if parts else "")
            )
    return lines


def _parts(results: Results, total: Row) -> Iterator[tuple[str, float]]:
    """The ratios that make up a total's."""
    for row in results.rows:
        part, ratio = row.work.get("part"), results.ratio(row)
        if row.key == (total.name.replace(": total", f": {part}"), total.entrant) and part in PARTS and ratio:
            yield PARTS[part], ratio


def _beats_ours(results: Results, row: Row) -> bool:
    return (results.ratio(row) or 1.0) < 1


def _cells(results: Results, row: Row) -> Cells:
    entry, benchmark = row.to_dict(), results.benchmark
    low, high = entry["interval"]["low"], entry["interval"]["high"]
    runs = f"{len(row.runs)}" + (f" in {len(row.samples)} processes" if len(row.samples) > 1 else "")
    name = row.name + (" †" if row.unfit else "")
    if benchmark in ("generate", "train", "encode"):
        images = row.work["images"]
        cells = [name, row.entrant, plain(row.median * 1e3), _span(low, high, 1e3), plain(images / row.median)]
        if benchmark == "generate":  # files from before these were measured have neither
            floor, joules = row.work.get("floor_seconds"), row.work.get("joules")
            cells += [
                of_floor(floor, row.median) if floor else "-",
                plain(images / joules) if joules else "-",
                _ratio(results, row),
            ]
        return [*cells, runs]
    if benchmark == "ops":
        cells = [name, row.entrant, plain(row.median * 1e3), _span(low, high, 1e3)]
        cells += [plain(row.work["bytes"] / row.median / 1e9), plain(row.work["flops"] / row.median / 1e12, 3)]
        return [*cells, of_floor(row.work["floor_seconds"], row.median), _ratio(results, row)]
    return [name, row.entrant, plain(row.median), _span(low, high, 1), row.unit, runs]


def _ratio(results: Results, row: Row) -> str:
    ratio = results.ratio(row)
    return "-" if ratio is None else f"**{ratio:.2f}x**" if ratio < 1 else f"{ratio:.2f}x"


def _span(low: float, high: float, scale: float) -> str:
    return "" if low == high else f"{plain(low * scale)} to {plain(high * scale)}"


def caption(results: Results) -> str:
    facts = results.environment
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    memory = f", {facts['memory'] / 2**30:.0f} GiB" if facts.get("memory") else ""
    load = f", load {facts['load_average']} before" if facts.get("load_average") is not None else ""
    return (
        f"{results.machine}{memory}{driver}, {facts['cpus']} CPUs, {facts['threads']} threads{load}; "
        f"torch {facts['torch']}, Python {facts['python']}; revision {facts['git_revision'] or 'unknown'}; "
        f"{facts['date']}"
    )


def notes(results: Results) -> list[str]:
    """What the marks in the table mean."""
    told = [f"† unfit to quote: {'; '.join(unfit(results))}."] if unfit(results) else []
    if any((row.work.get("floor_seconds") or 0.0) > row.median for row in results.rows):
        busy, load = (results.environment.get(name) for name in ("peaks_busy_elsewhere", "load_average"))
        how = f"load {load}" if busy is None else f"others kept {busy:.2f} CPUs busy meanwhile"
        told.append(
            f"‡ faster than its floor, which is none then: the peaks behind it, and behind the other shares here, were "
            f"measured on a busy machine ({how}), or ours multiplies less than it counts (Winograd's convolutions)."
        )
    return told


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
        head, rows = _told(results)
        numbers = [":--" if index < 2 else "--:" for index in range(len(head))]
        lines = [f"| {' | '.join(cells)} |" for cells in (head, numbers, *rows)]
        found = [f"- {line}" for line in headlines(results)]
        parts = [f"**{results.benchmark}**, {caption(results)}", f"`{results.environment['command']}`", ""]
        parts += [*found, *([""] if found else []), *lines, "", *notes(results)]
        blocks.append("\n".join(parts).strip())
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


def page(every: Sequence[Results], pictures: Sequence[dict[str, bytes]]) -> str:
    """One page that loads nothing, a section for each run: pictures are inside, and the browser picks the theme."""
    parts = ["<h1>hqtvae_fast: benchmarks</h1>"]
    for results, own in zip(every, pictures, strict=True):
        parts.append(f"<h2>{escape(results.benchmark)}, {escape(results.machine)}</h2>")
        parts += [f"<p><b>{escape(line)}</b></p>" for line in headlines(results)]
        parts += [_picture(name, own) for name in dict.fromkeys(name.rpartition("-")[0] for name in own)]
        parts.append(_html_table(results))
        parts += [f'<p class="facts">{escape(note)}</p>' for note in notes(results)]
        command = escape(str(results.environment["command"]))
        parts.append(f'<p class="facts">{escape(caption(results))}<br><code>{command}</code></p>')
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
    head, rows = _told(results)
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for cells in rows:
        lost = any(cell.startswith("**") for cell in cells)
        inner = "".join(f"<td>{escape(cell.strip('*'))}</td>" for cell in cells)
        lines.append(f'<tr class="lost">{inner}</tr>' if lost else f"<tr>{inner}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
