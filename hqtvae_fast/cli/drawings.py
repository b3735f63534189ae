"""What ``hqtvae sample`` is to draw: one entry a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.classes import NO_CLASSES, Classes
from hqtvae_fast.cli.codes import Codes
from hqtvae_fast.files import MAX_STEM_BYTES, cut_name, json_text
from hqtvae_fast.seeds import image_seeds

MAX_NAME = 48  # bytes of a prompt in a file name


@dataclass(frozen=True)
class Drawing:
    """One picture: its class or prompt or neither, its top codes [h, w] if they are given, its seed and its name."""

    label: int | None = None
    prompt: str | None = None
    given: Tensor | None = None
    seed: int = 0
    name: str = "image"
    classes: Classes = NO_CLASSES

    def caption(self) -> str:
        """What it shows, in words."""
        return self.prompt or ("" if self.label is None else self.classes.caption(self.label))

    def about(self, plan: str) -> str:
        """What it is drawn from, and by which plan, as JSON."""
        named = None if self.label is None else self.classes.name(self.label)
        facts = {"class": self.label, "class_name": named, "prompt": self.prompt, "seed": self.seed}
        facts["plan"] = plan
        return json_text({key: value for key, value in facts.items() if value is not None})


def plan(
    labels: Sequence[int] | None,
    prompts: Sequence[str] | None,
    given: Codes | None,
    num_images: int,
    seed: int,
    classes: Classes,
) -> list[Drawing]:
    """``num_images`` of each subject, subject after subject, each with a seed and a name of its own."""
    named = _class_files(classes)
    conditions = [Drawing(label=label, name=named(label), classes=classes) for label in labels or []]
    conditions += [Drawing(prompt=prompt, name=_slug(prompt)) for prompt in prompts or []]
    subjects = conditions if given is None else _pair_up(conditions, _given_maps(given))
    drawings = [subject for subject in subjects or [Drawing()] for _ in range(num_images)]
    seeds, used, planned = image_seeds(seed, len(drawings)).tolist(), Counter[str](), []
    for drawing, own_seed in zip(drawings, seeds, strict=True):
        name = cut_name(drawing.name, MAX_STEM_BYTES)
        planned.append(replace(drawing, seed=own_seed, name=f"{name}-{used[name]:04d}"))
        used[name] += 1
    return planned


def _given_maps(given: Codes) -> list[Drawing]:
    if given.levels[0] is None:
        raise ValueError("--given-top: expected level_0, the top codes, in this file; found finer levels alone")
    return [
        Drawing(given=codes, name=Path(name).stem or "image")
        for codes, name in zip(given.levels[0], given.names, strict=True)
    ]


def _pair_up(conditions: list[Drawing], maps: list[Drawing]) -> list[Drawing]:
    """Condition i with map i; a single one of either goes with all of the other."""
    if not conditions:
        return maps
    if 1 < len(conditions) != len(maps) > 1:
        raise ValueError(
            f"--given-top: expected 1 or {len(conditions)} maps, as there are classes or prompts; got {len(maps)}"
        )
    size = max(len(conditions), len(maps))
    pairs = zip(conditions * (size // len(conditions)), maps * (size // len(maps)), strict=True)
    return [replace(one, given=other.given, name=f"{one.name}-{other.name}") for one, other in pairs]


def _class_files(classes: Classes) -> Callable[[int], str]:
    """What files of a class are called: after its name, with its label where that does not tell it from others."""
    names = {label: _slug(classes.caption(label), "") for label in classes.trained} if classes.names else {}
    used = Counter(names.values())

    def named(label: int) -> str:
        name = names.get(label, "")
        return f"{name or 'class'}-{label:04d}" if not name or used[name] > 1 else name

    return named


def _slug(text: str, otherwise: str = "prompt") -> str:
    return cut_name(re.sub(r"\W+", "-", text.lower()).strip("-"), MAX_NAME) or otherwise


def arguments(drawings: Sequence[Drawing]) -> dict[str, Any]:
    """The pipeline's arguments that draw these pictures."""
    labels = [drawing.label for drawing in drawings if drawing.label is not None]
    prompts = [drawing.prompt for drawing in drawings if drawing.prompt is not None]
    given = [drawing.given for drawing in drawings if drawing.given is not None]
    conditioned = bool(labels or prompts or given)
    return {
        "class_labels": labels or None,
        "prompt": prompts or None,
        "given_top_codes": torch.stack(given) if given else None,
        "num_images": 1 if conditioned else len(drawings),
        "seed": [drawing.seed for drawing in drawings],
    }
