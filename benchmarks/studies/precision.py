"""What fewer bits do to a checkpoint's predictions: other dtypes and quantized weights against fp32.

``hqtvae bench precision CHECKPOINT``. Teacher forced on codes that the checkpoint itself draws in fp32. For each level:
at how many positions the likeliest code is the same, and the mean over positions of KL(p in fp32 || p in the row's
numbers), in nats. "int8, inputs too": as a CPU computes int8 products (:func:`hqtvae_fast.ops.int8_linear`); "int8":
weights alone, as a GPU does. Rows of int8 beyond the limit, a KL of 2e-3 over all positions, are marked, and the exit
code is 1.

Result: precision.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.options import run
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.backend import VARIABLE
from hqtvae_fast.engine.options import Quantization
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.ops.kernels.int8_linear import native

LIMIT = 2e-3
"""Of the mean KL over all positions, in nats, for int8."""
INPUTS_TOO, WEIGHTS_ALONE = "int8, inputs too", "int8"
WEIGHTS: dict[str, Quantization] = {"": None, WEIGHTS_ALONE: "int8", INPUTS_TOO: "int8", "fp8": "fp8"}
ROWS = tuple(
    (dtype, weights)
    for dtype in ("fp32", "tf32", "bf16", "fp16")
    for weights in WEIGHTS
    if (dtype, weights) != ("fp32", "") and not (dtype in ("tf32", "fp16") and weights == INPUTS_TOO)
)
PROMPTS = ("tiger face, 3d", "red apple, flat", "rocket, shaded", "owl, 3d")  # as the demo model was trained


def _condition(pipe: HQTVAEPipeline, images: int, prompts: Sequence[str]) -> tuple[dict[str, Any], Tensor | None]:
    """As the pipeline takes it, and as the transformer does."""
    assert pipe.transformer is not None
    kind, device = pipe.transformer.config.condition, pipe.device
    if kind == "none":
        return {}, None
    if kind == "class":
        labels = [image % pipe.transformer.config.num_classes for image in range(images)]
        return {"class_labels": labels}, torch.tensor(labels, device=device)
    if pipe.tokenizer is None:
        raise SystemExit(f"expected a model of classes, of text with its tokenizer, or of neither; got {kind!r}")
    repeated = [prompts[image % len(prompts)] for image in range(images)]
    return {"prompt": repeated}, pipe.tokenizer(repeated).to(device)


def compare(exact: Tensor, got: Tensor) -> tuple[float, float]:
    """(share of positions with the same likeliest code, mean KL(exact || got) in nats) of logits [B, T, K]."""
    p, q = exact.double().log_softmax(dim=-1), got.double().log_softmax(dim=-1)
    same = (exact.argmax(dim=-1) == got.argmax(dim=-1)).double().mean()
    return float(same), float((p.exp() * (p - q)).sum(dim=-1).mean())


class Dtype(str, Enum):
    """What a row computes in."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


@torch.inference_mode()
def precision(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A directory, or demo.")],
    device: Annotated[str, typer.Option("--device", metavar="NAME")] = "cpu",
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Drawn and judged at once.")] = 4,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Of a model of text; several if you like.", show_default=False),
    ] = None,
    dtype: Annotated[list[Dtype], typer.Option("--dtype", help="Rows of the table.")] = [Dtype.fp32, Dtype.bf16],  # noqa: B006
) -> None:
    """Show what fewer bits do to a checkpoint's predictions."""
    wanted = [name.value for name in dtype]
    rows = [(name, weights) for name, weights in ROWS if name in wanted and _possible(name, weights, device)]

    def opened(dtype: str, quantization: Quantization = None) -> tuple[HQTVAEPipeline, HQTransformer]:
        where = {"device": device, "dtype": dtype}
        pipe = HQTVAEPipeline.from_pretrained(checkpoint, **where, quantization=quantization)
        if pipe.transformer is None:
            raise SystemExit(f"{checkpoint}: expected a checkpoint with a transformer")
        return pipe, pipe.transformer

    pipe, model = opened("fp32")
    arguments, condition = _condition(pipe, images, prompt or PROMPTS)
    arguments |= {} if arguments else {"num_images": images}
    drawn = pipe(**arguments, seed=0, output_type="codes", progress=False).codes
    codes = [level.to(device) for level in drawn[: model.config.num_levels]]
    with fp32_products(pipe.device, tf32=False):
        exact = model(codes, condition).levels
    titles = [f"level {level}: {what}" for level in range(len(exact)) for what in ("same", "KL")]
    table, beyond = Table("dtype", "weights", *titles, "KL of all", box=box.SIMPLE), False
    for name, weights in rows:
        with _products_of(weights):
            changed, other = opened(name, WEIGHTS[weights])
            with fp32_products(changed.device, changed.precision.tf32):
                levels = other(codes, condition).levels
        found = [compare(wanted, got) for wanted, got in zip(exact, levels, strict=True)]
        cells = [text for same, kl in found for text in (f"{100 * same:.2f}%", f"{kl:.1e}")]
        positions = [level.shape[1] for level in exact]
        mean = sum(kl * count for (_, kl), count in zip(found, positions, strict=True)) / sum(positions)
        worse = WEIGHTS[weights] == "int8" and mean > LIMIT
        beyond |= worse
        table.add_row(name, weights or name, *cells, f"{mean:.1e}{' over the limit' if worse else ''}")
    Console(highlight=False, width=120).print(table)
    if beyond:
        print(f"int8: expected a KL of at most {LIMIT:.0e} over all positions", file=sys.stderr)
        raise typer.Exit(1)


def _possible(dtype: str, weights: str, device: str) -> bool:
    """Whether this device rounds inputs too, or multiplies so."""
    on_cpu = torch.device(device).type == "cpu"
    if weights == INPUTS_TOO:
        return on_cpu and native.instructions() > 0
    return dtype != "tf32" or not on_cpu


@contextmanager
def _products_of(weights: str) -> Iterator[None]:
    """Of a CPU: inputs of int8 products are rounded, or none are."""
    if weights == INPUTS_TOO:
        yield
        return
    with mock.patch.dict(os.environ, {VARIABLE: "packed_linear=reference"}):
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    run(precision, arguments)


if __name__ == "__main__":
    main()
