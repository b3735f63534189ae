"""From a class, a prompt or nothing to pictures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.engine import decode_codes, draw_codes
from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.images import to_tensor
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.ops.linear import pack_linears
from hqtvae_fast.request import (
    Request,
    check_choice,
    check_positive,
    make_request,
    read_condition,
    read_given_codes,
    read_params,
)
from hqtvae_fast.text import PromptTokenizer

OutputType = Literal["pil", "np", "pt", "codes"]
OUTPUT_TYPES = get_args(OutputType)
Number = int | float | None
PerLevel = Number | Sequence[Number]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_BATCH = {"cuda": 50, "cpu": 8}  # the paper's protocol; enough rows on a CPU that the weights' stream is shared


@dataclass(frozen=True)
class HQTVAEOutput:
    """Drawn pictures.

    ``images``: a list of PIL images, a float32 array [N, R, R, 3] (``np``) or tensor [N, 3, R, R] (``pt``) in [0, 1],
    or None (``codes``). ``codes``: int64 [N, h, w] a level on the CPU, top first. ``seeds``: one integer an image;
    given as ``seed=[...]`` they draw the same images again.
    """

    images: Any
    codes: tuple[Tensor, ...]
    seeds: tuple[int, ...]


class HQTVAEPipeline:
    """A checkpoint, ready to draw. Make one with :meth:`from_pretrained`."""

    def __init__(self, checkpoint: Checkpoint, *, device: Any = None, dtype: Any = None) -> None:
        self._checkpoint = checkpoint
        self.tokenizer = _load_tokenizer(checkpoint)
        self.device = _pick_device(device)
        self._wanted_dtype: torch.dtype | None = None
        self.to(dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        refiner: str | os.PathLike[str] | None = None,
    ) -> HQTVAEPipeline:
        """Open a released directory, one of ours, or a Hub repository.

        ``device`` defaults to the GPU where there is one. ``dtype`` (a torch dtype, or fp32, bf16, fp16) is what the
        transformer and the decoder compute in; the default is bf16 where the processor has it, else fp32. Encoding
        always runs in fp32. ``refiner``: the second checkpoint of a globally conditioned model, which draws the
        bottom map. Raises :class:`hqtvae_fast.checkpoint.CheckpointError`, a ValueError, naming the file.
        """
        device = _pick_device(device)  # before gigabytes are read
        dtype = None if dtype is None else _pick_dtype(dtype)
        checkpoint = checkpoints.load(path_or_hub_id)
        if refiner is not None:
            checkpoint = checkpoints.with_refiner(checkpoint, checkpoints.load(refiner))
        return cls(checkpoint, device=device, dtype=dtype)

    @property
    def config(self) -> HQTVAEConfig:
        return self._checkpoint.config

    @property
    def vae(self) -> HQVAE:
        return self._checkpoint.vae

    @property
    def transformer(self) -> HQTransformer | None:
        return self._checkpoint.transformer

    @property
    def refiner(self) -> HQTransformer | None:
        return self._checkpoint.refiner

    def to(self, device: Any = None, dtype: Any = None) -> HQTVAEPipeline:
        """Move to a device and computing dtype, in place; None keeps what was asked for, at first the default."""
        self.device = self.device if device is None else _pick_device(device)
        self._wanted_dtype = self._wanted_dtype if dtype is None else _pick_dtype(dtype)
        self.dtype = self._wanted_dtype or default_dtype(self.device)
        self.vae.float().to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.vae.fold().set_decoder_dtype(self.dtype)
        for model in self._models():
            pack_linears(model.to(device=self.device, dtype=self.dtype).eval())
        return self

    def _models(self) -> list[HQTransformer]:
        """The transformers in drawing order."""
        return [model for model in (self.transformer, self.refiner) if model is not None]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``, in the dtypes that the weights now have."""
        checkpoints.save(self._checkpoint, directory)

    def encode(self, images: Tensor | Sequence[Image.Image]) -> tuple[Tensor, ...]:
        """Codes, int64 [N, h, w] a level, of PIL images (fitted to R) or a tensor [N, 3, R, R] in [-1, 1]."""
        pixels = images if isinstance(images, Tensor) else to_tensor(images, self.config.vae.resolution)
        return tuple(level.cpu() for level in self.vae.encode(pixels.to(self.device, torch.float32)))

    def decode(self, codes: Sequence[Tensor | None], output_type: OutputType = "pil") -> Any:
        """Images of codes [N, h, w] a level, top first; None leaves a level out."""
        for level in codes:
            if level is not None and level.is_floating_point():
                raise ValueError(f"codes: expected integers; got {level.dtype}")
        self.vae.check_codes(codes)
        on_device = [None if level is None else level.to(self.device, torch.int64) for level in codes]
        return _convert(decode_codes(self.vae, on_device, as_bytes=output_type == "pil").cpu(), output_type)

    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        num_images: int = 1,
        top_k: PerLevel = None,
        top_p: PerLevel = None,
        temperature: PerLevel = 1.0,
        seed: int | Sequence[int] = 0,
        given_top_codes: Tensor | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        progress: bool = True,
    ) -> HQTVAEOutput:
        """Draw pictures.

        ``class_labels`` or ``prompt``, as the model is conditioned (neither for an unconditional one); ``num_images``
        for each, in condition-major order. ``top_k``, ``top_p`` and ``temperature``: a number, or one a level, top
        first. ``seed``: an integer (image i is drawn with (seed, i)), or one an image; an image depends on its own
        seed and condition alone. ``given_top_codes``: int64 [h, w], or [N, h, w]: only finer codes are drawn.
        ``batch_size``: images drawn at once. Raises ValueError saying what was expected and what came.
        """
        if self.transformer is None:
            raise ValueError("this checkpoint has stage 1 only: it can encode and decode, but not draw")
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_positive("num_images", num_images)
        check_positive("batch_size", 1 if batch_size is None else batch_size)
        stage2 = self.transformer.config
        condition = read_condition(stage2, class_labels, prompt, self._tokens)
        given = None if given_top_codes is None else read_given_codes(self.config.vae, given_top_codes)
        if given is None and stage2.condition == "codes":
            raise ValueError("given_top_codes: this checkpoint draws bottom codes only; expected top codes, got none")
        configs = [model.config for model in self._models()]
        params = read_params(configs, self.config.vae.num_levels, temperature, top_k, top_p)
        request = make_request(condition, given, num_images, seed, params)
        count = len(request.seeds)
        size = min(count, batch_size or DEFAULT_BATCH.get(self.device.type, DEFAULT_BATCH["cpu"]))
        codes, images = [], []
        with self._progress(count, size, progress) as on_step:
            for start in range(0, count, size):
                drawn = self._draw(request.rows(start, size, self.device), on_step)
                codes.append([level.cpu() for level in drawn])
                if output_type != "codes":
                    levels, as_bytes = self._all_levels(drawn), output_type == "pil"
                    images.append(decode_codes(self.vae, levels, as_bytes=as_bytes).cpu())
        joined = tuple(torch.cat(level) for level in zip(*codes, strict=True))
        pictures = _convert(torch.cat(images), output_type) if images else None
        return HQTVAEOutput(pictures, joined, tuple(request.seeds.tolist()))

    # ------------------------------------------------------------------------------------------------- one batch

    def _draw(self, request: Request, on_step: Callable[[], None]) -> tuple[Tensor, ...]:
        """Codes of a batch, all levels that this checkpoint knows: top codes are drawn, or kept if given."""
        given, seeds = request.given, request.seeds
        models = list(zip(self._models(), request.params, strict=True))
        prior, params = models[0]
        if prior.config.decoding != "global":
            return draw_codes(prior, request.condition, seeds, params, given_top_codes=given, on_step=on_step)
        if given is None:
            (given,) = draw_codes(prior, request.condition, seeds, params, on_step=on_step)
        codes = [given]
        for model, params in models:
            if model.config.condition == "codes":
                codes += draw_codes(model, given.flatten(1), seeds, params, on_step=on_step)
        return tuple(codes)

    def _all_levels(self, codes: Sequence[Tensor]) -> list[Tensor | None]:
        missing = self.config.vae.num_levels - len(codes)
        if missing:
            warnings.warn(
                "the checkpoint draws top codes only (give a refiner for the rest): pictures are coarse", stacklevel=3
            )
        return [*codes, *[None] * missing]

    @contextmanager
    def _progress(self, count: int, size: int, shown: bool) -> Iterator[Callable[[], None]]:
        console = Console(stderr=True)
        if not (shown and (console.is_terminal or console.is_jupyter)):
            yield lambda: None
            return
        steps = sum(model.config.num_steps for model in self._models()) * -(-count // size)
        columns = (
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(f"Drawing {count} image{'s' if count > 1 else ''}", total=steps)
            yield lambda: bar.advance(task)

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError(f"prompt: this checkpoint has no {checkpoints.TOKENIZER_FILE} to read words with")
        return self.tokenizer(prompts)


def _load_tokenizer(checkpoint: Checkpoint) -> PromptTokenizer | None:
    stage2 = checkpoint.config.transformer
    if stage2 is None or stage2.condition != "text" or checkpoint.tokenizer_file is None:
        return None
    return PromptTokenizer(checkpoint.tokenizer_file, stage2.prefix_length, stage2.prefix_vocab_size)


def _convert(images: Tensor, output_type: str) -> Any:
    """``images``: bytes [B, R, R, 3] for "pil", else floats [B, 3, R, R]."""
    if output_type == "pil":
        return [Image.fromarray(array) for array in images.numpy()]
    if output_type == "np":
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    return images


def _pick_device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected cpu, cuda or cuda:N that is present here; got {device!r} ({reason})"
        ) from None
    return picked


def _pick_dtype(dtype: Any) -> torch.dtype:
    picked: torch.dtype = DTYPES.get(dtype, dtype)
    if picked not in DTYPES.values():
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)} (or the torch dtype); got {dtype!r}")
    return picked
