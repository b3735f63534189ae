"""Which of our default variants are right on this device, at the choices of one model: what a first use on a GPU, and
``hqtvae tune --verify-only``, find out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from queue import SimpleQueue

import torch

from hqtvae_fast.config import DEFAULT_BATCH
from hqtvae_fast.engine.executor import Executor
from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.jobs import PROVE_SECONDS, prove_job, refused
from hqtvae_fast.tune.parent import Answer, Parent
from hqtvae_fast.tune.sites import Site, find_sites

MOST_WORKERS = 8
OnProgress = Callable[[int, int], None]
"""Told how many are done, of how many."""


def verify_default(
    executor: Executor,
    device: torch.device,
    on_progress: OnProgress = lambda done, total: None,
    *,
    batches: Sequence[int] | None = None,
) -> Plan:
    """The default plan with what was verified and refused. ``batches``: those whose choices are tried; by default one
    image and the device's usual batch. An operation that is ours is verified where it is right at all of its choices
    that can be tried. RuntimeError where no worker can be started."""
    if executor.vae is None:
        raise ValueError("verify: expected an executor with stage 1; this one has none")
    wanted = (1, DEFAULT_BATCH[device.type]) if batches is None else batches
    sites = find_sites(executor.models, executor.vae, device, wanted)
    with ExitStack() as stack:
        parents = [stack.enter_context(Parent()) for _ in range(_workers(device))]
        return verify_sites(sites, device, on_progress, parents)


def _workers(device: torch.device) -> int:
    """Each has a share of the GPU's memory, and keeps a processor busy with compiling."""
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // 2)) if device.type == "cuda" else 1


def verify_sites(
    sites: Sequence[Site], device: torch.device, on_progress: OnProgress, parents: Sequence[Parent]
) -> Plan:
    """``parents``: so many jobs are done at once, for most of a job is one processor that compiles a kernel. What there
    is no memory for beside others is done again alone."""
    jobs = [site for site in sites if site.cost is not None and site.is_ours]
    free, failed = SimpleQueue[Parent](), set[str]()
    for parent in parents:
        free.put(parent)

    def ask(site: Site) -> Answer | None:
        if site.label in failed:
            return None
        parent = free.get()
        try:
            answer = parent.ask(prove_job(site, site.default, None, device), PROVE_SECONDS)
        finally:
            free.put(parent)
        if refused(answer):
            failed.add(site.label)
        return answer

    answers = _side_by_side(ask, jobs, len(parents), on_progress)
    short = [index for index, answer in enumerate(answers) if answer is not None and answer["status"] == "memory"]
    if short and len(parents) > 1:
        for parent in parents:
            parent.fresh()
        for index in short:
            answers[index] = ask(jobs[index])
    right, reasons = set[str](), dict[str, str]()
    for site, answer in zip(jobs, answers, strict=True):
        if answer is not None and answer["status"] == "right":
            right.add(site.label)
        elif answer is not None and refused(answer):
            reasons.setdefault(site.label, f"{answer['reason']} at {site.key}")
    return Plan("default", refused=reasons, verified=frozenset(right - reasons.keys()))


def _side_by_side(
    ask: Callable[[Site], Answer | None], jobs: Sequence[Site], workers: int, on_progress: OnProgress
) -> list[Answer | None]:
    """The answers in the jobs' order. Whatever one raises, Ctrl-C among it, ends it at once: the parents' owner ends
    what still runs."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        futures = [pool.submit(ask, site) for site in jobs]
        for done, future in enumerate(as_completed(futures)):
            on_progress(done, len(jobs))
            future.result()
        on_progress(len(jobs), len(jobs))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
