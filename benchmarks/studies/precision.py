"""What fewer bits do to a checkpoint's predictions: other dtypes and quantized weights against fp32.

``hqtvae bench precision CHECKPOINT``. Teacher forced on codes that the checkpoint itself draws in fp32. For
each level: at how many positions the likeliest code is the same, and the mean over positions of
KL(p in fp32 || p in the row's numbers), in nats.

Result: precision.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.options import run
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine.options import Quantization
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model import HQTransformer

ROWS: tuple[tuple[str, Quantization], ...] = (
    ("fp32", "int8"),
    ("fp32", "fp8"),
    ("tf32", None),
    ("bf16", None),
    ("bf16", "int8"),
    ("bf16", "fp8"),
    ("fp16", None),
    ("fp16", "int8"),
    ("fp16", "fp8"),
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
    table = Table("dtype", "weights", *titles, box=box.SIMPLE)
    for name, quantization in ROWS:
        if name in wanted:
            changed, other = opened(name, quantization)
            with fp32_products(changed.device, changed.precision.tf32):
                levels = other(codes, condition).levels
            found = [compare(wanted, got) for wanted, got in zip(exact, levels, strict=True)]
            cells = [text for same, kl in found for text in (f"{100 * same:.2f}%", f"{kl:.1e}")]
            table.add_row(name, quantization or name, *cells)
    Console(highlight=False, width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    run(precision, arguments)


if __name__ == "__main__":
    main()
