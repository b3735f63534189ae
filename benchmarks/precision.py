"""What narrower numbers do to a checkpoint's predictions: logits in other dtypes and with narrow weights against fp32.

``python -m benchmarks.precision CHECKPOINT``. Teacher forced on codes that the checkpoint itself draws in fp32. For
each level: at how many positions the likeliest code is the same, and the mean over positions of
KL(p in fp32 || p in the row's numbers), in nats.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine.precision import Quantization
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


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description="Logits against those of fp32.")
    parser.add_argument("checkpoint", help="a directory, or demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", default=4, type=int, help="drawn and judged at once")
    parser.add_argument("--prompt", action="append", help="of a model of text; several times if you like")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "tf32", "bf16", "fp16"])
    return parser.parse_args(argv)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = _parse(argv)

    def opened(dtype: str, quantization: Quantization = None) -> tuple[HQTVAEPipeline, HQTransformer]:
        where = {"device": options.device, "dtype": dtype}
        pipe = HQTVAEPipeline.from_pretrained(options.checkpoint, **where, quantization=quantization)
        if pipe.transformer is None:
            raise SystemExit(f"{options.checkpoint}: expected a checkpoint with a transformer")
        return pipe, pipe.transformer

    pipe, model = opened("fp32")
    arguments, condition = _condition(pipe, options.images, options.prompt or PROMPTS)
    arguments |= {} if arguments else {"num_images": options.images}
    drawn = pipe(**arguments, seed=0, output_type="codes", progress=False).codes
    codes = [level.to(options.device) for level in drawn[: model.config.num_levels]]
    with fp32_products(pipe.device, tf32=False):
        exact = model(codes, condition).levels
    titles = [f"level {level}: {what}" for level in range(len(exact)) for what in ("same", "KL")]
    table = Table("dtype", "weights", *titles, box=box.SIMPLE)
    for dtype, quantization in ROWS:
        if dtype in options.dtype:
            narrow, other = opened(dtype, quantization)
            with fp32_products(narrow.device, narrow.precision.tf32):
                levels = other(codes, condition).levels
            found = [compare(wanted, got) for wanted, got in zip(exact, levels, strict=True)]
            cells = [text for same, kl in found for text in (f"{100 * same:.2f}%", f"{kl:.1e}")]
            table.add_row(dtype, quantization or dtype, *cells)
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main()
