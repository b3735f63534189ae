"""All stages on a GPU that is pretended: its facts are published, its worker and its clock answer from a table."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from pretended import CUDA, SPECS, Pretended

from hqtvae_fast.hardware import DEVICES
from hqtvae_fast.plan import Plan
from hqtvae_fast.tune.cases import packed, unpacked
from hqtvae_fast.tune.confirm import EIGHT_BITS, ENGINE, KEEP_BITS, NoRunError, engine_words
from hqtvae_fast.tune.jobs import prove_job
from hqtvae_fast.tune.report import candidate_rows, predicted_seconds, result_rows
from hqtvae_fast.tune.shortlist import predicted, shortlist
from hqtvae_fast.tune.sites import brought_sites, find_sites
from hqtvae_fast.tune.verify import verify_sites
from hqtvae_fast.tune.whole import ModelName, models_of
from hqtvae_fast.tune.worker import Desk


@pytest.fixture(scope="module")
def sites():
    model = ModelName(None, "S", "bf16").shapes()
    return find_sites(models_of(model), model.vae, CUDA, [1, 50])


@pytest.fixture(scope="module")
def rounded():
    """The same of S in int8."""
    model = ModelName(None, "S", "bf16", "int8").shapes()
    return partial(find_sites, models_of(model), model.vae, CUDA, [1, 50])


@pytest.fixture(scope="module")
def eight(rounded):
    """Those of keys and values in 8 bits too."""
    return rounded(("", "kv=int8"))


def test_the_choices_of_s_on_a_gpu_are_found_without_one(sites):
    ops = {site.op for site in sites if site.is_choice}
    assert ops >= {"skinny_linear", "add_layer_norm", "decode_attention", "local_attention", "sample_logits"}
    assert ops >= {"upsample_conv", "conv_bytes", "group_norm_silu", "embed_codes", "code_features"}
    assert all("nhwc" in site.key for site in sites if site.op == "upsample_conv")
    first = next(site for site in sites if site.op == "skinny_linear")
    assert first.key == "skinny_linear | bf16[1,1,1536] bf16[4608,1536] - - - none False"
    assert first.default == "triton"
    assert "torch" in first.names
    assert packed(unpacked(first.inputs)) == first.inputs


def test_each_choice_can_be_made_again_from_its_spec(sites):
    """The sizes that a spec is given are those of the choice: nothing of ours is left unproven."""
    assert [site.key for site in sites if site.cost is None] == []
    upsampled = next(site for site in sites if site.op == "upsample_conv" and "[50,128,128,128]" in site.key)
    assert upsampled.cost.flops == pytest.approx(2 * 50 * 4 * 128**3 * 4 * 128)


def test_a_shortlist_begins_with_what_the_model_of_costs_likes(sites):
    site = next(site for site in sites if site.op == "upsample_conv" and "[1,512,16,16]" in site.key)
    names = shortlist(site, SPECS[site.op], DEVICES["H100"])
    assert names.index("torch/folded") < names.index("reference")
    assert site.default not in names
    assert len(shortlist(site, SPECS[site.op], DEVICES["H100"], 3)) == 3
    backends = {each.name: each for each in SPECS[site.op].backends}
    costs = [predicted(site, backends[name], DEVICES["H100"]) for name in names]
    assert costs == sorted(costs)


def test_a_plan_is_proven_timed_and_confirmed(sites):
    gpu = Pretended({"conv_bytes triton/64x16x32": 0.5e-3}, {"add_layer_norm triton/2-warps": ("wrong", "off by 1")})
    quick = next(name for name in next(s for s in sites if s.op == "conv_bytes").names if name.startswith("triton/"))
    gpu.fast = {f"conv_bytes {quick}": 0.5e-3, "bias_gelu torch": 0.99e-3}
    result = gpu.tuner(sites).run()
    assert {(where.partition(" ")[0], own.variant) for where, own in result.choices.items()} == {("conv_bytes", quick)}
    assert all(own.median == pytest.approx(500) for own in result.choices.values())
    assert set(result.refused) == {"add_layer_norm triton/2-warps"}
    assert "off by 1 at add_layer_norm | " in result.refused["add_layer_norm triton/2-warps"]
    assert {own.variant for own in result.engine.values()} == {"skip_query"}
    assert "skinny_linear triton" in result.verified
    assert result.stopped is None
    assert gpu.fresh_workers == 2  # before the timing and before whole runs
    timed = [job for job in gpu.jobs if job["do"] == "time"]
    assert all(job["challenger"] != "triton/2-warps" or job["op"] != "add_layer_norm" for job in timed)
    rows = result_rows(result, DEVICES["H100"])
    assert {row["chosen"] for row in rows if row["choice"].startswith("conv_bytes")} == {quick}


@pytest.fixture(scope="module")
def brought(sites):
    model = ModelName(None, "S", "bf16").shapes()
    return brought_sites(models_of(model), CUDA, [1, 50], sites)


def test_a_word_of_the_engine_is_tried_once_what_it_brings_is_proven(sites, brought):
    """At each bucket: of up to 16 rows norms in the products, of 50 rows the products themselves."""
    assert {site.batch for site in brought["streamed_rows"]} == {50}
    assert {site.batch for site in brought["fused_norm"]} == {1, 50}
    assert all(site.op == "skinny_linear" and site.cost is not None for own in brought.values() for site in own)
    assert {site.key for site in sites}.isdisjoint(site.key for own in brought.values() for site in own)
    gpu = Pretended(words=("streamed_rows", "fused_norm"))
    result = gpu.tuner(sites, brought=brought).run()
    assert result.engine[50].variant == "streamed_rows, fused_norm"
    own = [site.key for words in brought.values() for site in words]
    assert [job["site"] for job in gpu.jobs if job["do"] == "prove" and job["site"] in own].count(own[0]) == 1
    assert set(own) <= {job.get("site") for job in gpu.jobs}


def test_what_a_word_brings_can_be_proven(brought):
    """Here of the library's product: moments that are written, and moments that are read."""
    told = [site for site in brought["fused_norm"] if site.key.endswith("f32[2,24,50]") and "6144" not in site.key]
    assert len(told) == 3
    for site in (told[0], told[1]):
        job = prove_job(site, "torch", None, torch.device("cpu"))
        assert Desk(SPECS).answer({**job, "seeds": [0]})["status"] == "right"


def test_a_word_that_brings_what_is_wrong_is_not_tried(sites, brought):
    class Wrong(Pretended):
        def ask(self, job, seconds):
            streamed = {site.key for site in brought["streamed_rows"]}
            answer = super().ask(job, seconds)
            return answer if job.get("site") not in streamed else {"status": "wrong", "reason": "row 3"}

    gpu = Wrong(words=("streamed_rows", "fused_norm"))
    result = gpu.tuner(sites, brought=brought).run()
    assert result.engine[50].variant == "fused_norm"
    assert result.refused["engine streamed_rows"].startswith("row 3 at skinny_linear | bf16[50,")
    assert "skinny_linear triton" in result.verified  # of what runs without the word
    kept = Pretended(words=("streamed_rows",))
    assert "streamed_rows" not in str(kept.tuner(sites, brought=brought, keep_bits=True).run().engine)
    asked = {job.get("site") for job in kept.jobs}
    assert asked.isdisjoint(site.key for own in brought.values() for site in own)


def test_a_refused_variant_is_tried_no_more(sites):
    gpu = Pretended(wrong={"skinny_linear torch": ("crashed", "killed by SIGSEGV")})
    gpu.tuner(sites).run()
    assert sum(job["op"] == "skinny_linear" and job.get("variant") == "torch" for job in gpu.jobs) == 1


def test_what_was_refused_beforehand_is_in_the_plan(sites):
    gpu = Pretended({"conv_bytes torch": 1e-5})
    result = gpu.tuner(sites, refused={"conv_bytes torch": "far off"}).run()
    assert result.plan.refused == {"conv_bytes torch": "far off"}
    assert all(job.get("variant") != "torch" or job["op"] != "conv_bytes" for job in gpu.jobs)
    assert all(own.variant != "torch" for own in result.choices.values())


def test_what_is_out_of_memory_is_not_refused(sites):
    result = Pretended(wrong={"conv_bytes torch": ("memory", "out of memory")}).tuner(sites).run()
    assert result.refused == {}
    assert "conv_bytes torch" not in result.verified


def test_a_default_that_is_wrong_is_refused_and_nothing_is_timed_beside_it(sites):
    gpu = Pretended(wrong={"conv_bytes triton": ("hung", "did not finish within 120 s")})
    result = gpu.tuner(sites).run()
    assert "conv_bytes triton" in result.refused
    assert not [job for job in gpu.jobs if job["do"] == "time" and job["op"] == "conv_bytes"]


def test_a_budget_ends_each_stage(sites):
    known = Plan("default", verified=frozenset(site.label for site in sites if site.is_ours))
    result = (gpu := Pretended()).tuner(sites, budget=10.0, known=known).run()
    assert result.stopped == "the budget is spent"
    assert 10 <= gpu.passed < 15
    assert {job["do"] for job in gpu.jobs} == {"prove", "time"}


def test_the_best_so_far_is_kept_at_ctrl_c(sites):
    gpu = Pretended(takes=1.0)
    count = sum(1 + len(shortlist(s, SPECS[s.op], DEVICES["H100"])) for s in sites if s.cost is not None)
    site = max((s for s in sites if s.is_choice), key=lambda s: s.cost.flops)
    gpu.stops, gpu.fast = count + 30, {f"{site.op} {name}": 0.5e-3 for name in site.names if name != site.default}
    result = gpu.tuner(sites).run()
    assert result.stopped == "interrupted"
    assert site.key in result.choices


def test_batch_sizes_are_timed_under_the_plan_that_was_found(sites):
    gpu, ran = Pretended(), []
    own = gpu.whole

    def whole(plan, batch):
        ran.append((plan, batch))
        return own(plan, batch) * (1 if batch == 1 else 4)

    gpu.whole = whole
    result = gpu.tuner(sites).run()
    assert dict(result.seconds) == {1: pytest.approx(0.9), 50: pytest.approx(3.6)}
    assert (result.batches, result.best) == ((1, 2, 4, 8, 16, 32, 50), 50)
    assert (result.plan.batches, result.plan.best) == (result.batches, 50)
    assert [batch for _, batch in ran[-5:]] == [1, 1, 1, 50, 50]  # one to warm up, then for a second
    assert {plan.id for plan, _ in ran[-5:]} == {replace(result.plan, batches=(), best=None).id}


@pytest.mark.parametrize(
    "error, seconds, said",
    [
        (MemoryError("50"), {1: 1.0}, None),
        (NoRunError("killed by SIGSEGV"), {}, "batch sizes are not timed: killed by SIGSEGV"),
    ],
)
def test_a_size_that_does_not_run(sites, error, seconds, said):
    """For lack of memory it ends the search; whatever else it is, what was found before is kept, and it is said."""
    gpu = Pretended({"bias_gelu torch": 0.5e-3})

    def whole(plan, batch):
        if batch == 50 and not confirming[0]:
            raise error
        return 1.0 - 0.2 * ("torch" in plan.choices.values())

    confirming = [True]
    gpu.whole = whole
    tuner = gpu.tuner(sites)
    tuner.on_stage = lambda stage, done, total: confirming.__setitem__(0, stage != "batches")
    result = tuner.run()
    assert {own.variant for own in result.choices.values()} == {"torch"}
    assert dict(result.seconds) == {size: pytest.approx(0.8) for size in seconds}
    assert result.best == (1 if seconds else None)
    assert result.stopped == said


def test_what_whole_runs_have_dropped_does_not_come_back_at_ctrl_c(sites):
    gpu = Pretended({"bias_gelu torch": 0.5e-3})

    def whole(plan, batch):
        if timing[0]:
            raise KeyboardInterrupt
        return 1.0 + 0.2 * ("torch" in plan.choices.values()) - 0.1 * (plan.engine_for(batch) == "skip_query")

    timing = [False]
    gpu.whole = whole
    tuner = gpu.tuner(sites)
    tuner.on_stage = lambda stage, done, total: timing.__setitem__(0, stage == "batches")
    result = tuner.run()
    assert result.stopped == "interrupted"
    assert result.choices == {}
    assert {own.variant for own in result.engine.values()} == {"skip_query"}
    assert (result.batches, result.best) == ((), None)


def test_the_engine_of_a_bucket_that_ctrl_c_left_out_stays_as_it_is(sites):
    gpu = Pretended()

    def whole(plan, batch):
        if batch == 50:
            raise KeyboardInterrupt
        return 1.0 - 0.1 * (plan.engine_for(batch) == "skip_query")

    gpu.whole = whole
    result = gpu.tuner(sites).run()
    assert {batch: own.variant for batch, own in result.engine.items()} == {1: "skip_query", 50: ""}


def test_bits_may_be_kept(sites):
    gpu = Pretended({"skinny_linear torch": 0.5e-3})
    assert gpu.tuner(sites).run().choices
    assert not gpu.tuner(sites, keep_bits=True).run().choices


def test_the_default_variants_are_verified_alone(sites):
    gpu, told = Pretended(wrong={"group_norm_silu triton": ("wrong", "not finite")}), []
    plan = verify_sites(sites, CUDA, lambda done, total: told.append((done, total)), [gpu])
    assert {job["variant"] for job in gpu.jobs} == {"triton"}
    assert "skinny_linear triton" in plan.verified
    assert "group_norm_silu triton" not in plan.verified
    assert list(plan.refused) == ["group_norm_silu triton"]
    assert told[-1][0] == told[-1][1] > 0


def test_kernels_are_compiled_and_verified_side_by_side(sites):
    """The first jobs of three workers wait for each other; what memory does not suffice for is done again alone."""
    together, short = threading.Barrier(3), []

    class Worker(Pretended):
        def ask(self, job, seconds):
            if not self.jobs:
                together.wait(20)
            answer = super().ask(job, seconds)
            if job["op"] == "upsample_conv" and not self.fresh_workers:
                short.append(job)
                return {"status": "memory", "reason": "CUDA out of memory"}
            return answer

    workers = [Worker(wrong={"group_norm_silu triton": ("wrong", "not finite")}) for _ in range(3)]
    plan = verify_sites(sites, CUDA, lambda done, total: None, workers)
    alone = verify_sites(sites, CUDA, lambda done, total: None, [Pretended(wrong=workers[0].wrong)])
    assert plan == alone
    assert short
    assert "upsample_conv triton" in plan.verified
    assert [worker.fresh_workers for worker in workers] == [1, 1, 1]


def test_whatever_ends_one_verification_ends_all(sites):
    workers = [Pretended(), Pretended(stops=0.2)]
    with pytest.raises(KeyboardInterrupt):
        verify_sites(sites, CUDA, lambda done, total: None, workers)


def test_a_dry_run_lists_candidates_and_predicts(sites):
    rows = candidate_rows(sites, SPECS, DEVICES["H100"])
    assert len(rows) == len(sites)
    assert [row["floor_ms"] for row in rows] == sorted((row["floor_ms"] for row in rows), reverse=True)
    assert set(predicted_seconds(sites, SPECS, DEVICES["H100"], True)) == {"prove", "time", "confirm"}


@pytest.fixture(scope="module")
def in_rows(rounded):
    """Those of products of 8-bit rows too."""
    return rounded(("", "quantized_products=all"))


class Eight(Pretended):
    """Rounding rows saves 5 % and, but for a block's last product, 3 %; another variant of those products as much."""

    def whole(self, plan, batch):
        words = plan.engine_for(batch)
        saved = 0.05 * ("quantized_products=all" in words) + 0.03 * ("quantized_products=but_down" in words)
        self.tiles.update(plan.choices.values())
        return super().whole(replace(plan, choices={}), batch) - saved

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.tiles = set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "refused, won",
    [
        ({}, "quantized_products=all"),
        ({"engine quantized_products=all": "far off"}, "quantized_products=but_down"),
        (dict.fromkeys(("engine quantized_products=all", "engine quantized_products=but_down"), "far off"), ""),
    ],
)
def test_products_in_8_bits_are_tried_unless_they_were_refused(in_rows, refused, won):
    """Each variant of them is proven before, and what is faster alone is kept for the runs that meet it."""
    quick = "triton/128x128x128x2"
    gpu = Eight({f"quantized_linear {quick}": 0.5e-3})
    result = gpu.tuner(in_rows, refused=refused, eight_bits=True).run()
    assert {own.variant for own in result.engine.values()} == {", ".join(filter(None, ("skip_query", won)))}
    assert "quantized_linear triton" in result.verified
    proven = {job["variant"] for job in gpu.jobs if job["do"] == "prove" and job["op"] == "quantized_linear"}
    assert {"triton", quick, "torch/int_mm"} <= proven
    assert gpu.tiles == {quick}
    assert {where.partition(" ")[0] for where in result.choices} == {"quantized_linear"}
    assert {label: why for label, why in result.plan.refused.items() if label in refused} == refused


def test_what_is_not_quantized_is_not_tried_in_8_bits(sites):
    class Watched(Eight):
        def whole(self, plan, batch):
            assert "quantized_products" not in plan.engine_for(batch)
            return super().whole(plan, batch)

    assert Watched().tuner(sites).run().engine


@pytest.mark.slow
def test_a_word_that_was_refused_for_another_model_is_judged_anew(in_rows):
    """What was verified on a GPU counts for all models so shaped; what a word did to one's predictions does not."""
    refused = {"engine quantized_products=all": "far off", "conv_bytes torch": "wrong"}
    result = (
        Eight(wrong={"conv_bytes torch": ("memory", "")})
        .tuner(in_rows, known=Plan(refused=refused), eight_bits=True)
        .run()
    )
    assert set(result.refused) == {"conv_bytes torch"}


# ------------------------------------------------------------------------------------------------ 8 bits, where allowed


def kv_wins(gpu):
    """Whole runs in which keys and values in 8 bits save a fifth."""
    gpu.whole = lambda plan, batch: 1.0 - 0.2 * ("kv=int8" in plan.engine_for(batch))
    return gpu


def test_keys_and_values_in_8_bits_have_choices_of_their_own(rounded, eight):
    """At each bucket one, which is proven and timed like any other; all else is as without them."""
    sites = rounded()
    own = [site for site in eight if site.key not in {other.key for other in sites}]
    assert {site.op for site in own} == {"decode_attention"}
    assert sorted(site.batch for site in own) == [1, 50]
    assert {site.default for site in own} == {"triton/int8"}
    assert all({"triton/int8/32x1", "sdpa", "reference"} < set(site.names) for site in own)
    assert all(not {"triton", "triton/32x1"} & set(site.names) for site in own)
    assert all(site.cost is not None for site in own)
    assert {site.key for site in sites} < {site.key for site in eight}


def test_they_are_tried_where_the_user_allows_8_bits(eight):
    result = kv_wins(Pretended()).tuner(eight, eight_bits=True).run()
    assert {own.variant for own in result.engine.values()} == {"kv=int8"}
    assert {"decode_attention triton", "decode_attention triton/int8"} <= result.verified
    assert result.refused == {}
    assert kv_wins(Pretended()).tuner(eight).run().engine == {}
    assert kv_wins(Pretended()).tuner(eight, eight_bits=True, keep_bits=True).run().engine == {}


def test_they_are_not_tried_where_they_cost_the_model_too_much(eight):
    refused = {"engine kv=int8": "moves predictions by a KL of 1.0e-02 nats"}
    result = kv_wins(Pretended()).tuner(eight, eight_bits=True, refused=refused).run()
    assert result.engine == {}
    assert result.plan.refused == refused


def test_a_kernel_for_8_bits_that_fails_costs_the_other_one_nothing(eight):
    gpu = Pretended(wrong={"decode_attention triton/int8": ("wrong", "keys: other numbers")})
    result = gpu.tuner(eight, eight_bits=True).run()
    assert set(result.refused) == {"decode_attention triton/int8"}
    assert "decode_attention triton" in result.verified


def test_words_of_the_engine_by_what_is_allowed():
    every = {word for kind in ENGINE["cuda"] for word in kind}
    assert set(EIGHT_BITS) < every
    assert not {word.partition("=")[0] for word in EIGHT_BITS} & set(KEEP_BITS)
    for allowed, refused, left in (
        (True, (), every),
        (False, (), every - set(EIGHT_BITS)),
        (True, ("engine kv=int8", "decode_attention triton"), every - {"kv=int8"}),
        (True, ("engine tables",), every - {"tables"}),
    ):
        kinds = engine_words("cuda", refused, eight_bits=allowed)
        assert {word for kind in kinds for word in kind} == left
    assert not set(EIGHT_BITS) & {word for kind in engine_words("cpu", (), eight_bits=True) for word in kind}


def test_what_no_choice_would_prove_is_not_tried():
    assert "whole_head" not in {word for kinds in ENGINE.values() for kind in kinds for word in kind}
