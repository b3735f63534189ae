"""What a user asks of the pipeline, checked and spread over images: conditions, given codes, sampling parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.arguments import entries, integer, integers, is_sequence, real
from hqtvae_fast.classes import Classes
from hqtvae_fast.codes import read_level
from hqtvae_fast.completing import Completion
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig, check_condition, first_level
from hqtvae_fast.engine import Batch, Guidance, Known, Rows, SamplingParams
from hqtvae_fast.fields import shown
from hqtvae_fast.guiding import Guided, read_texts
from hqtvae_fast.hardware import send
from hqtvae_fast.seeds import image_seeds


@dataclass(frozen=True)
class Request:
    """One row an image, on the CPU: ``condition`` [N], [N, P] or None, ``given`` top codes [N, h, w] or None, ``seeds``
    [N]; the sampling parameters of each transformer that draws; ``guidance`` of the first one, or None; and the codes
    that are kept, or None."""

    condition: Tensor | None
    given: Tensor | None
    seeds: Tensor
    params: list[SamplingParams]
    guidance: Guidance | None = None
    known: Known | None = None

    def rows(self, start: int, count: int, device: torch.device, padded: int = 0) -> Rows:
        """Images ``start`` to ``start + count``, on a device; the last one again and again up to ``padded`` rows."""

        def cut(part: Tensor) -> Tensor:
            own = part[start : start + count]
            more = max(0, padded - len(own))
            if more:
                own = torch.cat([own, own[-1:].expand(more, *own.shape[1:])])
            return send(own, device)

        condition = None if self.condition is None else cut(self.condition)
        given = None if self.given is None else cut(self.given)
        guidance = None if self.guidance is None else Guidance(*map(cut, self.guidance))
        known = None if self.known is None else Known(*(list(map(cut, maps)) for maps in self.known))
        return Rows(condition, cut(self.seeds), self.params, given, guidance, known)

    def describe(self, batch: Batch) -> str:
        """Names a batch in an error message: its images, and what draws them again."""
        own = slice(batch.start, batch.stop)
        named = f"images {batch.start} to {batch.stop - 1}" if batch.count > 1 else f"image {batch.start}"
        facts = [f"seeds {_some(self.seeds[own].tolist())}"]
        if self.condition is not None:
            kind = "classes" if self.condition.ndim == 1 else "tokens"
            facts.insert(0, f"{kind} {_some(self.condition[own].tolist())}")
        return f"{named} ({'; '.join(facts)})"


def _some(values: list[Any], shown: int = 4) -> str:
    """The different ones among the first of them."""
    different = list(dict.fromkeys(map(str, values)))
    return ", ".join(different[:shown]) + (", ..." if len(different) > shown else "")


def make_request(
    condition: Tensor | None,
    given: Tensor | None,
    num_images: int,
    seed: Any,
    params: Any,
    guided: Guided | None = None,
    null: int | None = None,
    completion: Completion | None = None,
) -> Request:
    """Repeat conditions and codes ``num_images`` times each, in condition-major order, and seed every image. ``null``:
    the null condition of the model that is guided."""
    kept = None if completion is None else completion.codes[0]
    conditions = next((len(rows) for rows in (condition, given, kept) if rows is not None), 1)

    def one_an_image(name: str, rows: Tensor) -> Tensor:
        return spread(name, rows, conditions, num_images)

    if condition is not None:
        condition = one_an_image("conditions", condition)
    if given is not None:
        given = one_an_image("given_top_codes" if completion is None else "image", given)
    guidance = None if guided is None or condition is None else guided.of(condition, one_an_image, null)
    known = None if completion is None else completion.of(one_an_image)
    return Request(condition, given, image_seeds(seed, conditions * num_images), params, guidance, known)


def read_drawing(
    config: HQTVAEConfig,
    class_labels: Any,
    prompt: Any,
    given_top_codes: Any,
    sampling: tuple[Any, Any, Any],
    tokenize: Callable[[Sequence[str]], Tensor],
) -> tuple[Tensor | None, Tensor | None, list[SamplingParams]]:
    """Condition (labels [C], tokens [C, P] or None), given top codes and sampling parameters, as the model takes them;
    ``sampling``: temperature, top-k and top-p.

    ValueError where the model cannot draw this, which its configuration alone tells: the wrong condition, both or none,
    and whatever is out of range.
    """
    conditions = {"class_labels": class_labels, "prompt": prompt}
    wanted = check_condition(config, [name for name, value in conditions.items() if value is not None])
    stage2 = config.transformer
    assert stage2 is not None  # as has just been checked
    condition = None
    if wanted is not None:
        labels = wanted == "class_labels"
        condition = _read_labels(class_labels, config.classes) if labels else tokenize(read_texts("prompt", prompt))
    given = None if given_top_codes is None else read_given_codes(config.vae, given_top_codes)
    if given is None and stage2.condition == "codes":
        raise ValueError("given_top_codes: this checkpoint draws bottom codes only; expected top codes, got none")
    models = [stage2] if config.refiner is None else [stage2, config.refiner]
    return condition, given, read_params(models, config.vae.num_levels, *sampling)


def _read_labels(class_labels: Any, classes: Classes) -> Tensor:
    """Labels and names of classes, one or several, as int64 [C] on the CPU."""
    wanted = "an integer or a list of them"
    given = entries(class_labels) if is_sequence(class_labels) else [class_labels]
    if classes.names and any(isinstance(entry, str) for entry in given):
        class_labels = [classes.find("class_labels", one) if isinstance(one, str) else one for one in given]
    labels = integers("class_labels", class_labels, wanted).reshape(-1)
    if labels.numel() == 0:
        raise ValueError(f"class_labels: expected {wanted}; got {shown(class_labels)}")
    for label in labels.tolist():
        if not 0 <= label < classes.count:
            raise ValueError(f"class_labels: expected 0 to {classes.count - 1}; got {label}")
    return labels.cpu()


def read_given_codes(config: VAEConfig, given: Any) -> Tensor:
    """Top codes [h, w] or [M, h, w] as int64 [M, h, w] on the CPU; ValueError on another shape or range."""
    side, size = config.level_sides[0], config.codebook_sizes[0]
    wanted = f"integers [{side}, {side}] or [N, {side}, {side}]"
    codes = integers("given_top_codes", given, wanted).cpu()
    if codes.ndim not in (2, 3) or codes.shape[-2:] != (side, side) or len(codes) == 0:
        raise ValueError(f"given_top_codes: expected {wanted}; got {list(codes.shape)}")
    return read_level("given_top_codes", codes.reshape(-1, side, side), side, size)


def spread(name: str, rows: Tensor, conditions: int, num_images: int) -> Tensor:
    """One row for all images, one a condition, or one an image -> one an image, in condition-major order."""
    count = conditions * num_images
    if len(rows) == count:
        return rows
    if len(rows) not in (1, conditions):
        raise ValueError(f"{name}: expected {' or '.join(map(str, sorted({1, conditions, count})))}; got {len(rows)}")
    return rows.repeat_interleave(count // len(rows), dim=0)


def read_params(
    models: Sequence[TransformerConfig], levels: int, temperature: Any, top_k: Any, top_p: Any
) -> list[SamplingParams]:
    """Sampling parameters of each model, from a number or one a level; ValueError if out of range."""
    named = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    values = {name: _per_level(name, value, levels) for name, value in named.items()}
    params = []
    for config in models:
        own = slice(first_level(config), first_level(config) + config.num_levels)
        params.append(SamplingParams(**{name: value[own] for name, value in values.items()}))
        params[-1].check(config)
    return params


def _per_level(name: str, value: Any, levels: int) -> tuple[Any, ...]:
    """Python's numbers, one a level; ValueError on what is no number."""
    values = entries(value) if is_sequence(value) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{name}: expected one value, or {levels}, one a level; got {len(values)}")
    # None is checked later, where it is known whether it may stand there.
    return tuple(None if each is None else _READ[name](name, each) for each in values)


_READ: dict[str, Callable[[str, Any], float]] = {
    "temperature": partial(real, wanted="a number > 0"),
    "top_k": partial(integer, also=", or None"),
    "top_p": partial(real, wanted="a number in (0, 1], or None"),
}


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")
