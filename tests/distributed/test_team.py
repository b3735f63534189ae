"""A team's counters: each piece of work goes to one process, and the leader waits for all, or hears who failed."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from hqtvae_fast.distributed import Team, join_team
from hqtvae_fast.distributed.team import FAILED, TeamError


def team(store: dist.Store, rank: int, world: int) -> Team:
    return Team(rank, world, rank, store)


def test_each_item_goes_to_one_process_and_all_items_go():
    store, taken = dist.HashStore(), [[] for _ in range(4)]
    items = list(range(100, 140))

    def work(rank: int) -> None:
        taken[rank] += team(store, rank, 4).take(items)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item for own in taken for item in own) == items


def test_a_slow_process_leaves_the_work_to_the_others():
    store = dist.HashStore()
    slow, fast = team(store, 0, 2).take("abcd"), team(store, 1, 2).take("abcd")
    assert next(slow) == "a"
    assert list(fast) == ["b", "c", "d"]
    assert list(slow) == []


def test_progress_is_of_all_processes():
    store = dist.HashStore()
    assert team(store, 0, 2).report(3) == 3
    assert team(store, 1, 2).report(4) == 7
    assert team(store, 0, 2).report(0) == 7


def test_the_leader_waits_for_all():
    store, polls = dist.HashStore(), []

    def second_finishes() -> None:
        polls.append(1)
        if len(polls) == 2:
            team(store, 1, 2).finish()

    team(store, 0, 2).finish(second_finishes)
    assert len(polls) == 2


def test_the_leader_hears_that_another_failed():
    store = dist.HashStore()
    store.add(FAILED, 1)
    with pytest.raises(TeamError, match="1 of 3 processes failed"):
        team(store, 0, 3).finish()


def test_a_single_process_is_a_team(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_team() as alone:
        assert (alone.rank, alone.world, alone.leads) == (0, 1, True)
        assert alone.share(lambda: [2, 3]) == [2, 3]
        assert list(alone.take([5, 6])) == [5, 6]
        alone.finish()


def test_a_failure_is_told_before_it_is_raised(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    stores = []

    def fails() -> None:
        with join_team() as alone:
            stores.append(alone.store)
            raise KeyError("shard")

    with pytest.raises(KeyError):
        fails()
    assert stores[0].add(FAILED, 0) == 1


def test_only_a_team_has_a_gpu_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    own = team(dist.HashStore(), 3, 4)
    assert [own.device(wanted) for wanted in (None, "cuda", "cuda:0", "cpu")] == ["cuda:3", "cuda:3", "cuda:0", "cpu"]
    assert team(dist.HashStore(), 0, 1).device(None) is None
