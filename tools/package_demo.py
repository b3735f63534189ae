"""Make the checkpoint that ships from a demo run: fp16 weights, measurements, pictures and the model card.

    python tools/package_demo.py --data composed/ --work runs/demo --out hqtvae_fast/assets/demo

The card's figures are measured here, with the packaged weights: reconstruction PSNR and code usage on the held-out
pictures, and for eight samples the training picture nearest to each; of the composed set how many drawings show what
they were asked for, too (the `eval` extra has the network that judges them). Where the runs' folder holds a fine-tuning
alone, what came before is told by the training.json of the model that it began with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from composed_figures import PROMPTS, as_table, best_scale, make_references, measured, sheet  # beside this file
from demo_data import Part
from model_card import history, write_card
from PIL import Image
from rich.console import Console
from rich.progress import track
from train_demo import shards

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.evaluate import open_extractor
from hqtvae_fast.pictures.images import grid, psnr, to_pil, with_caption
from hqtvae_fast.train.codes.usage import perplexity
from hqtvae_fast.train.data import caption_template

NEAREST_PROMPTS = 8
JUDGE = "efficientnet-lite0"
LIMIT_BYTES = 20_000_000
console = Console(stderr=True)

Data = Annotated[Path, typer.Option("--data", help="Folder with a shard ...-train.tar, and its -val.tar.")]
Work = Annotated[Path, typer.Option("--work", help="Folder of the runs, as train_demo.py was given it.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


def main(data: Data, work: Work, out: Out) -> None:
    """Package a finished run."""
    console.print("packing weights")
    record = history(work)
    last = max((work / name for name in ("hqt", "fine") if (work / name / "model").is_dir()), key=_finished)
    store_fp16(last / "model", out)
    pipe = HQTVAEPipeline.from_pretrained(out, device="cpu", dtype="fp32")
    resolution = pipe.config.vae.resolution
    run = json.loads((last / "run.json").read_text())
    caption, (training, val) = caption_template(run["caption"]), shards(data)
    train, held_out = (Part.read(file, resolution, caption) for file in (training, val))
    figures = {name: coding_figures(pipe, part) for name, part in (("train", train), ("held_out", held_out))}
    reconstructions(pipe, held_out).save(out / "reconstructions.jpg", quality=90)
    prompts, told = run["sample_prompts"][:NEAREST_PROMPTS], {}
    if "things" in train.shown[0]:
        told = compositions(pipe, train, held_out, run["sample_temperature"], out / "unseen.jpg")
    else:
        unseen(pipe, run, Part.read(val, resolution, caption, run["select"]), out / "unseen.jpg")
    neighbours = nearest(pipe, prompts, run["sample_temperature"], train, out / "nearest.jpg")
    plot_losses(work, out)
    write_card(out, pipe.config, record, run["sample_temperature"], {**figures, **told}, neighbours)
    size = sum(file.stat().st_size for file in out.iterdir())
    console.print(f"{out}: {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        raise typer.BadParameter(f"{out}: expected at most {LIMIT_BYTES / 1e6:.0f} MB; got {size / 1e6:.1f}")


def _finished(run: Path) -> float:
    return (run / "model" / checkpoints.CONFIG_FILE).stat().st_mtime


def store_fp16(trained: Path, out: Path) -> None:
    """All weights in fp16, the encoder's and the codebooks' too: half the download, and codes hardly change."""
    made = checkpoints.load(trained)
    for module in made.modules().values():
        module.half()
        for name, value in module.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}: expected values that fit fp16")
    checkpoints.save(made, out)


def coding_figures(pipe: HQTVAEPipeline, part: Part, batch: int = 128) -> dict[str, float]:
    """Mean PSNR in dB, and by level the share of codes used at least once and the perplexity of their use."""
    ratios, counts = [], [torch.zeros(size) for size in pipe.config.vae.codebook_sizes]
    for pixels in track(part.pixels.split(batch), "coding", console=console):
        images = pixels.float() / 127.5 - 1
        codes = pipe.encode(images)
        rebuilt = pipe.decode(codes, output_type="pt")
        ratios.append(psnr(rebuilt, images * 0.5 + 0.5))
        for count, level in zip(counts, codes, strict=True):
            count += torch.bincount(level.flatten(), minlength=len(count))
    figures = {"pictures": len(part.pixels), "psnr": float(torch.cat(ratios).mean())}
    for index, count in enumerate(counts):
        figures[f"usage_{index}"] = float((count > 0).float().mean())
        figures[f"perplexity_{index}"] = float(perplexity(count))
    return figures


def reconstructions(pipe: HQTVAEPipeline, part: Part, columns: int = 12) -> Image.Image:
    """Held-out pictures, each above its reconstruction."""
    chosen = torch.linspace(0, len(part.pixels) - 1, 2 * columns).long()
    images = part.floats()[chosen]
    rebuilt = to_pil(pipe.decode(pipe.encode(images), output_type="pt"))
    shown = to_pil(images * 0.5 + 0.5)
    rows = [shown[:columns], rebuilt[:columns], shown[columns:], rebuilt[columns:]]
    return grid([image for row in rows for image in row], columns=columns)


def compositions(
    pipe: HQTVAEPipeline, train: Part, held_out: Part, temperature: float, file: Path, columns: int = 10
) -> dict[str, Any]:
    """How many drawings are right, as a table for the card, the best guidance scale, and a sheet with it."""
    extract = open_extractor(JUDGE, device="cpu")
    console.print(f"telling compositions by {extract.name}")
    references = make_references((train, held_out), extract)
    known, new = (measured(pipe, part.some(PROMPTS), references, temperature) for part in (train, held_out))
    scale = best_scale(new)
    sheet(pipe, held_out.some(columns), train, scale, temperature).save(file, quality=90)
    return {"compositions": as_table(known, new), "scale": scale}


def unseen(pipe: HQTVAEPipeline, run: dict[str, Any], part: Part, file: Path, columns: int = 8) -> None:
    """Held-out pairs of a concept and a style, from the groups of the last run: what is drawn above what there is."""
    chosen = torch.linspace(0, len(part.pixels) - 1, columns).long().tolist()
    prompts = [part.captions[index] for index in chosen]
    drawn = pipe(prompt=prompts, temperature=run["sample_temperature"], seed=0, progress=False).images
    shown = [*drawn, *to_pil(part.pixels[chosen].float() / 255)]
    captions = [*prompts, *["held out"] * columns]
    cells = [with_caption(image.resize((112, 112)), text) for image, text in zip(shown, captions, strict=True)]
    grid(cells, columns=columns).save(file, quality=90)


def nearest(
    pipe: HQTVAEPipeline, prompts: list[str], temperature: float, train: Part, file: Path
) -> list[tuple[str, str, float]]:
    """Samples above the training picture nearest to each in squared error: (prompt, its caption, PSNR between them)."""
    drawn = pipe(prompt=prompts, temperature=temperature, seed=0, output_type="pt", progress=False).images
    all_pixels = train.pixels.float().div(255).flatten(1)
    found, pictures = [], []
    for prompt, image in zip(prompts, drawn, strict=True):
        index = int((all_pixels - image.flatten()).square().mean(dim=1).argmin())
        neighbour = train.pixels[index].float() / 255
        found.append((prompt, train.captions[index], float(psnr(image[None], neighbour[None])[0])))
        pictures.append(neighbour)
    grid([*to_pil(drawn), *to_pil(torch.stack(pictures))], columns=len(prompts)).save(file, quality=90)
    return found


PANELS = {  # run: file, curves, title
    "vae": ("losses-vae.png", {"psnr": "PSNR"}, "HQ-VAE: training PSNR, dB"),
    "hqt": ("losses-hqt.png", {"level_0": "top codes", "level_1": "bottom codes"}, "HQ-Transformer: nats a code"),
    "fine": ("losses-fine.png", {"level_0": "top codes", "level_1": "bottom codes"}, "Fine-tuning: nats a code"),
}


def plot_losses(work: Path, out: Path) -> None:
    """Each run's curves, averaged over a fiftieth of the run, in a file of its own."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for run, (file, names, title) in PANELS.items():
        if not (work / run / "losses.jsonl").is_file():
            continue
        figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
        lines = (work / run / "losses.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if next(iter(names)) in row]
        width = max(1, len(rows) // 50)
        for name, label in names.items():
            values = torch.tensor([row[name] for row in rows])
            smooth = values.unfold(0, width, width).mean(dim=1)
            axis.plot([row["step"] for row in rows][width - 1 :: width][: len(smooth)], smooth, label=label)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(out / file, dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
