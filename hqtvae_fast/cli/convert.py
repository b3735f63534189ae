"""``hqtvae convert``: a released checkpoint in this package's format."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import Precision, Quantization
from hqtvae_fast.cli.output import check_folder, show, table, waiting

if TYPE_CHECKING:
    import torch

    from hqtvae_fast.checkpoint import Checkpoint

MEGA = 10**6

Source = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="Directory of a released checkpoint (or a Hub name, owner/name).", show_default=False
    ),
]
Target = Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder to write to.", show_default=False)]
Refiner = Annotated[
    str | None,
    typer.Option(
        "--refiner",
        metavar="DIR",
        help="Second checkpoint of a globally conditioned model: the two become one.",
        show_default=False,
    ),
]
StoredAs = Annotated[
    Precision | None,
    typer.Option(
        "--dtype",
        help="Store the transformer and the decoder in this dtype; the encoder and the codebooks in fp32, in which"
        " they compute.",
        show_default="all as they are",
    ),
]
Rounded = Annotated[
    Quantization | None,
    typer.Option(
        "--quantize",
        help="Store the transformer's matrices in one byte a value. What opens it computes with these. The decoder is"
        " calibrated too, on drawings of its own, for convolutions in 8 bits.",
        show_default="no rounding",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="Of a text model: its tokenizer.json, or the folder hqvae/tokenizers/pretrained of the released code.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write to OUT_DIR even if there is something in it.")]


def convert(
    checkpoint: Source,
    out_dir: Target,
    refiner: Refiner = None,
    dtype: StoredAs = None,
    quantize: Rounded = None,
    tokenizer: TokenizerOption = None,
    force: Force = False,
) -> None:
    """Rewrite a checkpoint as config.json and model.safetensors, which open faster and hold no pickle."""
    check_folder(out_dir)
    if not force and out_dir.is_dir() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir}: expected no folder there, or an empty one; --force writes to it all the same")
    stage2 = config_of(checkpoint, refiner).transformer
    if tokenizer is not None and (stage2 is None or stage2.condition != "text"):
        raise ValueError("--tokenizer: expected a text-conditional model; got another")
    with waiting(f"Opening {checkpoint}"):
        from hqtvae_fast import checkpoint as checkpoints
        from hqtvae_fast.engine.options import PRECISIONS
        from hqtvae_fast.text import load_tokenizer

        model = checkpoints.load(checkpoint)
        if refiner is not None:
            model = checkpoints.with_refiner(model, checkpoints.load(refiner))
    if quantize is not None:
        round_to(model, quantize.value)
        with waiting("Calibrating the decoder"):
            from hqtvae_fast.tune.quality import calibrate_decoder

            calibrate_decoder(model)
    if dtype is not None:
        store_as(model, PRECISIONS[dtype.value].dtype)
    with TemporaryDirectory() as scratch:
        if tokenizer is not None:
            model.tokenizer_file = _tokenizer_file(tokenizer, Path(scratch))
            load_tokenizer(model)  # ValueError if it is not for this model
        checkpoints.save(model, out_dir)
    _report(model, out_dir)


def _tokenizer_file(given: Path, scratch: Path) -> Path:
    """``given``, or what its files make, in ``scratch``."""
    if not given.is_dir():
        return given
    from hqtvae_fast.released.tokenizer import read_released_tokenizer

    file = scratch / "tokenizer.json"
    read_released_tokenizer(given).save(str(file))
    return file


def store_as(model: Checkpoint, dtype: torch.dtype) -> None:
    """Cast in place; ValueError naming a weight that is too large for the dtype."""
    import torch

    model.vae.float().set_decoder_dtype(dtype)
    for part in (model.transformer, model.refiner):
        if part is not None:
            part.to(dtype)
    for name, module in model.modules().items():
        for key, value in module.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"--dtype: {name}.{key} holds values too large for {str(dtype).removeprefix('torch.')}"
                )


def round_to(model: Checkpoint, kind: str) -> None:
    """Quantize the transformers' matrices; ValueError where there are none, or they are quantized otherwise."""
    from hqtvae_fast.model.linear import quantize_linears

    if model.transformer is None:
        raise ValueError(
            "--quantize: expected a checkpoint with a transformer, whose matrices are rounded; got stage 1"
        )
    if model.quantization not in (None, kind):
        raise ValueError(f"--quantize: expected {model.quantization}, to which the checkpoint is rounded; got {kind}")
    for part in (model.transformer, model.refiner):
        if part is not None:
            quantize_linears(part, kind)


def _report(model: Checkpoint, out_dir: Path) -> None:
    from hqtvae_fast import checkpoint as checkpoints

    shown, state = table("Weights", "part", "parameters", "stored as"), checkpoints.stored_state(model)
    for name, module in model.modules().items():
        values = sum(parameter.numel() for parameter in module.parameters())
        own = [value for key, value in state.items() if key.startswith(f"{name}.")]
        dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in own})
        shown.add_row(name, f"{values / MEGA:,.1f} M", ", ".join(dtypes))
    show(shown)
    for name in (checkpoints.CONFIG_FILE, checkpoints.MODEL_FILE, checkpoints.TOKENIZER_FILE):
        file = out_dir / name
        if file.is_file():
            typer.echo(f"wrote {file} ({file.stat().st_size / MEGA:,.2f} MB)")
