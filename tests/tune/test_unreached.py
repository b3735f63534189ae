"""A budget that ends while variants are proven: what this machine knew before still counts, and the rest is said."""

from __future__ import annotations

import pytest
from pretended import CUDA, Pretended

from hqtvae_fast.plan import NOT_VERIFIED, Plan
from hqtvae_fast.tune.result import Result
from hqtvae_fast.tune.sites import Site, find_sites
from hqtvae_fast.tune.tuner import PROVING
from hqtvae_fast.tune.whole import ModelName, models_of


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    model = ModelName(None, "S", "bf16").shapes()
    return find_sites(models_of(model), model.vae, CUDA, [1])


def ours(sites: list[Site]) -> set[str]:
    return {site.label for site in sites if site.is_ours}


def ended_after(jobs: int, sites: list[Site], gpu: Pretended | None = None, **options: object) -> Result:
    return (gpu or Pretended()).tuner(sites, budget=0.1 * (jobs - 0.5) / PROVING, **options).run()


def test_what_the_default_plan_needs_is_proven_first(sites):
    gpu, first = Pretended(), sum(site.is_ours for site in sites)
    result = ended_after(first, sites, gpu)
    assert [job["variant"] for job in gpu.jobs if job["do"] == "prove"] == [
        found.site.default for found in result.found if found.site.is_ours
    ]
    assert result.verified == ours(sites)
    assert result.unreached == frozenset()
    assert result.untried.total() > 100


def test_what_was_verified_before_is_trusted_though_it_was_not_reached(sites):
    known = Plan("default", verified=frozenset(ours(sites)))
    alone, merged = ended_after(2, sites), ended_after(2, sites, known=known)
    assert len(alone.unreached) > 5
    assert alone.verified.isdisjoint(alone.unreached)
    assert alone.verified | alone.unreached == ours(sites)
    assert merged.unreached == frozenset()
    assert merged.verified >= known.verified
    assert merged.plan.verified == merged.verified
    for label in ours(sites):
        op, name = label.split(" ")
        assert merged.plan.why_not(op, name, "ours") is None
        assert alone.plan.why_not(op, name, "ours") == (NOT_VERIFIED if label in alone.unreached else None)


def test_right_at_some_of_its_choices_alone_is_not_verified(sites):
    one = next(site for site in sites if site.op == "skinny_linear")
    assert sum(site.op == one.op for site in sites) > 1
    alike = [site for site in sites if site.op == one.op]
    result = Pretended(stops=0.15).tuner(alike).run()  # after one answer
    proven = next(found for found in result.found if found.right)
    assert proven.site.label in result.unreached
    assert proven.site.label not in result.verified


def test_what_was_refused_before_stays_so_until_it_is_right_everywhere(sites):
    known = Plan("default", refused={"skinny_linear triton": "killed by SIGSEGV", "sample_logits cuda": "hangs"})
    assert ended_after(2, sites, known=known).refused == known.refused
    assert ended_after(2, sites, known=known).verified.isdisjoint(known.refused)
    assert "skinny_linear triton" not in Pretended().tuner(sites, known=known).run().refused


def test_what_is_wrong_now_is_refused_though_it_was_right_before(sites):
    known = Plan("default", verified=frozenset(ours(sites)))
    gpu = Pretended(wrong={"upsample_conv triton": ("wrong", "row 3")})
    result = gpu.tuner(sites, known=known).run()
    assert "upsample_conv triton" in result.refused
    assert "upsample_conv triton" not in result.plan.verified


def test_whole_runs_are_of_the_plan_that_is_written(sites):
    gpu, plans = Pretended({"bias_gelu torch": 0.5e-3}), []
    own = gpu.whole

    def whole(plan: Plan, batch: int) -> float:
        plans.append(plan)
        return own(plan, batch)

    gpu.whole = whole
    result = gpu.tuner(sites).run()
    assert {plan.verified for plan in plans} == {result.verified}
    assert all(dict(plan.refused) == result.refused for plan in plans)


def test_on_a_cpu_all_of_ours_is_trusted():
    result = Result([], known=Plan("default", verified=frozenset()))
    assert result.plan.verified is None
    assert result.unreached == frozenset()
