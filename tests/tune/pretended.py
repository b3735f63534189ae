"""A GPU that is not here: its facts are published, its worker and its clock answer from a table."""

from __future__ import annotations

import torch

from hqtvae_fast.hardware import DEVICES
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.tune.tuner import Tuner

SPECS, CUDA = all_specs(), torch.device("cuda")


class Pretended:
    """A GPU: ``fast`` has seconds by variant (1 ms otherwise), ``wrong`` reasons against a variant. Each job takes
    ``takes`` seconds, and ``stops`` is when somebody presses Ctrl-C. ``words`` of the engine's are faster there."""

    def __init__(self, fast=None, wrong=None, takes=0.1, stops=None, words=("skip_query",)):
        self.words = words
        self.fast, self.wrong, self.takes, self.stops = fast or {}, wrong or {}, takes, stops
        self.passed, self.jobs, self.fresh_workers = 0.0, [], 0

    def ask(self, job, seconds):
        self.passed += self.takes
        if self.stops is not None and self.passed >= self.stops:
            raise KeyboardInterrupt
        self.jobs.append(job)
        if job["do"] == "prove":
            status, reason = self.wrong.get(f"{job['op']} {job['variant']}", ("right", ""))
            return {"status": status, "reason": reason, "same_bits": "torch" not in job["variant"]}
        times = [self._seconds(job["op"], job[who]) for who in ("incumbent", "challenger")]
        return {"status": "right", "incumbent": [times[0]] * 5, "challenger": [times[1]] * 5}

    def _seconds(self, op, variant):
        return self.fast.get(f"{op} {variant}", 1e-3)

    def fresh(self):
        self.fresh_workers += 1

    def whole(self, plan, batch):
        self.passed += self.takes
        saved = sum(1e-3 - self._seconds(where.partition(" ")[0], name) for where, name in plan.choices.items())
        return 1.0 - 10 * saved - 0.1 * sum(word in plan.engine_for(batch) for word in self.words)

    def tuner(self, sites, budget=1e4, **options):
        peaks = DEVICES["H100"]
        fixed = (SPECS, CUDA, peaks, self.ask, self.fresh, self.whole, [1, 50], budget)
        return Tuner(sites, *fixed, now=lambda: self.passed, **options)
