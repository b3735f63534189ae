"""The processes that torchrun started for one job, or a single process: shared counters, and work that each takes once.

Nothing but these counters is exchanged while the job runs, so processes may be fast or slow and of any number. The
counters live in torchrun's own store and belong to one start of the processes: after a restart they begin at nought,
and what is left to do is read from the disk.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from hqtvae_fast.world import world

Item = TypeVar("Item")
POLL_SECONDS = 0.2
_teams = itertools.count()  # of this process
FINISHED, FAILED, TAKEN, DONE = "finished", "failed", "taken", "done"


class TeamError(OSError):
    """Another process of the job has failed, or works on something else."""


@dataclass(frozen=True)
class Team:
    """``rank`` of ``world`` processes, ``local_rank`` on this machine, and the ``store`` with what they share."""

    rank: int
    world: int
    local_rank: int
    store: Store

    @property
    def leads(self) -> bool:
        """Whether this is the one process that lists the work and closes the job."""
        return self.rank == 0

    def device(self, wanted: str | None) -> str | None:
        """The device asked for; this process's own GPU where a team asks for none in particular."""
        own = self.world > 1 and torch.cuda.is_available() and wanted in (None, "cuda")
        return f"cuda:{self.local_rank}" if own else wanted

    def share(self, make: Callable[[], Item]) -> Item:
        """What the leader's ``make`` returns (it is pickled), to every process. All of them must call it; where
        ``make`` fails, all of them fail."""
        if self.world == 1:
            return make()
        value: list[Any] = [None, ""]
        if not self.leads:
            dist.broadcast_object_list(value, src=0)
            if value[1]:
                raise TeamError(f"process 0 failed: {value[1]}")
            return value[0]
        try:
            value = [make(), ""]
        except Exception as error:
            value = [None, str(error) or type(error).__name__]
            raise
        finally:
            dist.broadcast_object_list(value, src=0)
        return value[0]

    def gather(self, make: Callable[[], Item]) -> list[Item]:
        """What every process's ``make`` returns, by rank, to every process. All of them must call it; where one fails,
        all of them fail."""
        if self.world == 1:
            return [make()]
        failure: Exception | None = None
        try:
            own: tuple[Any, str] = (make(), "")
        except Exception as error:
            failure, own = error, (None, str(error) or type(error).__name__)
        found: list[tuple[Any, str]] = [(None, "")] * self.world
        dist.all_gather_object(found, own)
        if failure is not None:
            raise failure
        for rank, (_, message) in enumerate(found):
            if message:
                raise TeamError(f"process {rank} failed: {message}")
        return [value for value, _ in found]

    def take(self, items: Sequence[Item]) -> Iterator[Item]:
        """Items of a list that all processes have: each goes to one process, which asks for it when it is free."""
        while (place := self.store.add(TAKEN, 1) - 1) < len(items):
            yield items[place]

    def report(self, number: int) -> int:
        """Count ``number`` more pieces as done; returns how many all processes have done. 0 only asks."""
        return self.store.add(DONE, number)

    def finish(self, waiting: Callable[[], None] = lambda: None) -> None:
        """Say that this process is done. The leader then waits for all, and calls ``waiting`` meanwhile; TeamError if
        one has failed."""
        done = self.store.add(FINISHED, 1)
        while self.leads and done < self.world:
            if failed := self.store.add(FAILED, 0):
                raise TeamError(f"{failed} of {self.world} processes failed; the same command goes on from here")
            waiting()
            time.sleep(POLL_SECONDS)
            done = self.store.add(FINISHED, 0)


@contextmanager
def join_team() -> Iterator[Team]:
    """This process's team, from torchrun's environment variables; without them, a team of one.

    A process that fails in there tells the leader, which need not wait for it then.
    """
    begins = not dist.is_initialized()  # or a script has, by training say
    team = _join()
    try:
        yield team
    except BaseException:
        with suppress(RuntimeError):  # the store may be gone: then so is the leader
            team.store.add(FAILED, 1)
        raise
    finally:
        if begins and dist.is_initialized():
            dist.destroy_process_group()


def _join() -> Team:
    here = world()
    if here.size == 1:
        return Team(0, 1, 0, HashStore())
    if dist.is_initialized():
        store = _get_default_store()
    else:
        store, _, _ = next(rendezvous("env://", here.rank, here.size))
        # Not where the processes of an earlier start, or an earlier team of these, have left their addresses.
        own = PrefixStore(f"hqtvae/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_teams)}", store)
        # gloo, whatever the device: a few bytes at the start, and none of a GPU's memory.
        dist.init_process_group("gloo", store=own, rank=here.rank, world_size=here.size)
    # torchrun's store may outlive the processes: under a name of their own, counters of an earlier start are not found.
    name = Team(here.rank, here.size, here.local_rank, store).share(lambda: uuid.uuid4().hex)
    return Team(here.rank, here.size, here.local_rank, PrefixStore(f"hqtvae/{name}", store))
