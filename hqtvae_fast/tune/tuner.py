"""The stages of tuning: prove, time, confirm; within a budget, and with the best so far whenever it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from hqtvae_fast.config import BUCKETS
from hqtvae_fast.hardware import Device
from hqtvae_fast.ops.spec import Spec
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import Measured
from hqtvae_fast.tune.batches import BatchTuning, measure
from hqtvae_fast.tune.confirm import ENGINE, Confirm, NoRunError, Whole
from hqtvae_fast.tune.jobs import PROVE_SECONDS, TIME_SECONDS, prove_job, refused, time_job
from hqtvae_fast.tune.parent import Answer, Job
from hqtvae_fast.tune.shortlist import MOST, by_weight, shortlist
from hqtvae_fast.tune.sites import Site
from hqtvae_fast.tune.timing import Chosen, Duel, best, spread

PROVING, TIMING = 0.45, 0.75
"""Shares of the budget after which the stage gives way to the next one."""
DUEL_SECONDS = 2.0

Ask = Callable[[Job, float], Answer]
OnStage = Callable[[str, int, int], None]
"""Told a stage's name and how many of how many are done."""


@dataclass
class Found:
    """What is known of one choice: variants that are right and whether they give the default's bits, comparisons of
    them with the default, and what was chosen."""

    site: Site
    right: dict[str, bool] = field(default_factory=dict)
    duels: dict[str, Duel] = field(default_factory=dict)
    chosen: Chosen | None = None


@dataclass
class Result:
    """``choices`` and ``engine``: what won, as a plan's file has it. ``tuning``: of whole batches under that plan; None
    where they were not all timed. ``stopped``: why it ended early, or None."""

    found: list[Found]
    refused: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Measured] = field(default_factory=dict)
    engine: dict[int, Measured] = field(default_factory=dict)
    verified: frozenset[str] = frozenset()
    tuning: BatchTuning | None = None
    confirmed: bool = False
    """Whether ``choices`` are those of whole runs."""
    stopped: str | None = None

    @property
    def plan(self) -> Plan:
        """A GPU's plan trusts what was proven there; on a CPU all of ours is trusted."""
        choices = {where: own.variant for where, own in self.choices.items()}
        engine = {batch: own.variant for batch, own in self.engine.items()}
        return Plan("tuned", choices, engine, self.refused, batches=self.batches, best=self.best)

    @property
    def batches(self) -> tuple[int, ...]:
        """As a plan has them."""
        return () if self.tuning is None else self.tuning.among(BUCKETS)

    @property
    def best(self) -> int | None:
        return None if self.tuning is None else self.tuning.best

    @property
    def seconds(self) -> Mapping[int, float]:
        """Of a whole batch under the plan, by its size."""
        return {} if self.tuning is None else self.tuning.seconds


SPENT = "the budget is spent"


@dataclass
class Tuner:
    """``sites``: the model's choices; ``ask`` and ``fresh`` are a parent's; ``whole`` runs a batch under a plan."""

    sites: Sequence[Site]
    specs: Mapping[str, Spec]
    device: torch.device
    peaks: Device
    ask: Ask
    fresh: Callable[[], None]
    whole: Whole
    batches: Sequence[int]
    budget: float
    keep_bits: bool = False
    now: Callable[[], float] = time.monotonic
    on_stage: OnStage = lambda stage, done, total: None
    most: int = MOST
    only_prove: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    """Variants that are not to be taken whatever is found, "op name", and why; ``sites`` are without them."""

    def run(self) -> Result:
        """Everything; at Ctrl-C, too, the best so far."""
        start = self.now()
        known = [site for site in self.sites if site.cost is not None]
        if self.device.type == "cpu":  # where nothing of ours needs a proof to be trusted
            known = [site for site in known if site.is_choice]
        result = Result([Found(site) for site in by_weight(known, self.peaks)], dict(self.refused))
        try:
            self._prove(result, start + (1 if self.only_prove else PROVING) * self.budget)
            if not self.only_prove:
                self._time(result, start + TIMING * self.budget)
                self._confirm(result, start + self.budget)
                self._time_batches(result)
        except KeyboardInterrupt:
            result.stopped = "interrupted"
            if not result.confirmed:
                self._keep(result, self._proposed(result))
        if result.engine:  # buckets that nothing was found for stay as they are by themselves
            result.engine = {batch: result.engine.get(batch, Measured("")) for batch in self.batches}
        if result.stopped is None and self.now() >= start + self.budget:
            result.stopped = SPENT
        names = {f"{found.site.op} {name}" for found in result.found for name in found.right}
        result.verified = frozenset(names - result.refused.keys())
        return result

    def _prove(self, result: Result, end: float) -> None:
        """References last, at all choices: as written they are for reading, and they seldom win."""
        rounds = [(found, names) for found in result.found if (names := self._candidates(found.site, False))]
        rounds += [(found, names) for found in result.found if (names := self._candidates(found.site, True))]
        for done, (found, names) in enumerate(rounds):
            self.on_stage("prove", done, len(rounds))
            for name in (found.site.default, *names):
                if self.now() >= end:
                    return
                if name not in found.right and f"{found.site.op} {name}" not in result.refused:
                    self._prove_one(result, found, name)
        self.on_stage("prove", len(rounds), len(rounds))

    def _candidates(self, site: Site, references: bool) -> list[str]:
        names = shortlist(site, self.specs[site.op], self.peaks, self.most)
        mine = [name for name in names if (name == "reference") == references]
        return [site.default] if not names and not references else mine

    def _prove_one(self, result: Result, found: Found, name: str) -> None:
        site = found.site
        default = site.default if name == site.default or site.default in found.right else None
        answer = self.ask(prove_job(site, name, default, self.device), PROVE_SECONDS)
        if answer["status"] == "right":
            found.right[name] = answer["same_bits"]
        elif refused(answer):
            result.refused[f"{site.op} {name}"] = f"{answer['reason']} at {site.key}"

    def _time(self, result: Result, end: float) -> None:
        self.fresh()
        for done, found in enumerate(result.found):
            site = found.site
            self.on_stage("time", done, len(result.found))
            for name in found.right:
                if self.now() >= end:
                    break
                label = f"{site.op} {name}"
                if name == site.default or site.default not in found.right or label in result.refused:
                    continue
                answer = self.ask(time_job(site, name, DUEL_SECONDS, self.device), TIME_SECONDS)
                if answer["status"] == "right":
                    found.duels[name] = Duel(tuple(answer["incumbent"]), tuple(answer["challenger"]))
                elif refused(answer):
                    result.refused[label] = f"{answer['reason']} at {site.key}"
            timed = {name: (own, found.right[name]) for name, own in found.duels.items()}
            found.chosen = best(site.default, timed, keep_bits=self.keep_bits)
        self.on_stage("time", len(result.found), len(result.found))

    def _proposed(self, result: Result) -> Plan:
        choices = {
            key: found.chosen.name
            for found in result.found
            if found.chosen is not None and found.chosen.duel is not None
            for key in found.site.keys
            if f"{found.site.op} {found.chosen.name}" not in result.refused
        }
        return Plan("tuned", choices, refused=result.refused)

    def _confirm(self, result: Result, end: float) -> None:
        self.fresh()
        confirm, kinds = Confirm(self.whole, end, self.now), ENGINE[self.device.type]
        self.on_stage("confirm", 0, 1 + len(self.batches))
        kept, _ = confirm.choices(self._proposed(result), self.batches)
        self._keep(result, kept)
        result.confirmed = True
        for done, batch in enumerate(self.batches):
            self.on_stage("confirm", 1 + done, 1 + len(self.batches))
            text, won = confirm.engine(kept, batch, kinds, keep_bits=self.keep_bits)
            if won is not None:
                result.engine[batch] = measured(text, "", won)
        if confirm.short:
            result.stopped = SPENT
        self.on_stage("confirm", 1 + len(self.batches), 1 + len(self.batches))

    def _time_batches(self, result: Result) -> None:
        """A few runs, whatever is left of the budget: a part of the sizes would say nothing of the fastest one."""
        self.on_stage("batches", 0, len(self.batches))
        try:
            result.tuning = measure(partial(self.whole, result.plan), self.batches)
        except (NoRunError, MemoryError) as error:
            result.stopped = f"batch sizes are not timed: {error}"
        self.on_stage("batches", len(self.batches), len(self.batches))

    def _keep(self, result: Result, plan: Plan) -> None:
        for found in result.found:
            for key in found.site.keys:
                if key in plan.choices and found.chosen is not None and found.chosen.duel is not None:
                    own = measured(found.chosen.name, found.site.default, found.chosen.duel)
                    result.choices[key] = replace(own, same_bits=found.chosen.same_bits)


def measured(variant: str, incumbent: str, won: Duel) -> Measured:
    """As a plan's file has it, in microseconds."""
    numbers: dict[str, Any] = {"median": median(won.challenger) * 1e6, "spread": spread(won.challenger) * 1e6}
    numbers |= {"incumbent_median": median(won.incumbent) * 1e6, "incumbent_spread": spread(won.incumbent) * 1e6}
    return Measured(variant, incumbent, **numbers)
