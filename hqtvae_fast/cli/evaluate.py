"""``hqtvae evaluate``: how good samples, or reconstructions, are."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hqtvae_fast.cli.checks import config_of
from hqtvae_fast.cli.options import MACHINE, OUTPUT, Device, DType, open_pipeline
from hqtvae_fast.cli.output import check_file, count, progress, rate, show, table, waiting
from hqtvae_fast.files import json_text, write_file

if TYPE_CHECKING:
    from hqtvae_fast.distributed import Team
    from hqtvae_fast.evaluate import Extractor, Pictures, Reference
    from hqtvae_fast.evaluate.reconstruction import ReconstructionState
    from hqtvae_fast.evaluate.report import Metric
    from hqtvae_fast.evaluate.set_state import SetState
    from hqtvae_fast.pipeline import HQTVAEPipeline

WHAT, HOW = "What to judge", "How"  # panels of --help
State = TypeVar("State")
KEPT = 50_000  # features of each set that precision and recall look at, at most

ReferencePath = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="PATH",
        help="What samples are held against: a folder of pictures, shards, an .npz of pictures (ADM's format), or of"
        " statistics (mu and sigma; written by --save-reference, or from elsewhere). May be repeated, for shards.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Samples = Annotated[
    list[str] | None,
    typer.Option(
        "--samples",
        metavar="PATH",
        help="The pictures to judge: a folder, shards, an .npz of pictures.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Reconstruct = Annotated[
    str | None,
    typer.Option(
        "--reconstruct",
        metavar="CHECKPOINT",
        help="Judge this model's reconstructions of the reference instead: rFID, PSNR, SSIM, use of its codes.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Codes = Annotated[
    str | None,
    typer.Option(
        "--codes",
        metavar="PATH",
        help="Its codes of the reference, shards that encode --shards wrote, in place of encoding again. Without"
        " --reference: only how much of each codebook they use.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="NETWORK",
        help="inception:FILE (FID's weights, for FID), clip:DIR, efficientnet-lite0 (from a package; its distance is"
        " not FID), a TorchScript file or package.module:factory (uint8 [B, 3, R, R] to [B, d]).",
        rich_help_panel=HOW,
    ),
]
ClipFolder = Annotated[
    Path | None,
    typer.Option(
        "--clip",
        metavar="DIR",
        help="Also compare samples with their captions: a CLIP folder in Hugging Face's format. Needs no --reference.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Caption = Annotated[
    str,
    typer.Option(
        "--caption",
        metavar="TEMPLATE",
        help="Captions of samples: plain, emoji, or fields in braces. Files that sample wrote say theirs.",
        rich_help_panel=HOW,
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution",
        metavar="R",
        min=1,
        help="Fit all pictures to this side.",
        show_default="the samples', or the model's",
        rich_help_panel=HOW,
    ),
]
Neighbours = Annotated[
    int,
    typer.Option("--neighbours", metavar="K", min=1, help="Of precision and recall.", rich_help_panel=HOW),
]
Keep = Annotated[
    int,
    typer.Option(
        "--keep",
        metavar="N",
        min=0,
        help="Features of each set that kernel distance, precision and recall look at, at most, spread evenly; 0"
        " leaves them out.",
        rich_help_panel=HOW,
    ),
]
SaveReference = Annotated[
    Path | None,
    typer.Option(
        "--save-reference",
        metavar="FILE.npz",
        help="Write the reference's statistics and features, to be given as --reference later.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Write the figures.", show_default=False, rich_help_panel=OUTPUT),
]
Batch = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Pictures.", rich_help_panel=MACHINE)]
Workers = Annotated[
    int,
    typer.Option("--workers", metavar="N", min=0, help="Processes that read ahead.", rich_help_panel=MACHINE),
]


def evaluate(
    reference: ReferencePath = None,
    samples: Samples = None,
    reconstruct: Reconstruct = None,
    codes: Codes = None,
    features: Features = "efficientnet-lite0",
    clip: ClipFolder = None,
    caption: Caption = "plain",
    resolution: Resolution = None,
    neighbours: Neighbours = 3,
    keep: Keep = KEPT,
    save_reference: SaveReference = None,
    out: Out = None,
    batch_size: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Judge samples against a reference: Fréchet distance (FID), kernel distance (KID), precision, recall; or alone:
    class score (Inception Score), CLIP-score. Or judge reconstructions.

    Figures bear the names FID, KID and Inception Score only where they are these: with FID's own network and weights.
    Under torchrun, each process measures a part of the pictures; the figures are those of one process but for the last
    bits of sums.
    """
    if codes is not None and reconstruct is None:
        raise ValueError("--codes: expected --reconstruct CHECKPOINT beside it; got none")
    wanted = (samples is not None) + (reconstruct is not None)
    needed = (samples is None and codes is None) or save_reference is not None
    if wanted > 1 or (wanted == 0 and save_reference is None) or (needed and not reference):
        raise ValueError("expected --reference, and one of --samples, --reconstruct and --save-reference")
    for file in (save_reference, out):
        check_file(file)
    if reconstruct is not None:
        config_of(reconstruct)
    if reconstruct is not None and codes is not None and not reference:
        _judge_use(reconstruct, codes, device, out)
        return
    with waiting("Starting"):
        import torch

        from hqtvae_fast.distributed import join_team
        from hqtvae_fast.evaluate import open_extractor

    with join_team() as team:
        own = team.device(device) or ("cuda" if torch.cuda.is_available() else "cpu")
        with waiting(f"Opening {features}"):
            extractor = open_extractor(features, own)
        job = _Job(extractor, batch_size, workers, keep, neighbours, team)
        started = time.perf_counter()
        if reconstruct is not None and reference:
            pipe = open_pipeline(reconstruct, own, dtype)
            metrics, facts = job.reconstructions(pipe, reference, reconstruct, codes)
        else:
            metrics, facts = job.samples(reference, samples, resolution, clip, caption, save_reference)
        if team.leads:
            typer.echo(f"{rate(job.seen, 'picture', time.perf_counter() - started)}, {own}", err=True)
            _finish(metrics, facts, out)


class _Job:
    """One run of the command: what is measured with, and what was said on the way. Of a team's processes the leader
    speaks and writes."""

    def __init__(self, extractor: Extractor, batch: int, workers: int, keep: int, k: int, team: Team) -> None:
        self.extractor, self.batch, self.workers, self.keep, self.k = extractor, batch, workers, keep, k
        self.team, self.seen = team, 0

    def _together(self, label: str, pictures: Pictures, measured: Callable[..., State]) -> State:
        """Each process's part of the pictures, added up; ``measured(span, advance)`` is of one part."""
        from hqtvae_fast.evaluate.set_state import spans

        parts = spans(len(pictures), min(self.team.world, max(1, len(pictures))))

        def own() -> State | None:
            if self.team.rank >= len(parts):
                return None  # fewer pictures than processes
            part = parts[self.team.rank]
            with progress(label, len(part)) if self.team.leads else nullcontext(lambda done: None) as advance:
                return measured(part, advance)

        states = [state for state in self.team.gather(own) if state is not None]
        return reduce(add, states)

    def samples(
        self,
        reference: list[str] | None,
        samples: list[str] | None,
        resolution: int | None,
        clip: Path | None,
        caption: str,
        save: Path | None,
    ) -> tuple[list[Metric], dict[str, Any]]:
        from hqtvae_fast.evaluate import open_pictures, write_reference
        from hqtvae_fast.evaluate.extractors.clip import load_clip
        from hqtvae_fast.evaluate.report import compare, left_out
        from hqtvae_fast.train.data import caption_template

        judged = None if samples is None else open_pictures(samples, resolution, caption_template(caption))
        if reference is None and clip is None and self.extractor.classifier is None:
            raise ValueError(f"expected --reference or --clip; {self.extractor.name} alone gives no score of samples")
        size = resolution if judged is None else judged.resolution
        against = self._reference(reference, size) if reference else None
        if save is not None and against is not None and self.team.leads:
            write_file(save, write_reference(against))
            typer.echo(f"wrote {save} ({against.gaussian.count:,} pictures, {self.extractor.name})")
        if judged is None:
            return [], {}
        texts = None if clip is None else load_clip(clip).to(self.extractor.device)
        state = self._measure("Samples", judged, texts)
        facts = {
            "reference": reference,
            "samples": samples,
            "pictures": state.moments.count,
            "resolution": judged.resolution,
            "extractor": self.extractor.name,
        }
        if against is not None:
            fewest = min(state.moments.count, against.gaussian.count or state.moments.count)
            self._warn(fewest, len(state.moments.mean))
        for note in left_out(against, state, self.k):
            self._say(f"note: {note}")
        return compare(against, state, self.extractor, self.k), facts

    def reconstructions(
        self, pipe: HQTVAEPipeline, reference: list[str], name: str, codes: str | None
    ) -> tuple[list[Metric], dict[str, Any]]:
        from hqtvae_fast.evaluate import open_pictures
        from hqtvae_fast.evaluate.code_use import open_coded
        from hqtvae_fast.evaluate.reconstruction import measure_reconstructions
        from hqtvae_fast.evaluate.report import judge

        stored = None
        if codes is None:
            pictures = open_pictures(reference, pipe.config.vae.resolution)
        else:
            pictures, stored, without = open_coded(codes, reference, pipe.vae)
            if without:
                self._say(
                    f"note: {reference[0]}: {without:,} of {count(without + len(pictures), 'picture')} without codes"
                )

        def part(span: range, advance: Callable[[int], None]) -> ReconstructionState:
            how: dict[str, Any] = {"batch": self.batch, "workers": self.workers, "advance": advance, "stored": stored}
            return measure_reconstructions(pipe, pictures, self.extractor, span, **how)

        state = self._together("Reconstructing", pictures, part)
        self.seen += state.count
        facts = {"reference": reference, "model": name, "pictures": state.count, "extractor": self.extractor.name}
        facts |= {"resolution": pictures.resolution} | ({} if codes is None else {"codes": codes})
        self._warn(state.count, len(state.originals.mean))
        return judge(state, self.extractor), facts

    def _reference(self, paths: list[str], resolution: int | None) -> Reference:
        """From statistics if they will do, else measured."""
        from hqtvae_fast.evaluate import Reference, open_pictures, read_reference
        from hqtvae_fast.evaluate.reference import holds_statistics

        if len(paths) == 1 and holds_statistics(Path(paths[0])):
            known = read_reference(Path(paths[0]))
            if None not in (known.resolution, resolution) and known.resolution != resolution:
                self._say(
                    f"warning: {paths[0]} is of pictures of {known.resolution} pixels, the samples have {resolution}"
                )
            if known.features is None and self.keep:
                return self._with_features(known, Path(paths[0]), resolution)
            return known
        return Reference.of(self._measure("Reference", open_pictures(paths, resolution), None))

    def _with_features(self, known: Reference, path: Path, resolution: int | None) -> Reference:
        """ADM's reference batches hold pictures beside the statistics (of more pictures): precision and recall are of
        these."""
        from hqtvae_fast.evaluate import open_pictures
        from hqtvae_fast.evaluate.reference import holds_pictures

        if not holds_pictures(path):
            self._say(f"note: {path} holds neither features nor pictures: no kernel distance, precision and recall")
            return known
        state = self._measure("Reference", open_pictures(path, resolution), None)
        known.check(self.extractor, len(state.moments.mean), str(path))
        return replace(known, features=state.features())

    def _measure(self, label: str, pictures: Pictures, clip: Any) -> Any:
        from hqtvae_fast.evaluate import measure

        def part(span: range, advance: Callable[[int], None]) -> SetState:
            how: dict[str, Any] = {"batch": self.batch, "workers": self.workers, "advance": advance}
            return measure(pictures, self.extractor, span, keep=self.keep, clip=clip, **how)

        state = self._together(label, pictures, part)
        self.seen += state.moments.count
        return state

    def _warn(self, number: int, width: int) -> None:
        from hqtvae_fast.evaluate.report import cautions

        for caution in cautions(number, width, self.extractor):
            self._say(f"warning: {caution}")

    def _say(self, text: str) -> None:
        if self.team.leads:
            typer.echo(text, err=True)


def _judge_use(checkpoint: str, codes: str, device: str | None, out: Path | None) -> None:
    """Of stored codes alone: how much of each codebook they use."""
    with waiting("Starting"):
        from hqtvae_fast.evaluate.code_use import open_codes, use_of_stored
        from hqtvae_fast.evaluate.report import judge_use

    pipe = open_pipeline(checkpoint, device, None)
    coded, config = open_codes(codes, pipe.vae), pipe.config.vae
    with progress("Counting", len(coded)) as advance:
        use = use_of_stored(coded, config, advance=advance)
    facts = {"model": checkpoint, "codes": codes, "pictures": use.pictures, "resolution": config.resolution}
    _finish(judge_use(use), facts, out)


def _finish(metrics: list[Metric], facts: dict[str, Any], out: Path | None) -> None:
    from hqtvae_fast.evaluate.report import document

    if not metrics:
        return
    shown = table(f"{count(facts['pictures'], 'picture')} of {facts['resolution']} pixels", "metric", "value", "of")
    for metric in metrics:
        arrow = "↓" if metric.better == "lower" else "↑"
        shown.add_row(f"{metric.name} {arrow}", metric.shown(), metric.of)
    if out is not None:  # before a table is shown: nothing that happens to that may cost the file
        write_file(out, (json_text(document(metrics, facts), indent=1, allow_nan=False) + "\n").encode())
    show(shown)
    if out is not None:
        typer.echo(f"wrote {out}")
