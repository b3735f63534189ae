"""Which of our default variants are right on this device, at the choices of one model: what a first use on a GPU, and
``hqtvae tune --verify-only``, find out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hqtvae_fast.config import DEFAULT_BATCH
from hqtvae_fast.engine.executor import Executor
from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.jobs import PROVE_SECONDS, prove_job, refused
from hqtvae_fast.tune.parent import Parent
from hqtvae_fast.tune.sites import Site, find_sites

OnProgress = Callable[[int, int], None]
"""Told how many are done, of how many."""


def verify_default(
    executor: Executor,
    device: torch.device,
    on_progress: OnProgress = lambda done, total: None,
    *,
    batches: Sequence[int] | None = None,
    parent: Parent | None = None,
) -> Plan:
    """The default plan with what was verified and refused. ``batches``: those whose choices are tried; by default one
    image and the device's usual batch. An operation that is ours is verified where it is right at all of its choices
    that can be tried. RuntimeError where no worker can be started."""
    if executor.vae is None:
        raise ValueError("verify: expected an executor with stage 1; this one has none")
    wanted = (1, DEFAULT_BATCH[device.type]) if batches is None else batches
    sites = find_sites(executor.models, executor.vae, device, wanted)
    with parent or Parent() as own:
        return verify_sites(sites, device, on_progress, own)


def verify_sites(sites: Sequence[Site], device: torch.device, on_progress: OnProgress, parent: Parent) -> Plan:
    jobs = [site for site in sites if site.cost is not None and site.is_ours]
    right, reasons = set[str](), dict[str, str]()
    for done, site in enumerate(jobs):
        on_progress(done, len(jobs))
        if site.label in reasons:
            continue
        answer = parent.ask(prove_job(site, site.default, None, device), PROVE_SECONDS)
        if answer["status"] == "right":
            right.add(site.label)
        elif refused(answer):
            reasons[site.label] = f"{answer['reason']} at {site.key}"
    on_progress(len(jobs), len(jobs))
    return Plan("default", refused=reasons, verified=frozenset(right - reasons.keys()))
