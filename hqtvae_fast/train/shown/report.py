"""``report.html``: how a run stands, as one page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hqtvae_fast.files import write_file
from hqtvae_fast.pictures.plots import on_a_page
from hqtvae_fast.run_folder import MODEL, PICTURES, RELOAD, REPORT, STAGES
from hqtvae_fast.train.data import Facts
from hqtvae_fast.train.loop.records import LOSSES, read_records
from hqtvae_fast.train.shown.curves import losses_plot
from hqtvae_fast.train.words import duration, held_out, in_words, speed

EARLIER = 3  # sheets before the last one, evenly spread
CLASSES = 30  # named
FEWEST_LOGGED = 5
STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #57606a; --page: #fff; --faint: #d0d7de; --warn: #fff8c5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --faint: #3d444d; --warn: #3a2d0a }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 68rem;
  margin: 2rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--faint) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1rem 0 } figcaption, summary { color: var(--soft); font-size: .9rem }
img { max-width: 100%; height: auto; border: 1px solid var(--faint); border-radius: 6px }
svg { width: 100%; height: auto }
.warning { background: var(--warn); border-left: 4px solid #d4a72c; padding: .5rem .8rem }
"""


def write_report(directory: Path, runs: Mapping[str, Path], facts: Mapping[str, str]) -> Path:
    """``directory/report.html``, of the runs of one or both stages by name, which need not have begun.

    Browsers load it anew from time to time until the model is there. ``facts``: what else there is to say, of the
    pictures and the model, by name. OSError where it cannot be written.
    """
    title = directory.resolve().name
    done = any(_is_done(folder) for folder in (directory, directory / STAGES[-1]))
    reload = "" if done else f'<meta http-equiv="refresh" content="{RELOAD}">'
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"{reload}<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _table(facts),
        *(part for name, run in runs.items() for part in _stage(name, run)),
        *_curves(runs),
        "</body></html>",
    ]
    file = directory / REPORT
    write_file(file, "\n".join(parts).encode("utf-8", "replace"))
    return file


def data_in_words(facts: Facts, training: int, held_out: int) -> dict[str, str]:
    """What a set of pictures is, for a page, and how many of them are trained on and held out."""
    told = {"pictures": f"{training:,} to train on, {held_out:,} held out"}
    named = [(name, count) for name, count in zip(facts.classes, facts.counts, strict=True) if name is not None]
    if facts.condition == "class":
        more = f" and {len(named) - CLASSES:,} more" if len(named) > CLASSES else ""
        told["classes"] = ", ".join(f"{name} ({count:,})" for name, count in named[:CLASSES]) + more
    if facts.condition == "text":
        told["captions"] = f"such as \u201c{facts.example}\u201d"
    return {**told, "note": facts.note} if facts.note else told


def _is_done(run: Path) -> bool:
    return (run / MODEL / "config.json").is_file()


def _stage(name: str, run: Path) -> Iterator[str]:
    records = read_records(run / LOSSES)[0]
    yield f"<section><h2>{escape(name)}</h2>"
    yield f"<p>{escape(_state(run, records))}</p>"
    yield from (f'<p class="warning">{escape(record["warning"])}</p>' for record in records if "warning" in record)
    yield _table(figures(records))
    yield from _sheets(sorted((run / PICTURES).glob("*.png")))
    yield "</section>"


def _state(run: Path, records: list[dict[str, Any]]) -> str:
    last = next((record for record in reversed(records) if "warning" not in record), None)
    if last is None:
        return "It has not begun, or has logged nothing so far."
    told = [f"{'finished after ' if _is_done(run) else ''}update {last['step']:,}"]
    if "epoch" in last:
        told.append(f"{last['epoch']:,.1f} epochs")
    if "seconds" in last:
        told.append(f"{duration(last['seconds'])} of training")
    if "images_per_second" in last:
        told.append(speed(last["images_per_second"]))
    return ", ".join(told)


def figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """The last figures of training and of held-out pictures, in words; those that there are."""
    trained = next((told for record in reversed(records) if (told := in_words(record))), [])
    others = next((told for record in reversed(records) if (told := in_words(held_out(record)))), [])
    return {name: ", ".join(told) for name, told in (("training", trained), ("held out", others)) if told}


def _table(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _sheets(files: list[Path]) -> Iterator[str]:
    """The last one, and below it some of the earlier ones, closed."""
    if not files:
        return
    *earlier, last = files
    yield _figure(last)
    if earlier:
        places = sorted({place * (len(earlier) - 1) // max(EARLIER - 1, 1) for place in range(EARLIER)})
        shown = "".join(_figure(earlier[place]) for place in places)
        yield f"<details><summary>Earlier</summary>{shown}</details>"


def _figure(file: Path) -> str:
    data = io.BytesIO()
    with Image.open(file) as sheet:
        sheet.convert("RGB").save(data, format="JPEG", quality=90)
    caption = f"after update {int(file.stem):,}" if file.stem.isdigit() else file.stem
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<figure><img src="{source}" alt="pictures {caption}"><figcaption>{caption}</figcaption></figure>'


def _curves(runs: Mapping[str, Path]) -> Iterator[str]:
    logged = {name: run for name, run in runs.items() if _has_curves(run)}
    if not logged:
        return
    yield "<section><h2>curves</h2>"
    try:
        yield _drawn(tuple((name, run, _written(run / LOSSES)) for name, run in logged.items()))
    except ValueError as error:  # no matplotlib: the rest is worth a page
        yield f"<p>{escape(str(error))}</p>"
    yield "</section>"


def _has_curves(run: Path) -> bool:
    """Whether there is something to see: of a run that has just begun there is not, and drawing takes a second."""
    logged = len(read_records(run / LOSSES)[0])
    return logged >= FEWEST_LOGGED or (logged > 0 and _is_done(run))


def _written(file: Path) -> tuple[int, int]:
    """When a file was last written, in nanoseconds, and its bytes."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1)
def _drawn(logged: tuple[tuple[str, Path, tuple[int, int]], ...]) -> str:
    """Runs by name, with what tells whether their losses are the same: the end of a run writes its page again, where
    nothing is new."""
    return on_a_page(losses_plot({name: run for name, run, _ in logged}, kind="svg"))
