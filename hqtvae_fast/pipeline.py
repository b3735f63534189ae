"""From a class, a prompt or nothing to pictures."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.arguments import positive
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.codes import read_levels
from hqtvae_fast.completing import read_completion
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.engine import Executor, Finished, Job, generate
from hqtvae_fast.engine.batches import cut
from hqtvae_fast.engine.coding import encode_images
from hqtvae_fast.engine.options import (
    Precision,
    Quantization,
    check_precision,
    default_precision,
    is_precision,
    read_precision,
)
from hqtvae_fast.guiding import read_guidance
from hqtvae_fast.hardware import pick_device
from hqtvae_fast.hub import CardFacts, push
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.images import check_images
from hqtvae_fast.model.linear import quantize_linears
from hqtvae_fast.output import OUTPUT_TYPES, HQTVAEImage, HQTVAEOutput, OutputType, convert_images
from hqtvae_fast.pictures.pixels import read_pixels
from hqtvae_fast.plan import Plan, using
from hqtvae_fast.planning import PLANS, Asked, Planner, default_plan, facts_of
from hqtvae_fast.progress import OnStep, counting_bar, drawing_steps
from hqtvae_fast.request import (
    Request,
    check_choice,
    make_request,
    read_drawing,
)
from hqtvae_fast.text import load_tokenizer
from hqtvae_fast.threads import picture_flops, threads_for

Number = int | float | None
PerLevel = Number | Sequence[Number]
Seed = int | Sequence[int] | torch.Generator | None
Deterministic = Literal["batch"] | None


class HQTVAEPipeline:
    """A checkpoint, ready to draw. Make one with :meth:`from_pretrained`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: Any = None,
        dtype: Any = None,
        quantization: Quantization = None,
        plan: Asked = "auto",
        accept: Sequence[str] = (),
    ) -> None:
        """Arguments as for :meth:`from_pretrained`."""
        self._checkpoint = checkpoint
        self._planner = Planner(plan, tuple(accept))
        self.device = pick_device(device)
        self._wanted = None if dtype is None else read_precision(dtype)
        check_precision(self.precision, quantization or checkpoint.quantization, self.device)
        if quantization is not None:
            if checkpoint.quantization not in (None, quantization):
                wanted = f"{checkpoint.quantization!r}, to which this checkpoint's weights are rounded"
                raise ValueError(f"quantization: expected {wanted}, or None; got {quantization!r}")
            for model in self._models():
                quantize_linears(model, quantization)
        self._quantization = checkpoint.quantization
        self.tokenizer = load_tokenizer(checkpoint)
        self.to()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        refiner: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        quantization: Quantization = None,
        plan: Asked = "auto",
        accept: Sequence[str] = (),
    ) -> HQTVAEPipeline:
        """Open a released directory, one of ours, or a Hub repository.

        ``device`` defaults to the GPU where there is one. ``dtype`` (a torch dtype or its name, or fp32, tf32, bf16,
        fp16) is what the transformer and the decoder compute in; the default is bf16 where the processor has it, else
        fp32, and "tf32" is fp32 whose products a GPU's tensor cores round. Encoding always runs in fp32. ``refiner``:
        the second checkpoint of a globally conditioned model, which draws the bottom map.

        Of a Hub repository, and of no other path: ``revision`` (a branch, tag or commit; not the refiner's), ``token``,
        ``cache_dir``, and ``local_files_only``, which downloads nothing.

        ``plan``: which kernels and libraries compute, and how the engine runs (docs/plan.md); it changes codes by
        rounding only. "auto": the plan that ``hqtvae tune`` made for this model on this device, else "default": our
        kernels, on a GPU those that were verified on this machine; "library": library calls alone; "reference": plain
        torch, slow; or a plan's file, refused where any fact differs that is not among ``accept``.

        ``quantization``: "int8" or "fp8" (e4m3) rounds the transformer's matrices, one scale an output; None: as the
        checkpoint is. On a GPU products of up to 16 rows then read half the bytes, all others the same numbers in
        ``dtype``. On a CPU with AVX2 or AVX512-VNNI, int8 products round their inputs too, 64 with one scale
        (:func:`hqtvae_fast.ops.int8_linear`), and read a quarter of fp32's bytes. Weights in ``dtype`` stay in memory
        beside; ``save_pretrained`` writes one byte a value. Raises
        :class:`hqtvae_fast.checkpoint.CheckpointError`, a ValueError, naming the file, and ValueError where the device
        cannot do what is asked for.
        """
        device = pick_device(device)  # before gigabytes are read
        check_precision(default_precision(device) if dtype is None else read_precision(dtype), quantization, device)
        Planner(plan, tuple(accept))  # reads a file
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        checkpoint = checkpoints.load(path_or_hub_id, revision=revision, **hub)
        if refiner is not None:
            checkpoint = checkpoints.with_refiner(checkpoint, checkpoints.load(refiner, **hub))
        return cls(checkpoint, device=device, dtype=dtype, quantization=quantization, plan=plan, accept=accept)

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
        """Move to a device and computing dtype, in place; None keeps what was asked for, at first the default. A dtype
        alone may stand first, as in torch."""
        if dtype is None and is_precision(device):
            device, dtype = None, device
        picked = self.device if device is None else pick_device(device)
        wanted = self._wanted if dtype is None else read_precision(dtype)
        check_precision(wanted or default_precision(picked), self._quantization, picked)
        if self.device.type == "cuda":  # an unfinished stream of pictures still reads what is moved or freed here
            torch.cuda.synchronize(self.device)
        self.device, self._wanted = picked, wanted
        # A CPU's weights are laid out as the plan says; a GPU's is verified with the models in place.
        found = None if self.device.type == "cuda" else self._find_plan()
        with threads_for(picture_flops(self.config)), using(found):
            self.vae.float().to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self.vae.set_decoder_dtype(self.dtype).fold()
            for model in self._models():
                model.to(device=self.device, dtype=self.dtype).eval().prepare()
        self._deterministic: Plan | None = None
        self._executor = self._make_executor(found or PLANS["library"])
        if found is None:
            self._executor = self._make_executor(self._find_plan())
        return self

    def _find_plan(self) -> Plan:
        return self._planner.find(self.plan_facts, self.device, self._verify)

    def _make_executor(self, plan: Plan) -> Executor:
        return Executor(self._models(), self.vae, self.device, plan, tf32=self.precision.tf32)

    @property
    def plan(self) -> Plan:
        """What computes here: which variant of each operation, and how the engine runs."""
        return self._executor.plan

    @property
    def executor(self) -> Executor:
        """What draws and decodes, with the models where they now are."""
        return self._executor

    def plan_facts(self) -> dict[str, Any]:
        """What a plan for this pipeline holds under (:func:`hqtvae_fast.planning.facts_of`)."""
        return facts_of(self.config, self.device, self.precision, self._quantization)

    def _verify(self) -> Plan:
        """Which default variants are right on this GPU, as far as this model needs them."""
        from hqtvae_fast.tune.verify import verify_default

        with counting_bar("Compiling and verifying kernels on this GPU, once") as on_progress:
            return verify_default(self._executor, self.device, on_progress)

    def plan_for(self, deterministic: Deterministic) -> Plan:
        """``deterministic="batch"`` promises the default plan's bits, where no plan was asked for."""
        if deterministic is None or not self._planner.automatic or self.plan.kind == "default":
            return self.plan
        if self._deterministic is None:
            self._deterministic = default_plan(self.plan_facts, self.device, self._verify)
        return self._deterministic

    def refresh(self) -> HQTVAEPipeline:
        """Take the weights as they now are. Needed after what torch does not count: writes to ``weight.data``, and
        steps of an optimizer with ``fused=True``. All other changes (``load_state_dict``, ``copy_``, a fused LoRA, any
        other optimizer's step) are seen at the start of each request."""
        self._executor.doubt()
        return self

    @property
    def precision(self) -> Precision:
        return self._wanted or default_precision(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer and the decoder compute in."""
        return self.precision.dtype

    def _models(self) -> list[HQTransformer]:
        """The transformers in drawing order."""
        return [model for model in (self.transformer, self.refiner) if model is not None]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``, in the dtypes that the weights now have."""
        checkpoints.save(self._checkpoint, directory)

    def push_to_hub(self, repo_id: str, card: CardFacts | None = None, **options: Any) -> str:
        """Upload files and a model card to a Hub repository; returns the commit's address. ``card``: what the card says
        besides; ``options``: private, token, revision, commit_message, create_pr (:func:`hqtvae_fast.hub.push`)."""
        return push(self._checkpoint, repo_id, card, **options)

    def __repr__(self) -> str:
        dtype = "tf32" if self.precision.tf32 else str(self.dtype).removeprefix("torch.")
        eight = "" if self._quantization is None else f", {self._quantization}"
        return f"HQTVAEPipeline({self._checkpoint.summary()}; {dtype}{eight} on {self.device})"

    def encode(self, images: Any) -> tuple[Tensor, ...]:
        """Codes, int64 [N, h, w] a level on the CPU, of pictures: PIL images, paths or uint8 arrays [H, W, 3], fitted
        to R, one or several; or a tensor [N, 3, R, R], in [-1, 1] or uint8. ValueError on others, on values out of
        range and on NaN."""
        pixels = read_pixels(images, self.config.vae.resolution)
        check_images(pixels, self.config.vae.resolution, wait=True)
        if len(pixels) == 0:
            return tuple(torch.zeros(0, side, side, dtype=torch.int64) for side in self.config.vae.level_sides)
        return tuple(level.cpu() for level in encode_images(self.vae, pixels, self.plan))

    def decode(self, codes: Sequence[Any], output_type: OutputType = "pil", *, batch_size: int | None = None) -> Any:
        """Images of codes [N, h, w] a level, top first: integers of any width, in tensors or arrays, and None for a
        level to be left out. ``batch_size``: images of a replay, where decoding is captured; elsewhere
        they are cut as memory likes."""
        check_choice("output_type", output_type, [name for name in OUTPUT_TYPES if name != "codes"])
        if not isinstance(codes, Tensor):  # to where they can be looked at: one out of range would stop a GPU
            codes = [level.cpu() if isinstance(level, Tensor) else level for level in codes]
        levels, count = read_levels(codes, self.config.vae)
        cutter = cut(self.plan, self.device, count, batch_size, buckets=True)
        if count == 0:
            R = self.config.vae.resolution
            return convert_images(torch.zeros(0, 3, R, R, dtype=torch.float32), output_type)
        images = self._executor.decode_all(levels, cutter, as_bytes=output_type == "pil")  # bytes: a quarter to copy
        return convert_images(images, output_type)

    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        num_images: int = 1,
        top_k: PerLevel = None,
        top_p: PerLevel = None,
        temperature: PerLevel = 1.0,
        seed: Seed = 0,
        given_top_codes: Any = None,
        guidance_scale: Any = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        image: Any = None,
        keep: Any = None,
        batch_size: int | None = None,
        deterministic: Deterministic = None,
        output_type: OutputType = "pil",
        progress: bool = True,
        on_step: OnStep | None = None,
    ) -> HQTVAEOutput:
        """Draw pictures.

        ``class_labels`` (integers, or names of ``config.id2label``) or ``prompt``, as the model is conditioned
        (unconditional: neither); ``num_images`` for each, in condition-major order. ``top_k``, ``top_p`` and
        ``temperature``: a number, or one a level, top first. ``seed``: an integer (image i is drawn with (seed, i)), or
        one an image; an image depends on its own seed and condition alone. A ``torch.Generator`` gives an integer and
        moves on; None takes a fresh one; the output's ``seeds`` say which. ``given_top_codes``: integers [h, w], or
        [N, h, w]: only finer codes are drawn.
        ``guidance_scale``: logits are l_null + scale (l - l_null), in one batch with the null condition, for models
        trained with one, or with ``negative_prompt`` (text models; one, or one a prompt or image): a number from 0 to
        100, one a level, [steps, levels], or [images, steps, levels], where 1 stands for all; at 1 everywhere nothing
        more is computed. ``image``: pictures, as :meth:`encode` takes them, or codes of all levels, of which what is in
        ``keep`` stays and the rest is drawn; one, or one a condition or image. ``keep``: "top-half" (bottom, left,
        right), booleans [h, w] or [N, h, w] over the top codes' windows or finer, a picture that is white where it
        stays (windows that are white all over), or one of these, or a bool, a level: ``(True, mask)`` draws bottom
        codes outside the mask alone. Codes are drawn in raster order from those before them, kept or drawn: a mask
        that keeps the first windows is exact, of another one the model does not see what is to come.
        ``batch_size``: images drawn at once; None: the plan's best, else 50, or
        8 on a CPU. ``deterministic="batch"``: always compute that many rows (None: 50, or 8), by the default plan where
        none was asked for, so that an image has the same codes, bit for bit, alone and in any company, in any dtype.
        ``on_step(step, total)`` is called after each step of each batch; what it raises ends the drawing and comes out
        here. Of a captured batch all steps are told after its replay. Bad arguments raise ValueError.
        """
        sampling, guided = (temperature, top_k, top_p), (guidance_scale, negative_prompt)
        kept = (given_top_codes, image, keep)
        request = self._request(class_labels, prompt, num_images, sampling, seed, kept, guided, output_type)
        batches = list(self._generate(request, batch_size, deterministic, output_type, progress, on_step))
        codes = tuple(torch.cat(level) for level in zip(*(batch.codes for batch in batches), strict=True))
        images = [batch.images for batch in batches if batch.images is not None]
        pictures = convert_images(torch.cat(images), output_type) if images else None
        return HQTVAEOutput(pictures, codes, tuple(request.seeds.tolist()), self.plan_for(deterministic).id)

    def stream(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        num_images: int = 1,
        top_k: PerLevel = None,
        top_p: PerLevel = None,
        temperature: PerLevel = 1.0,
        seed: Seed = 0,
        given_top_codes: Any = None,
        guidance_scale: Any = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        image: Any = None,
        keep: Any = None,
        batch_size: int | None = None,
        deterministic: Deterministic = None,
        output_type: OutputType = "pil",
        progress: bool = False,
        on_step: OnStep | None = None,
    ) -> Generator[HQTVAEImage, None, None]:
        """The same pictures one by one, in order, each as soon as its batch is done.

        Arguments as for a call. On a GPU the next batch's codes are drawn while the consumer has this one's pictures;
        a consumer that stops, or fails, ends that. Bad arguments raise ValueError here, not at the first picture.
        """
        sampling, guided = (temperature, top_k, top_p), (guidance_scale, negative_prompt)
        kept = (given_top_codes, image, keep)
        request = self._request(class_labels, prompt, num_images, sampling, seed, kept, guided, output_type)
        batches = self._generate(request, batch_size, deterministic, output_type, progress, on_step)
        seeds, plan = request.seeds.tolist(), self.plan_for(deterministic).id

        def one_by_one() -> Generator[HQTVAEImage, None, None]:
            with closing(batches):
                for finished in batches:
                    shown = None if finished.images is None else convert_images(finished.images, output_type)
                    for row in range(finished.batch.count):
                        index, image = finished.batch.start + row, None if shown is None else shown[row]
                        codes = tuple(level[row] for level in finished.codes)
                        yield HQTVAEImage(index, image, codes, seeds[index], plan)

        return one_by_one()

    # ----------------------------------------------------------------------------------------------------- requests

    def _request(
        self,
        class_labels: Any,
        prompt: Any,
        num_images: int,
        sampling: tuple[PerLevel, PerLevel, PerLevel],
        seed: Any,
        kept: tuple[Any, Any, Any],
        guided: tuple[Any, Any],
        output_type: str,
    ) -> Request:
        """What is asked for, checked; ``sampling``: temperature, top-k, top-p; ``kept``: given top codes, image, keep;
        ``guided``: scale, negative prompt."""
        check_choice("output_type", output_type, OUTPUT_TYPES)
        completion = read_completion(self.config, *kept[1:], kept[0], self.encode)
        top = kept[0] if completion is None else completion.given
        condition, given, params = read_drawing(self.config, class_labels, prompt, top, sampling, self._tokens)
        if class_labels is not None and condition is not None:
            self.config.classes.warn_untrained(condition.tolist(), stacklevel=3)
        guidance = read_guidance(self.config, *guided, self._tokens)
        null = None if self.transformer is None else self.transformer.config.null_index
        count = positive("num_images", num_images)
        return make_request(condition, given, count, seed, params, guidance, null, completion)

    def _generate(
        self,
        request: Request,
        batch_size: int | None,
        deterministic: Deterministic,
        output_type: str,
        progress: bool,
        on_step: OnStep | None = None,
    ) -> Generator[Finished, None, None]:
        """The request's batches; arguments are checked here, work begins with the first of them."""
        check_choice("deterministic", deterministic or "batch", ("batch",))
        if on_step is not None and not callable(on_step):
            raise ValueError(f"on_step: expected a function of two numbers; got {on_step!r}")
        total, fixed, plan = len(request.seeds), deterministic == "batch", self.plan_for(deterministic)
        buckets = self._executor.graphs is not None
        cutter = cut(plan, self.device, total, batch_size, fixed=fixed, buckets=buckets)
        first = int(request.given is not None and self.refiner is not None)  # given codes stand for the prior's
        steps = sum(model.config.num_steps for model in self._models()[first:]) * -(-total // cutter.limit)
        decode = partial(self._executor.decode, as_bytes=output_type == "pil", plan=plan)

        job = Job(
            rows=lambda batch: request.rows(batch.start, batch.count, self.device, padded=batch.size),
            draw=partial(self._executor.draw, plan=plan),
            decode=None if output_type == "codes" else decode,
            describe=request.describe,
            steps=drawing_steps(total, steps, on_step, shown=progress),
        )
        options = self._executor.options(cutter.limit, plan)
        return generate(job, cutter, self.device, overlap=options.overlap, ahead=options.ahead)

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError(f"prompt: {checkpoints.missing_tokenizer(self.config)}")
        return self.tokenizer(prompts)
