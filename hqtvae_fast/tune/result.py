"""What tuning has found so far: what is right and fast, and what it has not reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hqtvae_fast.config import BUCKETS
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import Measured
from hqtvae_fast.tune.batches import BatchTuning
from hqtvae_fast.tune.sites import Site
from hqtvae_fast.tune.timing import Chosen, Duel, spread


@dataclass
class Found:
    """What is known of one choice: variants that were tried, those that are right and whether they give the default's
    bits, comparisons of them with the default, and what was chosen."""

    site: Site
    tried: set[str] = field(default_factory=set)
    right: dict[str, bool] = field(default_factory=dict)
    duels: dict[str, Duel] = field(default_factory=dict)
    chosen: Chosen | None = None


@dataclass
class Result:
    """``choices`` and ``engine``: what won, as a plan's file has it. ``tuning``: of whole batches under that plan; None
    where they were not all timed. ``known``: the default plan as this machine verified it before, if it has; of a CPU
    it does not matter, where all of ours is trusted. ``stopped``: why it ended early, or None."""

    found: list[Found]
    on_gpu: bool = False
    known: Plan | None = None
    refused: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Measured] = field(default_factory=dict)
    engine: dict[int, Measured] = field(default_factory=dict)
    tuning: BatchTuning | None = None
    confirmed: bool = False
    """Whether ``choices`` are those of whole runs."""
    untried: Counter[str] = field(default_factory=Counter)
    """"op name" of candidates that the time was up for, and at how many choices."""
    stopped: str | None = None

    @property
    def plan(self) -> Plan:
        """A GPU's plan trusts what was proven there."""
        choices = {where: own.variant for where, own in self.choices.items()}
        engine = {batch: own.variant for batch, own in self.engine.items()}
        return self.trusting("tuned", choices=choices, engine=engine, batches=self.batches, best=self.best)

    def trusting(self, kind: Any, **more: Any) -> Plan:
        """A plan that trusts, and passes over, what is known to be right and wrong by now."""
        return Plan(kind, refused=self.refused, verified=self.verified if self.on_gpu else None, **more)

    @property
    def verified(self) -> frozenset[str]:
        """What is right wherever it was to be tried, or was so before."""
        known = frozenset() if self.known is None else self.known.verified or frozenset()
        right = {f"{found.site.op} {name}" for found in self.found for name in found.right}
        return frozenset(right - self.untried.keys() | known).difference(self.refused)

    @property
    def unreached(self) -> frozenset[str]:
        """Our default variants of which it is not known whether they are right: a GPU's plan passes them over."""
        ours = {found.site.label for found in self.found if self.on_gpu and found.site.is_ours}
        return frozenset(ours).intersection(self.untried).difference(self.verified, self.refused)

    def recall(self) -> None:
        """Refuse what was refused here before, unless it has now been right everywhere. Not the engine's words, which
        are refused for what they do to one model's predictions."""
        if self.known is not None:
            right, known = self.verified, self.known.refused.items()
            old = {label: why for label, why in known if label not in right and not label.startswith("engine ")}
            self.refused = {**old, **self.refused}

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


def measured(variant: str, incumbent: str, won: Duel) -> Measured:
    """As a plan's file has it, in microseconds."""
    numbers: dict[str, Any] = {"median": median(won.challenger) * 1e6, "spread": spread(won.challenger) * 1e6}
    numbers |= {"incumbent_median": median(won.incumbent) * 1e6, "incumbent_spread": spread(won.incumbent) * 1e6}
    return Measured(variant, incumbent, **numbers)
