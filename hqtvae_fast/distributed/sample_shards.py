"""Pictures drawn into WebDataset shards, by any number of processes that may stop anywhere and go on.

``samples-000000.tar``, ``samples-000001.tar``, ... hold ``shard_size`` pictures each, in order: ``<index>.png`` and
``<index>.json`` (index, seed, label or caption). ``samples.json`` has what all of them are drawn from, and
``samples-000000.json`` beside a shard its checksum; all checksums are in ``manifest.json`` and ``SHA256SUMS`` (for
``sha256sum -c``), which are written when the last shard is there.

A folder is extended by asking for more: whole shards stay, the last one is made again if it has room. The manifest is
renewed. Pictures of one class or prompt, of all classes in turn or of nothing in particular may become more; a list of
several may become longer.

Picture i depends on (seed, i) and its class or prompt alone. Its bits also depend on the shapes of the products that it
was computed in: so batches begin anew with each shard, all have ``batch_size`` rows, and both numbers are part of
what a folder holds. Processes take whole shards, and how many there are changes no bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image

from hqtvae_fast.config import ConfigError
from hqtvae_fast.distributed.subjects import Subjects
from hqtvae_fast.files import PARTIAL, json_text, read_text, whole_file, write_file
from hqtvae_fast.files.shards import add_member, keep_spec
from hqtvae_fast.output import HQTVAEImage
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.world import world

FORMAT = "hqtvae_fast sample shards, version 1"
SPEC_FILE, MANIFEST_FILE, SUMS_FILE = "samples.json", "manifest.json", "SHA256SUMS"
MAX_ENCODERS = 16  # threads that compress PNGs: zlib lets go of Python's lock
PNG_LEVEL = 1  # of zlib: drawn pictures hardly shrink further, and level 6 takes three times as long


@dataclass(frozen=True)
class SampleSpec:
    """What a set is drawn from. ``top_k``, ``top_p``, ``temperature``, ``guidance_scale``: a number, or one a
    level. ``quantization``: the pipeline's."""

    subjects: Subjects
    seed: int = 0
    top_k: Any = None
    top_p: Any = None
    temperature: Any = 1.0
    guidance_scale: Any = 1.0
    negative_prompt: str | None = None
    batch_size: int = 50
    shard_size: int = 1000
    quantization: str | None = None


class SampleShards:
    """The shards of one set in one folder. ValueError on classes, prompts or settings that the model does not take."""

    def __init__(self, folder: Path, pipe: HQTVAEPipeline, spec: SampleSpec) -> None:
        self.folder, self.pipe, self.spec = folder, pipe, spec
        self._stream(spec.subjects.examples(), 0).close()  # checks what it is given before it begins
        self._seeds = image_seeds(spec.seed, spec.subjects.total).tolist()

    def __len__(self) -> int:
        return -(-self.spec.subjects.total // self.spec.shard_size)

    def file(self, shard: int) -> Path:
        return self.folder / f"samples-{shard:06d}.tar"

    def span(self, shard: int) -> range:
        """The pictures of a shard, by their indices."""
        size = self.spec.shard_size
        return range(shard * size, min((shard + 1) * size, self.spec.subjects.total))

    def described(self) -> dict[str, Any]:
        """All that the pictures depend on, as ``samples.json`` has it."""
        own = {name: value for name, value in asdict(self.spec).items() if name != "subjects"}
        if self.spec.guidance_scale == 1 and self.spec.negative_prompt is None:  # as of sets from before there was any
            del own["guidance_scale"], own["negative_prompt"]
        return {
            "format": FORMAT,
            "checkpoint": weights_hash(self.pipe),
            "subjects": self.spec.subjects.digest(),
            "pictures": self.spec.subjects.total,
            "resolution": self.pipe.config.vae.resolution,
            "plan": self.pipe.plan_for("batch").id,
            "dtype": "tf32" if self.pipe.precision.tf32 else str(self.pipe.dtype).removeprefix("torch."),
            **own,
        }

    def open(self, described: dict[str, Any]) -> list[int]:
        """Make the folder, or see that it holds this set or the first part of it (ConfigError); the shards that it
        lacks. For one process."""
        keep_spec(self.folder, SPEC_FILE, described, "pictures", lambda found: self._extends(found, described))
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it says that all shards are there
        (self.folder / SUMS_FILE).unlink(missing_ok=True)
        return [shard for shard in range(len(self)) if not self._done(shard)]

    def _extends(self, found: dict[str, Any], described: dict[str, Any]) -> bool:
        """Whether a folder so described holds this set's first pictures. ConfigError, saying what can be extended,
        where it differs in their number alone."""
        subjects, there = self.spec.subjects, found.get("pictures")
        same = {**json.loads(json.dumps(described)), "pictures": there, "subjects": found.get("subjects")} == found
        if not same or not isinstance(there, int) or there < 1:
            return False
        smaller = subjects.first(there) if there < subjects.total else None
        if smaller is not None and smaller.digest() == found["subjects"]:
            return True
        if replace(subjects, total=there).digest() == found["subjects"]:
            why = "a set is never cut" if there > subjects.total else "one of several is extended by more of them"
            raise ConfigError(f"{self.folder}: holds {there:,} pictures of these; got {subjects.total:,} wanted: {why}")
        return False

    def _done(self, shard: int) -> bool:
        """Whether the shard is there, with all its pictures: it had fewer if it was the last one of a smaller set."""
        try:
            return self.file(shard).exists() and self._read_record(shard)["pictures"] == len(self.span(shard))
        except (OSError, ValueError, KeyError):
            return False  # no checksum of it, or none that can be read

    def make(self, shards: Iterable[int], advance: Callable[[int], None] = lambda number: None) -> int:
        """Draw shards; returns the number of pictures. ``advance`` hears of pictures that are drawn.

        A shard is written by a thread of its own while the next one is drawn.
        """
        drawn, writing = 0, None
        with ThreadPoolExecutor(_encoders()) as encoders, ThreadPoolExecutor(1) as writer:
            for shard in shards:
                samples = list(self._draw(shard, encoders, advance))
                drawn += len(samples)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, shard, samples)
            if writing is not None:
                writing.result()
        return drawn

    def _draw(
        self, shard: int, encoders: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> Iterator[Future[bytes]]:
        span = self.span(shard)
        with closing(self._stream(self.spec.subjects.arguments(span), self._seeds[span.start : span.stop])) as stream:
            for drawn in stream:
                assert drawn.image is not None  # PIL images were asked for
                yield encoders.submit(_png, drawn.image)
                # Once a batch: each call asks torchrun's store, which a thousand GPUs share.
                own, last = drawn.index % self.spec.batch_size + 1, drawn.index == len(span) - 1
                if last or own == self.spec.batch_size:
                    advance(own)

    def _stream(self, subjects: dict[str, Any], seed: Any) -> Generator[HQTVAEImage, None, None]:
        spec = self.spec
        sampling = {"top_k": spec.top_k, "top_p": spec.top_p, "temperature": spec.temperature}
        sampling |= {"guidance_scale": spec.guidance_scale, "negative_prompt": spec.negative_prompt}
        return self.pipe.stream(**subjects, **sampling, seed=seed, batch_size=spec.batch_size, deterministic="batch")

    def _write(self, shard: int, samples: list[Future[bytes]]) -> None:
        digest = _Digest()
        with whole_file(self.file(shard)) as digest.out:
            with tarfile.open(fileobj=digest, mode="w") as tar:  # type: ignore[call-overload]
                for index, png in zip(self.span(shard), samples, strict=True):
                    fields = {"index": index, "seed": self._seeds[index], **self.spec.subjects.fields(index)}
                    add_member(tar, f"{index:09d}.png", png.result())
                    add_member(tar, f"{index:09d}.json", json_text(fields).encode())
            # Its checksum stands before the shard does, and is never that of another: a shard with its name is done.
            self.file(shard).unlink(missing_ok=True)
            self._write_record(shard, digest)

    def _write_record(self, shard: int, digest: _Digest) -> None:
        record = {
            "file": self.file(shard).name,
            "pictures": len(self.span(shard)),
            "bytes": digest.size,
            "sha256": digest.sha.hexdigest(),
            "made_on": f"{_device_name(self.pipe.device)}, torch {torch.__version__}",
        }
        write_file(self._record_file(shard), _json(record))

    def _record_file(self, shard: int) -> Path:
        return self.file(shard).with_suffix(".json")

    def close(self, described: dict[str, Any]) -> Path:
        """Write the manifest, once all shards are there; returns its path. For one process, the last one at work.

        OSError if a shard is missing or has not the size that was written.
        """
        records = [self._record(shard) for shard in range(len(self))]
        manifest = {**described, "shards": records}
        for partial in self.folder.glob(f".*{PARTIAL}"):  # of processes that were killed
            partial.unlink(missing_ok=True)
        sums = "".join(f"{record['sha256']}  {record['file']}\n" for record in records)
        write_file(self.folder / SUMS_FILE, sums.encode())
        write_file(self.folder / MANIFEST_FILE, _json(manifest))
        return self.folder / MANIFEST_FILE

    def _record(self, shard: int) -> dict[str, Any]:
        record = self._read_record(shard)
        if (size := self.file(shard).stat().st_size) != record["bytes"]:
            raise OSError(f"{self.file(shard)}: expected {record['bytes']} bytes, as written; got {size}")
        return record

    def _read_record(self, shard: int) -> dict[str, Any]:
        return dict(json.loads(read_text(self._record_file(shard))))


class _Digest:
    """A file to write to that knows the checksum of what went through it."""

    def __init__(self) -> None:
        self.sha, self.size = hashlib.sha256(), 0
        self.out: IO[bytes] = io.BytesIO()

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        self.size += len(data)
        return self.out.write(data)

    def tell(self) -> int:
        return self.size


def weights_hash(pipe: HQTVAEPipeline) -> str:
    """16 hexadecimal digits, equal for equal configurations, weights and dtypes of a pipeline on any device."""
    digest = hashlib.sha256(repr(pipe.config).encode())
    parts = {"vae": pipe.vae, "transformer": pipe.transformer, "refiner": pipe.refiner}
    for part, module in parts.items():
        for name, value in ({} if module is None else module.state_dict()).items():
            digest.update(f"{part}.{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _encoders() -> int:
    """This process's share of the machine's cores."""
    return max(1, min(MAX_ENCODERS, (os.cpu_count() or 1) // world().local_size))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=PNG_LEVEL)
    return data.getvalue()


def _json(value: Any) -> bytes:
    return json_text(value, indent=1).encode() + b"\n"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
