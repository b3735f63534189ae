"""Held-out pictures, and sums over them that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from hqtvae_fast.model import HQVAE
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.train.codes.usage import perplexity
from hqtvae_fast.train.data import Batch, PictureDataset, Source, collate
from hqtvae_fast.train.data.loader import leave_interrupts


class HeldOut:
    """Held-out pictures in batches: the same ones each time, shared out among the processes.

    dataset: in evaluation mode, so that crops and captions are the plain ones. limit: at most so many pictures, spread
    evenly over the set, which may be sorted by class. batch_size: of one process. Nothing is drawn from torch's random
    stream, so that training goes on as if there had been no validation.
    """

    def __init__(
        self, dataset: PictureDataset, *, limit: int, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0
    ) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.indices = spread(len(dataset), limit)[rank::world]

    def __iter__(self) -> Iterator[Batch]:
        if not self.indices:
            return iter(())
        loader = DataLoader(
            Subset(self.dataset, self.indices),
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=min(self.workers, (len(self.indices) - 1) // self.batch_size),  # none for the first batch
            worker_init_fn=leave_interrupts,
            generator=torch.Generator(),  # else each pass would take a number from torch's global stream
        )
        return iter(loader)

    def some(self, count: int) -> Batch:
        """At most ``count`` to look at, the same ones in every process."""
        return collate([self.dataset[index] for index in spread(len(self.dataset), count)])

    def names(self, count: int) -> list[str]:
        """Of :meth:`some`: a picture's class, or its caption, or its file's name."""
        return [_name(self.dataset.source, index) for index in spread(len(self.dataset), count)]


def _name(source: Source, index: int) -> str:
    with suppress(ValueError, OSError):
        fields = source.fields(index)
        told = fields.get("class_name") or fields.get("caption")
        if told:
            return str(told[0] if isinstance(told, list) else told)
    return Path(source.key(index)).stem


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` of the indices below ``length``, at even distances."""
    count = min(length, count)
    return [place * length // count for place in range(count)]


class Sums:
    """Sums by name, in float64: of scalars or vectors, over batches and then over processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            wide = value.detach().double()
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide

    def total(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Over all processes, on the CPU. Every process must call it; some may have had nothing to add."""
        own = {name: value.cpu() for name, value in self._sums.items()}
        parts = [own] if accelerator.num_processes == 1 else gather_object([own])
        everyone = Sums()
        for part in parts:
            everyone.add(part)
        return everyone._sums


@torch.no_grad()
def validate_vae(accelerator: Accelerator, vae: HQVAE, held_out: HeldOut) -> dict[str, float]:
    """Reconstruction quality and code usage in fp32, as means over the pictures.

    ``psnr`` in dB; ``mse`` of pixels in [-1, 1]; by level, ``usage_i``: share of codes that some picture chooses, and
    ``perplexity_i`` of the codes chosen.
    """
    sums, sizes = Sums(), vae.config.codebook_sizes
    for batch in held_out:
        images = batch.images.to(accelerator.device)
        codes = vae.encode(images)
        rebuilt = vae.decode(codes).float().clamp(-1, 1)
        quality = {
            "psnr": psnr(rebuilt * 0.5 + 0.5, images * 0.5 + 0.5).sum(),
            "mse": (rebuilt - images).square().flatten(1).mean(dim=1).sum(),
            "pictures": torch.tensor(len(images), dtype=torch.int64, device="cpu"),
        }
        counts = {
            f"level_{index}": level.flatten().bincount(minlength=size)
            for index, (level, size) in enumerate(zip(codes, sizes, strict=True))
        }
        sums.add(quality | counts)
    total = sums.total(accelerator)
    metrics = {name: float(total[name] / total["pictures"]) for name in ("psnr", "mse")}
    for index in range(len(sizes)):
        counts_K = total[f"level_{index}"]
        metrics[f"usage_{index}"] = float((counts_K > 0).double().mean())
        metrics[f"perplexity_{index}"] = float(perplexity(counts_K))
    return metrics
