"""Who wins, by a clock that answers from a table: wins, ties, noise, and the end of the time there is."""

from __future__ import annotations

import random

import pytest

from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.confirm import Confirm
from hqtvae_fast.tune.timing import FEW, FEWEST, MOST, Duel, best, duel, spread


class Clock:
    """Seconds by name, with noise; time passes with every turn."""

    def __init__(self, seconds, noise=0.0, seed=0):
        self.seconds, self.noise, self.random, self.passed = seconds, noise, random.Random(seed), 0.0
        self.asked = []

    def __call__(self, name):
        taken = self.seconds[name] * (1 + self.noise * self.random.gauss(0, 1))
        self.passed += taken
        self.asked.append(name)
        return taken

    def now(self):
        return self.passed


def meet(a, b, noise=0.0, seed=0, seconds=1e9, **options):
    clock = Clock({"a": a, "b": b}, noise, seed)
    return duel("a", "b", clock, seconds=seconds, now=clock.now, **options), clock


def test_turns_alternate_and_end_once_it_is_decided():
    won, clock = meet(1.0, 0.9)
    assert clock.asked == ["a", "b"] * FEW
    assert won.wins()
    assert won.ratio == pytest.approx(0.9)


@pytest.mark.parametrize("challenger,wins", [(0.96, True), (0.98, False), (1.0, False), (1.5, False)])
def test_three_percent_must_be_saved(challenger, wins):
    assert meet(1.0, challenger)[0].wins() is wins


def test_what_is_much_slower_is_given_up_early():
    assert len(meet(1.0, 3.0)[0].challenger) == FEWEST
    assert len(meet(1.0, 1.01)[0].challenger) == MOST


def test_a_tie_under_noise_is_no_win():
    for noise in (0.02, 0.1):
        assert sum(meet(1.0, 1.0, noise=noise, seed=seed)[0].wins() for seed in range(400)) <= 4


def test_a_clear_win_is_seen_under_noise():
    assert all(meet(1.0, 0.8, noise=0.05, seed=seed)[0].wins() for seed in range(50))


def test_a_few_disturbed_turns_do_not_count():
    values = [1.0, 1.01, 0.99, 1.0, 1.01, 40.0, 0.99]
    assert spread(values) < 0.01


def test_time_that_is_over_leaves_the_fewest_turns():
    won, _ = meet(1.0, 0.99, seconds=0.0)
    assert len(won.incumbent) == FEWEST
    assert not Duel(won.incumbent[:-1], won.challenger[:-1]).wins()


def made(ratio):
    return Duel((1.0,) * FEWEST, (ratio,) * FEWEST)


def test_the_largest_saving_wins():
    chosen = best("a", {"b": (made(0.9), True), "c": (made(0.8), True), "d": (made(1.1), True)})
    assert (chosen.name, chosen.same_bits) == ("c", True)
    assert best("a", {"d": (made(0.99), True)}).duel is None


def test_other_bits_must_save_more_than_the_same_bits():
    duels = {"same": (made(0.90), True), "other": (made(0.88), False)}
    assert best("a", duels).name == "same"
    duels["other"] = made(0.80), False
    assert best("a", duels).name == "other"
    assert best("a", duels, keep_bits=True).name == "same"
    assert best("a", {"other": duels["other"]}, keep_bits=True).duel is None


# ------------------------------------------------------------------------------------------------------- whole runs


def whole(seconds, clock=None):
    """Seconds of a plan: ``seconds`` of its choices and its engine."""

    def run(plan, batch):
        taken = seconds(set(plan.choices.values()), plan.engine_for(batch), batch)
        if clock is not None and taken is not None:
            clock.passed += taken
        if taken is None:
            raise MemoryError
        return taken

    return run


def test_what_does_not_win_end_to_end_is_dropped():
    confirm = Confirm(whole(lambda names, engine, batch: 1.0 - 0.1 * ("good" in names) + 0.2 * ("bad" in names)), 1e18)
    proposed = Plan("tuned", {"op | 1": "good", "other | 1": "bad"})
    kept, duels = confirm.choices(proposed, [1, 8])
    assert dict(kept.choices) == {"op | 1": "good"}
    assert duels[8].ratio == pytest.approx(0.9)


def test_a_plan_that_is_slower_at_one_bucket_is_dropped():
    confirm = Confirm(whole(lambda names, engine, batch: 1.0 if not names else {1: 0.8, 8: 1.1}[batch]), 1e18)
    assert not confirm.choices(Plan("tuned", {"op | 1": "good"}), [1, 8])[0].choices


def test_the_engine_goes_down_one_coordinate_after_the_other():
    savings = {"tables": 0.1, "chunk=4": 0.2, "chunk=2": 0.1, "threads=1": -0.3}
    confirm = Confirm(whole(lambda names, engine, batch: 2.0 - sum(savings[w] for w in engine.split(", ") if w)), 1e18)
    kinds = (("threads=1",), ("tables",), ("chunk=2", "chunk=4"))
    text, won = confirm.engine(Plan("tuned"), 8, kinds)
    assert text == "tables, chunk=4"
    assert won.ratio < 1


def test_what_does_not_fit_into_memory_is_not_chosen():
    confirm = Confirm(whole(lambda names, engine, batch: None if "tables" in engine else 1.0), 1e18)
    assert confirm.engine(Plan("tuned"), 1, (("tables",),)) == ("", None)


def test_nothing_begins_once_the_time_is_over():
    confirm = Confirm(whole(lambda names, engine, batch: pytest.fail("a run was begun")), end=0.0, now=lambda: 1.0)
    assert not confirm.choices(Plan("tuned", {"op | 1": "good"}), [1])[0].choices
    assert confirm.engine(Plan("tuned"), 1, (("tables",),)) == ("", None)


def test_whole_runs_do_not_outlast_the_budget():
    """A comparison that the fewest turns would take beyond the end is left out, after two runs at most."""
    passed, runs = [0.0], []

    def whole(plan, batch):
        runs.append(batch)
        passed[0] += 10.0
        return 10.0

    confirm = Confirm(whole, 100.0, now=lambda: passed[0])
    assert confirm.compare(Plan(), Plan("library"), 8) is None
    assert runs == [8, 8]
    assert confirm.compare(Plan(), Plan("library"), 8) is None
    assert runs == [8, 8]
    passed[0] = -100.0
    assert confirm.compare(Plan(), Plan("library"), 8) is not None
