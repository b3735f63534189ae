"""Making a code cache: every picture through the encoder once, into a file that is whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from hqtvae_fast.config import ConfigError
from hqtvae_fast.files import whole_file
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.images import refuse_invalid
from hqtvae_fast.ops.kernels.nearest_code import not_finite
from hqtvae_fast.train.codes.cache import CacheSpec, CodeCache, join_codes, picture_latents, vae_hash
from hqtvae_fast.train.data import Source
from hqtvae_fast.train.data.squares import CentreSquares
from hqtvae_fast.train.loop.progress import picture_bar
from hqtvae_fast.train.words import say

BATCH = 32  # pictures encoded at once: at 256x256 the encoder's widest activations take 1 GiB
POLL_SECONDS = 1.0


def open_code_cache(
    file: Path,
    accelerator: Accelerator,
    vae: HQVAE,
    source: Source,
    *,
    soft_labels: bool,
    mirrored: bool,
    workers: int = 0,
) -> CodeCache:
    """The cache in ``file``; where there is no file, the main process makes it and the others wait.

    ``soft_labels``: keep latents, which those are made from, and not codes alone. ``mirrored``: keep mirrored pictures
    too. ConfigError on a file that is another's cache, see :class:`CodeCache`.
    """
    spec = CacheSpec(
        data=source.fingerprint(),
        vae=vae_hash(vae),
        config=vae.config,
        pictures=len(source),
        content="latents" if soft_labels else "codes",
        mirrored=mirrored,
    )
    if accelerator.is_main_process and not file.exists():
        build_code_cache(file, spec, source, vae.to(accelerator.device).eval(), workers=workers)
    while not file.exists():  # a barrier would give up after minutes, and making a cache may take hours
        time.sleep(POLL_SECONDS)
    cache = CodeCache(file, spec)
    if cache.broken:
        say(f"code cache {file}: {cache.broken:,} of {spec.pictures:,} pictures are broken")
    return cache


def build_code_cache(file: Path, spec: CacheSpec, source: Source, vae: HQVAE, *, workers: int = 0) -> None:
    """Encode all pictures on the VAE's device and write the file. ConfigError if the disk cannot hold it.

    What has been written when something fails, or when the user stops it, is removed.
    """
    console = Console(stderr=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    size = spec.pictures * (spec.picture_bytes + 1)
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise ConfigError(f"{file}: expected {size:,} bytes of free space for the code cache; got {free:,}")
    console.print(
        f"code cache {file}: {spec.content} of {spec.pictures:,} pictures x {spec.versions}, {size:,} bytes"
        f" ({spec.picture_bytes:,} a picture)",
        soft_wrap=True,
    )
    began = time.monotonic()
    with whole_file(file) as out, picture_bar(console) as bar:
        task = bar.add_task("encoding", total=spec.pictures)
        broken = []
        out.write(spec.header())
        for rows, is_broken in _encoded(spec, source, vae, workers):
            out.write(rows.tobytes())
            broken.append(is_broken)
            bar.advance(task, len(is_broken))
        out.write(np.concatenate(broken).tobytes())
    seconds = time.monotonic() - began
    console.print(
        f"code cache {file}: {spec.pictures / seconds:,.1f} images/s, {seconds:,.0f} s in all", soft_wrap=True
    )


def _encoded(spec: CacheSpec, source: Source, vae: HQVAE, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of the cache's rows [B, V, *row], and which of them are broken, bool [B]; in the source's order."""
    device = next(vae.parameters()).device
    for images, is_broken in CentreSquares(source, spec.config.resolution).batches(BATCH, workers=workers):
        plain = images.to(device)
        versions = [plain, plain.flip(-1)][: spec.versions]
        rows = torch.stack([_rows(spec, vae, version) for version in versions], dim=1)
        yield rows.cpu().numpy().astype(spec.dtype), is_broken.numpy()


def _rows(spec: CacheSpec, vae: HQVAE, images: Tensor) -> Tensor:
    z = picture_latents(vae, images)
    refuse_invalid(images, not_finite(z))
    if spec.content == "latents":
        return z
    with torch.no_grad():
        return join_codes([level.codes for level in vae.quantize(z)])
