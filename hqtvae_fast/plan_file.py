"""A plan's file: readable JSON with the facts that it holds under, and what was measured at each choice.

Files of this machine lie in ``plans/`` of the user's cache folder, each named by its facts; files that come with the
package in ``assets/plans/``. A file holds under its own facts alone: a difference refuses all of it, but where the user
waives it. What a file says besides is for people; only the names of variants are computed by.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

from hqtvae_fast.files import json_text, parse_json, read_text, write_file
from hqtvae_fast.plan import KINDS, Kind, Plan

FORMAT = "hqtvae_fast plan, version 1"
SHIPPED = Path(__file__).parent / "assets" / "plans"
ACCEPT = "--accept-fact"

Facts = Mapping[str, Any]
"""Whatever changes which variant is right or fast, by name: text, numbers, lists of text, None."""


class PlanError(ValueError):
    """A plan cannot be read, or does not hold here; the message says which file and why."""


@dataclass(frozen=True)
class Measured:
    """One choice. ``incumbent``: what there was without it. Medians and spreads are in microseconds; ``same_bits``:
    whether it gives the incumbent's bits; ``error``: the largest that its check found, of at most ``bound``. None: not
    measured."""

    variant: str
    incumbent: str | None = None
    median: float | None = None
    spread: float | None = None
    incumbent_median: float | None = None
    incumbent_spread: float | None = None
    same_bits: bool | None = None
    error: float | None = None
    bound: float | None = None


_TYPES: dict[str, tuple[type, ...]] = {"variant": (str,), "incumbent": (str,), "same_bits": (bool,)}
_NUMBERS = (int, float)


@dataclass(frozen=True)
class PlanFile:
    """What is in a file: ``choices`` by :func:`hqtvae_fast.plan.site`, ``engine`` by batch bucket; ``refused``,
    ``verified``, ``batches`` and ``best`` as a :class:`Plan` has them. ``seconds``: of a whole batch, drawn and
    decoded, by its size: what ``batches`` and ``best`` were found by. ``unreached``: "op name" of ours that nobody has
    tried here yet, for the time was up: ``verified`` lacks them."""

    kind: Kind
    facts: Facts
    choices: Mapping[str, Measured] = field(default_factory=dict)
    engine: Mapping[int, Measured] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    verified: frozenset[str] | None = None
    batches: tuple[int, ...] = ()
    best: int | None = None
    seconds: Mapping[int, float] = field(default_factory=dict)
    unreached: frozenset[str] = frozenset()

    @property
    def plan(self) -> Plan:
        choices = {where: own.variant for where, own in self.choices.items()}
        engine = {bucket: own.variant for bucket, own in self.engine.items()}
        return Plan(self.kind, choices, engine, self.refused, self.verified, self.batches, self.best)

    @classmethod
    def of(cls, plan: Plan, facts: Facts) -> PlanFile:
        """A plan of which nothing was measured."""
        choices = {where: Measured(name) for where, name in plan.choices.items()}
        engine = {bucket: Measured(text) for bucket, text in plan.engine.items()}
        return cls(plan.kind, facts, choices, engine, plan.refused, plan.verified, plan.batches, plan.best)

    @classmethod
    def read(cls, file: Path) -> PlanFile:
        """PlanError on a file that is none of ours, is truncated, or was edited to what is none; OSError where it
        cannot be read."""
        try:
            return _parse(parse_json(read_text(file), "the file"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"{file}: expected a plan as `hqtvae tune` writes it; got {said}") from error

    def write(self, file: Path) -> None:
        """Whole or not at all. OSError names the file."""
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "facts": dict(self.facts),
            "choices": {where: _shown(own) for where, own in self.choices.items()},
            "engine": {str(bucket): _shown(self.engine[bucket]) for bucket in sorted(self.engine)},
            "batches": list(self.batches),
            "best": self.best,
            "seconds": {str(size): self.seconds[size] for size in sorted(self.seconds)},
            "refused": dict(self.refused),
            "verified": None if self.verified is None else sorted(self.verified),
            "unreached": sorted(self.unreached),
        }
        write_file(file, json_text(content, indent=1).encode() + b"\n")

    def check(self, facts: Facts, accept: Collection[str] = (), name: str | Path = "plan") -> None:
        """PlanError, beginning with ``name``, unless it holds under ``facts``, those aside that are in ``accept``."""
        check_accepted(accept, {**self.facts, **facts})
        lines = self.differences(facts, accept)
        if lines:
            waived = " ".join(f"{ACCEPT} {fact}" for fact, _ in lines)
            said = "; ".join(line for _, line in lines)
            raise PlanError(f"{name}: made under other facts: {said} (all the same: {waived})")

    def differences(self, facts: Facts, accept: Collection[str] = ()) -> list[tuple[str, str]]:
        """The facts that differ, and what was expected and got of each."""
        return [(fact, line) for fact, line in different(self.facts, facts) if fact not in accept]


def different(wanted: Facts, found: Facts) -> list[tuple[str, str]]:
    """Facts that are not equal in both, each with a line on it."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    pairs = ((name, wanted.get(name), found.get(name)) for name in names)
    return [(name, f"{name}: expected {_fact(one)}, got {_fact(other)}") for name, one, other in pairs if one != other]


def check_accepted(accept: Collection[str], facts: Facts) -> None:
    unknown = [fact for fact in accept if fact not in facts]
    if unknown:
        raise PlanError(f"{ACCEPT}: expected some of {', '.join(facts)}; got {', '.join(unknown)}")


def facts_id(facts: Facts) -> str:
    """Equal for equal facts: what a file is named by."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def plans_folder() -> Path:
    """``plans`` in the folder that HQTVAE_CACHE names, else in hqtvae_fast/ of the user's cache folder."""
    own = os.environ.get("HQTVAE_CACHE")
    if own:
        return Path(own) / "plans"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hqtvae_fast" / "plans"


def plan_path(facts: Facts) -> Path:
    """Where the tuned plan of these facts lies on this machine, once there is one."""
    return plans_folder() / f"{facts_id(facts)}.json"


def verified_path(facts: Facts) -> Path:
    """Likewise what was found when the default variants were verified."""
    return plans_folder() / f"{facts_id(facts)}.verified.json"


def _shown(own: Measured) -> dict[str, Any]:
    return {name: value for name, value in asdict(own).items() if value is not None}


def _fact(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# -------------------------------------------------------------------------------------------------------------- reading


def _parse(content: dict[str, Any]) -> PlanFile:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} instead of {FORMAT!r}")
    kind, facts = content["kind"], content["facts"]
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} instead of one of {', '.join(KINDS)}")
    choices = {where: _measured(where, own) for where, own in _mapping(content, "choices").items()}
    own_engine = {_size("engine", text): own for text, own in _mapping(content, "engine").items()}
    engine = {size: _measured(f"engine {size}", own) for size, own in own_engine.items()}
    seconds = {_size("seconds", text): taken for text, taken in _mapping(content, "seconds").items()}
    refused = _mapping(content, "refused")
    if not (isinstance(facts, dict) and facts):
        raise ValueError("no facts")
    if not all(isinstance(reason, str) for reason in refused.values()):
        raise ValueError("refused: a reason that is no text")
    if not isinstance(content["batches"], list):
        raise ValueError("batches: something else than a list")
    for size, taken in seconds.items():
        if not isinstance(taken, _NUMBERS) or isinstance(taken, bool) or not 0 < taken < inf:
            raise ValueError(f"seconds: of {size} images {taken!r}")
    verified = None if content["verified"] is None else _names(content, "verified")
    sizes = {"batches": tuple(content["batches"]), "best": content["best"], "seconds": seconds}
    read = PlanFile(kind, facts, choices, engine, refused, verified, **sizes, unreached=_names(content, "unreached"))
    _ = read.plan  # which checks its sizes
    return read


def _mapping(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name}: something else than an object")
    return value


def _names(content: dict[str, Any], name: str) -> frozenset[str]:
    value = content[name]
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise ValueError(f"{name}: something else than a list of names")
    return frozenset(value)


def _size(where: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{where}: batch size {text!r}")
    return int(text)


def _measured(where: str, own: Any) -> Measured:
    known = {each.name for each in fields(Measured)}
    if not isinstance(own, dict) or "variant" not in own:
        raise ValueError(f"{where}: no variant")
    for name, value in own.items():
        if name not in known:
            raise ValueError(f"{where}: {name!r}, which is none of {', '.join(sorted(known))}")
        kinds = _TYPES.get(name, _NUMBERS)
        if not isinstance(value, kinds) or (kinds is _NUMBERS and isinstance(value, bool)):
            raise ValueError(f"{where}: {name} {value!r}")
    return Measured(**own)
