"""The ablations' figures as Markdown tables, one for each of the paper's."""

from __future__ import annotations

from typing import Any

from ablation_measure import SAMPLES  # beside this file

Row = dict[str, Any]

HEAD = """# Demo-size ablations

Made by `python tools/ablations.py`; nothing is written here by hand. 32x32 emoji, tiny nets, {threads} thread of an
{processor}, torch {torch}, fp32, one seed. Stage 1: {stage1} updates x {batch1} pictures, squared error alone; stage 2:
{stage2} updates x {batch2}, on 5,354 training pictures without conditions; figures on 224 held-out ones. Fréchet
distances are on EfficientNet-Lite0's features, of 224 reconstructions, or of {samples} samples against every eighth
training picture: they are not FID. One seed and so few updates rank nothing for good: a difference of a few hundredths
of a dB or a few nats is no finding.
"""


def markdown(results: dict[str, Any]) -> str:
    runs = results["runs"]
    first = {stage: next(run for run in runs if run["stage"] == stage) for stage in ("stage1", "stage2")}
    head = HEAD.format(
        **results["machine"],
        stage1=first["stage1"]["updates"],
        batch1=first["stage1"]["batch_size"],
        stage2=first["stage2"]["updates"],
        batch2=first["stage2"]["batch_size"],
        samples=SAMPLES,
    )
    return "\n".join([head, *table4(runs), *table5(runs), *table6(runs)])


def of_table(runs: list[Row], number: int, stage: str) -> list[Row]:
    """A table's rows of one stage, without halves of models."""
    return [run for run in runs if run["row"].startswith(f"{number}: ") and run["stage"] == stage and not run["half"]]


def name(run: Row) -> str:
    return run["row"].partition(": ")[2]


def table4(runs: list[Row]) -> list[str]:
    lines = [
        "## Table 4: how levels are resampled",
        "",
        "| resampling | PSNR, dB | SSIM | PSNR, top codes alone | Fréchet | codes in use | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    return [*lines, *(_stage1_row(run) for run in of_table(runs, 4, "stage1")), ""]


def _stage1_row(run: Row) -> str:
    found = run["figures"]
    if not found:
        return f"| {name(run)} | not run | | | | | |"
    usage = " + ".join(f"{share:.0%}" for share in found["usage"])
    perplexity = " + ".join(f"{value:.0f}" for value in found["perplexity"])
    figures = f"{found['psnr']:.2f} | {found['ssim']:.3f} | {found['psnr_top_only']:.2f} | {found['frechet']:.1f}"
    return f"| {name(run)} | {figures} | {usage} | {perplexity} |"


def table5(runs: list[Row]) -> list[str]:
    lines = [
        "## Table 5: decoding policy and labels",
        "",
        "All on the codes of table 4's PixelUnshuffle: nats of the same codes, so lower is better without more ado.",
        "Global conditioning is two transformers (4 and 2 blocks), each with the whole budget: twice the others'.",
        "",
        "| policy, labels | nats a picture | top codes | bottom codes | Fréchet |",
        "|---|---|---|---|---|",
    ]
    rows = of_table(runs, 5, "stage2")
    notes = [
        f"The soft labels (tau = 1) are spread over {_spread(run)} codes (top, bottom; exp of their mean entropy)."
        for run in rows
        if "label_perplexity" in run["figures"]
    ]
    return [*lines, *(_stage2_row(run) for run in rows), "", *notes, ""]


def _spread(run: Row) -> str:
    return " and ".join(f"{value:.1f}" for value in run["figures"]["label_perplexity"])


def _stage2_row(run: Row) -> str:
    found = run["figures"]
    if not found:
        return f"| {name(run)} | not run | | | |"
    levels = " | ".join(f"{value:.1f}" for value in found["nats"])
    return f"| {name(run)} | {sum(found['nats']):.1f} | {levels} | {found['frechet']:.1f} |"


def table6(runs: list[Row]) -> list[str]:
    """Two and three levels; the paper's third row is table 4's and 5's own model."""
    stage1 = {name(run): run for run in of_table(runs, 6, "stage1")}
    stage2 = {name(run): run for run in of_table(runs, 6, "stage2")}
    own = {run["name"]: run for run in runs}
    stage1["4x4 + 8x8"], stage2["4x4 + 8x8"] = own["vae-shuffle"], own["hierarchical"]
    lines = [
        "## Table 6: more levels",
        "",
        "Nats of different codes: they tell how much there was to predict, not which model is better.",
        "",
        "| codes | PSNR, dB | Fréchet, rebuilt | codes in use | nats a picture | Fréchet, samples |",
        "|---|---|---|---|---|---|",
    ]
    order = ["2x2 + 4x4", "2x2 + 4x4 + 8x8", "4x4 + 8x8", "4x4 + 8x8 + 16x16"]
    return [*lines, *(_levels_row(codes, stage1[codes]["figures"], stage2[codes]["figures"]) for codes in order), ""]


def _levels_row(codes: str, vae: Row, transformer: Row) -> str:
    rebuilt = drawn = "not run | "
    if vae:
        rebuilt = f"{vae['psnr']:.2f} | {vae['frechet']:.1f} | " + " + ".join(f"{share:.0%}" for share in vae["usage"])
    else:
        rebuilt += "| "
    if transformer:
        levels = " + ".join(f"{value:.1f}" for value in transformer["nats"])
        drawn = f"{sum(transformer['nats']):.1f} ({levels}) | {transformer['frechet']:.1f}"
    return f"| {codes} | {rebuilt} | {drawn} |"
