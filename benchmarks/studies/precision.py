"""What fewer bits do to a checkpoint: other dtypes and quantized weights against fp32.

``hqtvae bench precision CHECKPOINT``, on codes that the checkpoint itself draws in fp32.

Predictions, teacher forced: for each level at how many positions the likeliest code is the same, and the mean over
positions of KL(p in fp32 || p in the row's numbers), in nats; then that of all positions. Pictures: PSNR of the same
codes decoded. Draws: codes drawn from the row's predictions at each position, counted and compared with what fp32's
make likely: the chance that counts at least as far off come from those very ones (chi-square). The row of fp32 shows
what nothing changed gives.

"int8, all": inputs of products too, as a CPU computes them (:func:`hqtvae_fast.ops.int8_linear`), and the decoder's
convolutions, calibrated on other drawings, whose numbers are a GPU's too where its plan has them in 8 bits; "int8": the
weights of products alone, as a GPU does otherwise; "int8, rows": inputs too, one scale a row, as a GPU may above 16
rows (``quantized_products=all``), and "int8, most" without those of each block's last product (``but_down``). Rows of
int8 that miss a limit, a KL of 2e-3 over all positions or 40 dB, are marked, and the exit code is 1; ``hqtvae tune``
judges by the same limits.

Result: precision.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Annotated, Any, cast
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
from hqtvae_fast.engine import decode_codes
from hqtvae_fast.engine.options import Quantization, QuantizedProducts
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.calibration import calibrate
from hqtvae_fast.ops import sample_logits
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.progress import counting_bar
from hqtvae_fast.tune.quality import (
    LEAST_PSNR,
    MOST_KL,
    PROMPTS,
    compare,
    decode_in_8_bits,
    mean_kl,
    repeated,
    round_rows,
)

ALL, WEIGHTS_ALONE = "int8, all", "int8"
IN_ROWS: dict[str, QuantizedProducts] = {"int8, most": "but_down", "int8, rows": "all"}
WEIGHTS: dict[str, Quantization] = {"": None, WEIGHTS_ALONE: "int8", ALL: "int8"}
WEIGHTS |= {**dict.fromkeys(IN_ROWS, "int8"), "fp8": "fp8"}  # type: ignore[dict-item]
ROWS = tuple(
    (dtype, weights)
    for dtype in ("fp32", "tf32", "bf16", "fp16")
    for weights in WEIGHTS
    if not (dtype in ("tf32", "fp16") and weights in (ALL, *IN_ROWS))
)
DRAWS = 16  # at each position
FEWEST = 10  # codes that are expected to be drawn less often are counted together


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
    texts = repeated(prompts, images)
    return {"prompt": texts}, pipe.tokenizer(texts).to(device)


def off_by_chance(exact: Sequence[Tensor], got: Sequence[Tensor], draws: int = DRAWS) -> float:
    """The probability of counts at least as far from those that the logits ``exact`` ([B, T, K] a level) lead to expect
    as counts of codes drawn from ``got`` are, were they drawn from ``exact``."""
    statistic, freedom = 0.0, 0
    for level, pair in enumerate(zip(exact, got, strict=True)):
        own = _chi_square(*(logits.flatten(0, 1).float().cpu() for logits in pair), level, draws)
        statistic, freedom = statistic + own[0], freedom + own[1]
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2.0).double()))


def _chi_square(exact_PK: Tensor, got_PK: Tensor, level: int, draws: int) -> tuple[float, int]:
    """Of counts over all positions, with its degrees of freedom. Positions have distributions of their own, so a
    count's variance is the sum of theirs and less than its mean."""
    p_PK = exact_PK.double().softmax(dim=1)
    positions, K = p_PK.shape
    counts_K = torch.zeros(K, dtype=torch.float64)
    for draw in range(draws):
        seeds = torch.arange(positions, dtype=torch.int64) + draw * positions
        counts_K += sample_logits(got_PK, seeds=seeds, step=0, position=level).bincount(minlength=K)
    often_K = draws * p_PK.sum(dim=0) >= FEWEST
    rest_P1 = p_PK[:, ~often_K].sum(dim=1, keepdim=True)
    p_PN = torch.cat([p_PK[:, often_K], rest_P1], dim=1)
    counts_N = torch.cat([counts_K[often_K], counts_K[~often_K].sum()[None]])
    variance_N = draws * (p_PN * (1 - p_PN)).sum(dim=0).clamp_min(1e-9)
    size = len(counts_N)
    far_N = (counts_N - draws * p_PN.sum(dim=0)).square() / variance_N
    return float(far_N.sum()) * (size - 1) / size, size - 1


class Dtype(str, Enum):
    """What a row computes in."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(frozen=True)
class Seen:
    """What a row is compared with: codes of drawings, the condition they were drawn by, logits and pictures in fp32."""

    codes: list[Tensor]
    condition: Tensor | None
    logits: Sequence[Tensor]
    pictures: Tensor


@dataclass(frozen=True)
class Row:
    """``levels``: share of the same likeliest codes, and KL, of each; ``kl`` of all positions; ``psnr`` in dB, infinite
    for the same pictures; ``chance``: :func:`off_by_chance`."""

    levels: list[tuple[float, float]]
    kl: float
    psnr: float
    chance: float

    @property
    def misses(self) -> list[str]:
        """The limits that int8 does not keep."""
        kl = [f"a KL of at most {MOST_KL:.0e}"] if self.kl > MOST_KL else []
        return kl + ([f"at least {LEAST_PSNR:.0f} dB"] if self.psnr < LEAST_PSNR else [])

    def cells(self, judged: bool) -> list[str]:
        texts = [text for same, kl in self.levels for text in (f"{100 * same:.2f}%", f"{kl:.1e}")]
        texts += [f"{self.kl:.1e}", "the same" if self.psnr == float("inf") else f"{self.psnr:.1f} dB"]
        return [*texts, f"p = {self.chance:.2g}", "over the limit" if judged and self.misses else ""]


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
    """Show what fewer bits do to a checkpoint's predictions, draws and pictures."""
    wanted = [name.value for name in dtype]
    rows = [(name, weights) for name, weights in ROWS if name in wanted and _possible(name, weights, device)]
    exact = _open(checkpoint, device, "fp32")
    seen = _see(exact, images, prompt or PROMPTS)
    calibration = _codes(exact, images, prompt or PROMPTS, seed=1)
    titles = [f"level {level}: {what}" for level in range(len(seen.logits)) for what in ("same", "KL")]
    table = Table("dtype", "weights", *titles, "all: KL", "pictures", "draws", "", box=box.SIMPLE)
    missed: list[str] = []
    with counting_bar("Judging") as on_progress:
        for done, (name, weights) in enumerate(rows):
            on_progress(done, len(rows))
            with _products_of(weights):
                pipe = _open(checkpoint, device, name, WEIGHTS[weights])
                if weights in IN_ROWS:
                    round_rows(cast(HQTransformer, pipe.transformer), IN_ROWS[weights])
                row = _judge(pipe, seen, calibration if weights == ALL else None)
            judged = WEIGHTS[weights] == "int8"
            missed += [f"{name}, {weights}: {limit}" for limit in row.misses if judged]
            table.add_row(name, weights or name, *row.cells(judged))
    Console(highlight=False, width=140).print(table)
    if missed:
        print(f"expected {'; '.join(missed)}", file=sys.stderr)
        raise typer.Exit(1)


def _open(checkpoint: str, device: str, dtype: str, quantization: Quantization = None) -> HQTVAEPipeline:
    pipe = HQTVAEPipeline.from_pretrained(checkpoint, device=device, dtype=dtype, quantization=quantization)
    if pipe.transformer is None:
        raise SystemExit(f"{checkpoint}: expected a checkpoint with a transformer")
    return pipe


def _codes(pipe: HQTVAEPipeline, images: int, prompts: Sequence[str], *, seed: int = 0) -> list[Tensor]:
    arguments, _ = _condition(pipe, images, prompts)
    arguments |= {} if arguments else {"num_images": images}
    drawn = pipe(**arguments, seed=seed, output_type="codes", progress=False).codes
    return [level.to(pipe.device) for level in drawn]


def _see(pipe: HQTVAEPipeline, images: int, prompts: Sequence[str]) -> Seen:
    assert pipe.transformer is not None
    codes, condition = _codes(pipe, images, prompts), _condition(pipe, images, prompts)[1]
    with fp32_products(pipe.device, tf32=False):
        logits = pipe.transformer(codes[: pipe.transformer.config.num_levels], condition).levels
        return Seen(codes, condition, logits, decode_codes(pipe.vae, codes))


def _judge(pipe: HQTVAEPipeline, seen: Seen, calibration: Sequence[Tensor] | None) -> Row:
    """``calibration``: codes by which the decoder is to be rounded too."""
    assert pipe.transformer is not None
    with fp32_products(pipe.device, pipe.precision.tf32):
        logits = pipe.transformer(seen.codes[: len(seen.logits)], seen.condition).levels
        if calibration is None:
            pictures = decode_codes(pipe.vae, seen.codes)
        else:
            calibrate(pipe.vae, partial(decode_codes, pipe.vae, calibration))
            pictures = decode_in_8_bits(pipe.vae, seen.codes)
    levels = [compare(*pair) for pair in zip(seen.logits, logits, strict=True)]
    chance = off_by_chance(seen.logits, logits)
    return Row(levels, mean_kl(seen.logits, logits), float(psnr(pictures, seen.pictures).mean()), chance)


def _possible(dtype: str, weights: str, device: str) -> bool:
    """Whether this device rounds inputs too, or multiplies so."""
    on_cpu = torch.device(device).type == "cpu"
    if weights == ALL:
        return on_cpu and native.instructions() > 0
    return dtype != "tf32" or not on_cpu


@contextmanager
def _products_of(weights: str) -> Iterator[None]:
    """Of a CPU: inputs of int8 products are rounded, or none are."""
    if weights == ALL:
        yield
        return
    with mock.patch.dict(os.environ, {VARIABLE: "packed_linear=reference"}):
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    run(precision, arguments)


if __name__ == "__main__":
    main()
