"""The stages of tuning: prove, time, confirm; within a budget, and with the best so far whenever it ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from hqtvae_fast.hardware import Device
from hqtvae_fast.ops.spec import Spec
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import Measured
from hqtvae_fast.tune.batches import measure
from hqtvae_fast.tune.confirm import KEEP_BITS, Confirm, NoRunError, Whole, engine_words
from hqtvae_fast.tune.jobs import PROVE_SECONDS, TIME_SECONDS, prove_job, refused, time_job
from hqtvae_fast.tune.parent import Answer, Job
from hqtvae_fast.tune.result import Found, Result, measured
from hqtvae_fast.tune.shortlist import MOST, by_weight, shortlist
from hqtvae_fast.tune.sites import Site
from hqtvae_fast.tune.timing import Duel, best

PROVING, TIMING = 0.45, 0.75
"""Shares of the budget after which the stage gives way to the next one."""
DUEL_SECONDS = 2.0

Ask = Callable[[Job, float], Answer]
OnStage = Callable[[str, int, int], None]
"""Told a stage's name and how many of how many are done."""
SPENT = "the budget is spent"


@dataclass
class Tuner:
    """``sites``: the model's choices; ``ask`` and ``fresh`` are a parent's; ``whole`` runs a batch under a plan;
    ``known``: the default plan as this machine has verified it, if it has."""

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
    known: Plan | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    """Variants that are not to be taken whatever is found, "op name", and why; ``sites`` are without them. Of the
    engine's, "engine word"."""
    eight_bits: bool = False
    """Whether the user has allowed that numbers are rounded to 8 bits."""
    brought: Mapping[str, Sequence[Site]] = field(default_factory=dict)
    """Choices that a word of the engine's brings, which is not tried before they are proven."""

    def run(self) -> Result:
        """Everything; at Ctrl-C, too, the best so far."""
        start = self.now()
        known = [site for site in self.sites if site.cost is not None]
        if self.device.type == "cpu":  # where nothing of ours needs a proof to be trusted
            known = [site for site in known if site.is_choice]
        found = [Found(site) for site in by_weight(known, self.peaks)]
        result = Result(found, self.device.type == "cuda", self.known, refused=dict(self.refused))
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
        return result

    def _prove(self, result: Result, end: float) -> None:
        """On a GPU first what the default plan needs, so that the plan that is written lacks none of it; references
        last, at all choices: as written they are for reading, and they seldom win."""
        known = () if self.known is None else self.known.verified or ()
        rounds = [
            (found, [found.site.default])
            for found in result.found
            if result.on_gpu and found.site.is_ours and found.site.label not in known
        ]
        for references in (False, True):
            own = ((found, self._candidates(found.site, references)) for found in result.found)
            rounds += [(found, [found.site.default, *names]) for found, names in own if names]
        try:
            for done, (found, names) in enumerate(rounds):
                self.on_stage("prove", done, len(rounds))
                for name in names:
                    if name in found.tried or f"{found.site.op} {name}" in result.refused:
                        continue
                    if self.now() >= end:
                        return
                    self._prove_one(result, found, name)
            self.on_stage("prove", len(rounds), len(rounds))
        finally:
            wanted = {(found.site.key, name): found for found, names in rounds for name in names}
            left = [f"{found.site.op} {name}" for (_, name), found in wanted.items() if name not in found.tried]
            result.untried = Counter(label for label in left if label not in result.refused)
            result.recall()

    def _candidates(self, site: Site, references: bool) -> list[str]:
        names = shortlist(site, self.specs[site.op], self.peaks, self.most)
        mine = [name for name in names if (name == "reference") == references]
        return [site.default] if not names and not references else mine

    def _prove_one(self, result: Result, found: Found, name: str) -> None:
        site = found.site
        default = site.default if name == site.default or site.default in found.right else None
        answer = self.ask(prove_job(site, name, default, self.device), PROVE_SECONDS)
        found.tried.add(name)
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
        return result.trusting("tuned", choices=choices)

    def _confirm(self, result: Result, end: float) -> None:
        self.fresh()
        confirm, proven = Confirm(self.whole, end, self.now), set[str]()
        kinds = engine_words(self.device.type, result.refused, eight_bits=self.eight_bits)
        self.on_stage("confirm", 0, 1 + len(self.batches))
        kept, _ = confirm.choices(self._proposed(result), self.batches)
        self._keep(result, kept)
        result.confirmed = True
        for done, batch in enumerate(self.batches):
            self.on_stage("confirm", 1 + done, 1 + len(self.batches))
            own = [words for words in kinds if all(self._holds(result, word, batch, end, proven) for word in words)]
            text, won = confirm.engine(kept, batch, own, keep_bits=self.keep_bits)
            if won is not None:
                result.engine[batch] = measured(text, "", won)
        if confirm.short:
            result.stopped = SPENT
        self.on_stage("confirm", 1 + len(self.batches), 1 + len(self.batches))

    def _holds(self, result: Result, word: str, batch: int, end: float, proven: set[str]) -> bool:
        """Whether all that the word brings to a bucket, and to smaller ones, is right; ``proven``: what is known."""
        if self.keep_bits and word not in KEEP_BITS:
            return True  # it is not tried
        for site in self.brought.get(word, ()):
            if site.batch > batch or site.key in proven:
                continue
            if self.now() >= end or site.cost is None or f"engine {word}" in result.refused:
                return False
            answer = self.ask(prove_job(site, site.default, None, self.device), PROVE_SECONDS)
            if refused(answer):
                result.refused[f"engine {word}"] = f"{answer['reason']} at {site.key}"
            if answer["status"] != "right":
                return False
            proven.add(site.key)
        return True

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
