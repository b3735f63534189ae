"""What the parent asks of a worker about one choice, how long that may take, and what of an answer counts against a
variant."""

from __future__ import annotations

from typing import Any

import torch

from hqtvae_fast.tune.parent import Answer, Job
from hqtvae_fast.tune.sites import Site

PROVE_SECONDS, TIME_SECONDS = 120.0, 60.0
"""For a job, after which it hangs: on a GPU a kernel is compiled, on a CPU float64 is computed."""
REFUSALS = ("wrong", "raised", "crashed", "hung")
"""What a variant is refused for. Others ("memory", "cannot") are of this one choice."""


def prove_job(site: Site, variant: str, default: str | None, device: torch.device) -> Job:
    return {**_of(site, device), "do": "prove", "variant": variant, "default": default, "site": site.key}


def time_job(site: Site, challenger: str, seconds: float, device: torch.device) -> Job:
    fixed = {"do": "time", "incumbent": site.default, "challenger": challenger, "seconds": seconds}
    return {**_of(site, device), **fixed}


def _of(site: Site, device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"op": site.op, "inputs": site.inputs, "device": str(device), "threads": threads}


def refused(answer: Answer) -> bool:
    return answer["status"] in REFUSALS
