"""``hqtvae tune``: find the batch sizes worth having on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import (
    MACHINE,
    Checkpoint,
    Device,
    DType,
    Plan,
    Quantize,
    open_pipeline,
    parse_integers,
)
from hqtvae_fast.cli.output import check_file, show, table
from hqtvae_fast.config import BUCKETS

DEFAULT_SIZES = ",".join(map(str, BUCKETS))
Sizes = Annotated[
    str,
    typer.Option(
        "--sizes",
        metavar="LIST",
        help="Batch sizes to try: integers and ranges, such as 1,2,4,8 or 1-4.",
        rich_help_panel=MACHINE,
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="Where to keep the times. Only the default file is read again, by every command.",
        show_default="batches.json in the user's cache folder, or in $HQTVAE_CACHE",
        rich_help_panel=MACHINE,
    ),
]


def tune(
    checkpoint: Checkpoint,
    sizes: Sizes = DEFAULT_SIZES,
    file: File = None,
    device: Device = None,
    dtype: DType = None,
    quantize: Quantize = None,
    plan: Plan = "auto",
) -> None:
    """Time drawing and decoding at several batch sizes, and keep what was found for later runs.

    From then on, a run of the same model on this device, in the same dtype and by the same plan, draws by default
    as many pictures at once as were the fastest, and computes what is left of a request with the smallest size that
    holds it. Sizes that gain nothing over the next larger one are not used. The search ends at the first size that
    does not fit into memory, or well past the fastest.
    """
    wanted = parse_integers("--sizes", [sizes])
    if min(wanted, default=0) < 1:
        raise ValueError(f"--sizes: expected batch sizes from 1 on; got {sizes!r}")
    quantized = None if quantize is None else quantize.value
    check_file(file)
    if config_of(checkpoint).transformer is None:
        raise ValueError("this checkpoint has stage 1 only: there is nothing to draw in batches")
    from hqtvae_fast.engine.batches import default_file

    pipe = open_pipeline(checkpoint, device, dtype, quantization=quantized, plan=plan)
    found = pipe.tune_batches(
        wanted,
        file=file,
        on_size=lambda size, seconds: typer.echo(f"batch {size}: {size / seconds:.2f} images/s", err=True),
    )
    rows = table("Batch sizes", "batch", "seconds", "images/s", "")
    for size, seconds in found.seconds.items():
        use = "fastest" if size == found.best else "kept" if size in found.buckets else "not used"
        rows.add_row(str(size), f"{seconds:.3f}", f"{size / seconds:.2f}", use)
    show(rows)
    typer.echo(f"wrote {default_file() if file is None else file}")
