"""Draws and decodes with a checkpoint's models, by captured graphs on a GPU, step by step elsewhere; and a request's
batches in order, one issued ahead of the one that is waited for (:mod:`hqtvae_fast.engine.streams`)."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import Batch, Cutter, is_out_of_memory
from hqtvae_fast.engine.cache import StepTables
from hqtvae_fast.engine.coding import DecodeReplay, decode_codes
from hqtvae_fast.engine.fused_step import make_tables
from hqtvae_fast.engine.graph import CaptureError, DrawReplay, GraphCache
from hqtvae_fast.engine.loop import NAN_LOGITS, Drawing, OnStep, SamplingParams
from hqtvae_fast.engine.options import KV, EngineOptions, Overlap, check_options
from hqtvae_fast.engine.steering import Guidance, Known
from hqtvae_fast.engine.streams import Codes, Decode, Done, Drawn, Streams, make_streams
from hqtvae_fast.hardware import cudnn_benchmark, fp32_products
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.prepared import Prepared
from hqtvae_fast.modes import inference, ordinary
from hqtvae_fast.ops.made import Made, weights_of
from hqtvae_fast.plan import Plan, current, using
from hqtvae_fast.threads import at_most


class Rows(NamedTuple):
    """What draws a batch, one row an image, on the device: ``condition`` [B], [B, P] or None, ``seeds`` [B]; parameters
    of each model; ``given`` top codes [B, h, w] or None; ``guidance`` of the first model, or None; ``known`` codes of
    all levels, or None."""

    condition: Tensor | None
    seeds: Tensor
    params: Sequence[SamplingParams]
    given: Tensor | None = None
    guidance: Guidance | None = None
    known: Known | None = None


class Executor:
    """``models``: the transformers in drawing order, a second one the refiner of the first one's top codes; ``vae``:
    None where nothing is to be decoded. ``plan``: what computes, and how the engine runs; ``tf32``: fp32 numbers are
    multiplied as TF32.

    With graphs, a replay on a CPU is a plain call over the same static buffers. What cannot be captured is run step by
    step from then on, and a warning says so.
    """

    def __init__(
        self,
        models: Sequence[HQTransformer],
        vae: HQVAE | None,
        device: torch.device,
        plan: Plan | None = None,
        *,
        tf32: bool = False,
    ) -> None:
        self.models, self.vae, self.device = list(models), vae, device
        self.plan = plan = plan or Plan()
        self._ways = {text: EngineOptions.read(text, tf32=tf32) for text in ("", *plan.engine.values())}
        ways = [self._ways[text] for text in plan.engine.values()] or [self._ways[""]]
        for options in ways:
            check_options(options, device)
        self.graphs = GraphCache(device) if any(options.captures(device) for options in ways) else None
        self._addresses: list[int] | None = None
        tabled = dict.fromkeys(options.kv for options in ways if options.tables)
        self._tables: list[dict[KV | None, Made[StepTables]]] = [{kv: Made() for kv in tabled} for _ in self.models]
        self._all_tables()

    def options(self, batch: int, plan: Plan | None = None) -> EngineOptions:
        """How ``batch`` images are computed; ``plan``: None is the executor's own, here and below. Another one may
        differ in what computes and, where it has no word of the engine, in leaving that to itself."""
        return self._ways[(plan or self.plan).engine_for(batch)]

    def tables(self, index: int, kv: KV | None = None) -> StepTables | None:
        """Of a model's weights as they are, for steps that keep keys and values so; None where no batch has that
        option, and where the model's modules must be called."""
        model, made = self.models[index], self._tables[index].get(kv)
        if made is None or model.altered() is not None:
            return None
        with self._computing(self.plan, EngineOptions()):
            return made.of(lambda: make_tables(model, kv), *weights_of(model))

    def _all_tables(self) -> list[StepTables]:
        found = (self.tables(index, kv) for index, tables in enumerate(self._tables) for kv in tables)
        return [tables for tables in found if tables is not None]

    def _all(self) -> list[Prepared]:
        return [*self.models] if self.vae is None else [*self.models, self.vae]

    def doubt(self) -> None:
        """Make everything again that was made from weights, when it is next needed."""
        for model in self._all():
            model.doubt()
        for tables in self._tables:
            for made in tables.values():
                made.doubt()

    @inference()
    def draw(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        params: Sequence[SamplingParams],
        given: Tensor | None,
        guidance: Guidance | None,
        known: Known | None,
        invalid: Tensor,
        on_step: OnStep,
        plan: Plan | None = None,
    ) -> Codes:
        """Codes int64 [B, h, w] of all levels that the models know: top codes are drawn, or kept if ``given``.

        The first arguments are those of :class:`Rows`; ``invalid``, a bool scalar, is set where logits were NaN.
        """
        codes: Codes = ()
        if given is not None and self.models[0].config.decoding == "global":
            codes, given = (given,), None  # in place of what the prior draws
        for index, (model, own) in enumerate(zip(self.models, params, strict=True)):
            refines = model.config.condition == "codes"
            if codes and not refines:
                continue
            sees = codes[0].flatten(1) if refines else condition
            led, kept = None if refines else guidance, None if known is None else known.of(model.config)
            options = self.options(len(seeds), plan)
            tables = self.tables(index, options.kv) if options.tables else None
            fused_draw = options.fused_draw and not own.filtered and led is None
            how: dict[str, Any] = {"tables": tables}
            how["options"] = replace(options, tables=tables is not None, fused_draw=fused_draw)
            what: tuple[str, ...] = (
                "top codes given" if given is not None else "all codes",
                "fused draw" if fused_draw else "any draw",
                *(() if led is None else ("guided",)),
                *(() if kept is None else ("some kept",)),
            )
            kinds: dict[str, Any] = {
                "given": given is not None,
                "guided": led is not None,
                "completing": kept is not None,
            }
            with self._computing(plan, options):
                key: tuple[str | int, ...] = ("draw", index, len(seeds), *what)
                make = partial(DrawReplay, model, len(seeds), **kinds, **how)
                replay = self._captured(model, key, make, options)
                if replay is None:
                    drawing = Drawing.make(model, sees, seeds, own, given=given, guidance=led, known=kept, **how)
                    drawing.run(on_step)
                    invalid |= drawing.draw.invalid
                    codes += drawing.maps()
                else:
                    codes += replay(sees, seeds, own, given, invalid, led, kept)
                    for _ in range(model.config.num_steps):  # issued all at once
                        on_step()
        return codes

    def decode(
        self, codes: Sequence[Tensor], count: int, *, as_bytes: bool = False, plan: Plan | None = None
    ) -> Tensor:
        """Images of the first ``count`` rows, as :func:`decode_codes` gives them; finer levels may be missing."""
        missing = self._decoder().config.num_levels - len(codes)
        if missing:
            warnings.warn(
                "the checkpoint draws top codes only (give a refiner for the rest): pictures are coarse", stacklevel=3
            )
        present = [level[:count] for level in codes]
        return self._decode([*present, *[None] * missing], len(codes[0]), as_bytes, plan)

    @inference()
    def decode_all(
        self, codes: Sequence[Tensor | None], cutter: Cutter, *, as_bytes: bool = False, to: torch.device | str = "cpu"
    ) -> Tensor:
        """Images, on device ``to``, of codes [N, h, w] a level from any device, None where one is left out: captured in
        the cutter's batches, else all at once, as :func:`decode_codes` cuts them."""
        if self.graphs is None:
            cutter = Cutter(cutter.total, cutter.total)
        parts, start = [], 0
        while start < cutter.total:
            batch = cutter.next(start)
            part = [None if level is None else level[batch.start : batch.stop] for level in codes]
            parts.append(self._decode(part, batch.size, as_bytes).to(to))
            start = batch.stop
        return ordinary(torch.cat(parts))

    def _decode(self, codes: Sequence[Tensor | None], size: int, as_bytes: bool, plan: Plan | None = None) -> Tensor:
        """``size``: of the capture, at least as many as there are codes."""
        vae, present = self._decoder(), [level is not None for level in codes]
        levels = [index for index, here in enumerate(present) if here]
        options = self.options(size, plan)
        how: dict[str, Any] = {"as_bytes": as_bytes, "chunk": options.chunk}
        with self._computing(plan, options):
            key = ("decode", size, f"levels {levels}", "bytes" if as_bytes else "numbers")
            make = partial(DecodeReplay, vae, size, present=present, **how)
            replay = self._captured(vae, key, make, options)
            if replay is not None:
                return replay(codes)
            here = [None if level is None else level.to(self.device, torch.int64) for level in codes]
            return decode_codes(vae, here, **how)

    def _decoder(self) -> HQVAE:
        if self.vae is None:
            raise ValueError("decode: expected an executor with stage 1; this one has none")
        return self.vae

    @contextmanager
    def _computing(self, plan: Plan | None, options: EngineOptions) -> Iterator[None]:
        """Around whatever is computed or captured: the plan, and what of the options holds for libraries."""
        threads = nullcontext() if options.threads is None else at_most(options.threads)
        benchmark = cudnn_benchmark(self.device, options.cudnn_benchmark)
        with using(plan or self.plan), threads, benchmark, fp32_products(self.device, self._ways[""].tf32):
            yield

    def _captured(
        self,
        model: Prepared,
        key: tuple[str | int, ...],
        make: Callable[[], DrawReplay | DecodeReplay],
        options: EngineOptions,
    ) -> Any:
        """The capture under the plan in use, or None where there is to be none. Hooks would run once, while it is
        made."""
        if self.graphs is None or not options.captures(self.device) or model.altered() is not None:
            return None
        self._keep_captures_right(self.graphs)
        try:
            plan = current() or self.plan
            return self.graphs.get((*key, f"plan {plan.id}"), make)
        except CaptureError as error:
            warnings.warn(f"{error}: running step by step from now on, which is slower", stacklevel=4)
            self.graphs.clear()
            self.graphs = None
            return None

    def _keep_captures_right(self, graphs: GraphCache) -> None:
        """What was made from weights is made again in place, where a capture reads it; captures are given up where
        anything has moved: weights (another device, ``weight.data = ...``), or what is made of them."""
        tables = self._all_tables()
        addresses = [address for model in self._all() for address in model.addresses()]
        addresses += [tensor.data_ptr() for made in tables for tensor in made.tensors]
        if self._addresses not in (None, addresses):
            graphs.clear()
        self._addresses = addresses


# ------------------------------------------------------------------------------------------------------------- batches


class GenerationError(RuntimeError):
    """The device failed; the message says in which images, with which conditions and seeds; or in which batches it was
    at work, for a GPU tells of a failure later."""


@dataclass(frozen=True)
class Job:
    """What is done with each batch, in order. ``rows`` gives what draws it, the first arguments of ``draw``; ``draw``
    takes these, a bool scalar that it sets where logits were NaN, and what it calls after each step, and gives the
    codes of all rows; ``decode`` (None: not wanted) gives the pictures of the first rows of codes, as many as are asked
    for. All only issue work on the device's current stream. ``describe`` names a batch to a user; ``steps`` is entered
    when work begins, and gives what is called after each step."""

    rows: Callable[[Batch], tuple[Any, ...]]
    draw: Callable[..., Codes]
    decode: Decode | None
    describe: Callable[[Batch], str]
    steps: AbstractContextManager[OnStep]


@dataclass(frozen=True)
class Finished:
    """A batch on the CPU, without its padding: codes int64 [count, h, w] a level; images as the job decodes them, or
    None."""

    batch: Batch
    codes: Codes
    images: Tensor | None


def generate(
    job: Job, cutter: Cutter, device: torch.device, *, overlap: Overlap | None = None, ahead: int | None = None
) -> Generator[Finished, None, None]:
    """Do all batches; yields them in order. A consumer that is slow, stops or fails holds up nothing but the batch in
    flight.

    A batch that runs out of memory is done again in smaller ones (:meth:`Cutter.shrink`). ValueError and
    :class:`GenerationError` name the batch. ``overlap``: whether a batch is drawn while the one before it is decoded,
    ``ahead``: how many are issued beyond it, see :class:`hqtvae_fast.engine.options.EngineOptions`.
    """
    in_flight: deque[tuple[Batch, Callable[[], Done]]] = deque()
    start = 0
    with job.steps as on_step, closing(make_streams(device, overlap, ahead)) as streams:
        while start < cutter.total or in_flight:
            while start < cutter.total and len(in_flight) <= streams.ahead:
                batch = cutter.next(start)
                with _attempt(job, [*(other for other, _ in in_flight if streams.late), batch]) as attempt:
                    with streams.drawing():
                        invalid = torch.zeros((), dtype=torch.bool, device=device)
                        codes = job.draw(*job.rows(batch), invalid, on_step)
                    in_flight.append((batch, streams.decoding(Drawn(codes, invalid, batch.count), job.decode)))
                    start = batch.stop
                if attempt.out_of_memory:
                    _rest(streams)
                    if in_flight:
                        break  # what is in flight holds memory too: take it first
                    _shrink(job, cutter, batch)
            running = [batch for batch, _ in in_flight]
            batch, wait = in_flight.popleft()
            with _attempt(job, running if streams.late else running[:1]) as attempt:
                done = wait()
            if attempt.out_of_memory:  # again from there on, smaller
                _rest(streams)
                in_flight.clear()
                _shrink(job, cutter, batch)
                start = batch.start
            else:
                yield _finished(job, batch, done)


def _finished(job: Job, batch: Batch, done: Done) -> Finished:
    if done.invalid:
        raise ValueError(f"{job.describe(batch)}: {NAN_LOGITS}")
    images = None if done.images is None else ordinary(done.images)
    return Finished(batch, tuple(map(ordinary, done.codes)), images)


@dataclass
class _Attempt:
    out_of_memory: bool = False


@contextmanager
def _attempt(job: Job, batches: Sequence[Batch]) -> Iterator[_Attempt]:
    """What is done inside may run out of memory, and then that is noted. Other failures name ``batches``, those that
    may have failed."""
    attempt = _Attempt()
    try:
        with inference():
            yield attempt
    except ValueError as error:  # the host's, of the last batch
        raise ValueError(f"{job.describe(batches[-1])}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        attempt.out_of_memory = is_out_of_memory(error)
        if not attempt.out_of_memory:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GenerationError(f"{' or '.join(map(job.describe, batches))}: {first}") from error


def _rest(streams: Streams) -> None:
    """After memory did not suffice: wait until nothing is running, and give back what is held for reuse."""
    streams.drain()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _shrink(job: Job, cutter: Cutter, batch: Batch) -> None:
    if not cutter.shrink(batch):
        raise MemoryError(f"{job.describe(batch)}: not enough memory for {batch.size} at once")
