"""``hqtvae bench generate``: models and batches in one run, the plain baselines, roof, overlap, energy."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch

from benchmarks.entrants.baselines import Plain
from benchmarks.entrants.ours import TINY, Ours, open_model, random_condition, same_for_all
from benchmarks.entrants.plain_transformer import NotWrittenDown, PlainTransformer
from benchmarks.measuring import schema
from benchmarks.measuring.timing import Timing
from benchmarks.suites import generate, outcomes, sweep
from benchmarks.suites.outcomes import Entrant, Outcome, Roof, Workload
from hqtvae_fast import checkpoint, cli
from hqtvae_fast.cli.many import spread
from hqtvae_fast.config import PRESETS, BlocksConfig
from hqtvae_fast.engine import SamplingParams, draw_codes
from hqtvae_fast.hardware import Device
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.cost import image_cost
from hqtvae_fast.model.pyramid import to_maps
from hqtvae_fast.seeds import image_seeds

CPU = torch.device("cpu")
PEAKS = Device("abacus", flops=1e12, bandwidth=1e11, memory=10**9, dtype=torch.float32)


# -------------------------------------------------------------------------------------------------- the plain baselines

TEXT = replace(TINY.transformer, condition="text", prefix_vocab_size=50, prefix_length=6)
THREE = replace(TINY.transformer, codebook_sizes=(64, 64, 64), side=2, max_positions=4)


@pytest.mark.parametrize("config", [TINY.transformer, TEXT, THREE], ids=["classes", "text", "three levels"])
@torch.no_grad()
def test_the_likeliest_codes_are_those_of_the_engine(config):
    """With top-k = 1 nothing is left to chance, so the loops must agree code by code."""
    torch.manual_seed(0)
    model = HQTransformer(config).eval()
    levels = config.num_levels
    params = SamplingParams((1.0,) * levels, (1,) * levels, (None,) * levels)
    condition = random_condition(config, 3, torch.Generator().manual_seed(0))
    wanted = draw_codes(model, condition, image_seeds(0, 3), params)
    plain = PlainTransformer(model, 3, params, torch.float32)
    for _ in range(2):  # what the caches hold from the first must not be seen by the second
        got = to_maps(plain.draw(condition), config.side, config.level_widths)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@torch.no_grad()
def test_plain_draws_follow_the_probabilities():
    torch.manual_seed(0)
    plain = PlainTransformer(HQTransformer(TINY.transformer), 1, same_for_all(TINY.vae, 1.0, 2, None), torch.float32)
    logits = torch.full((4000, 64), -1.0)
    logits[:, 3], logits[:, 7] = 1.0, 0.0
    share = (plain._draw(logits, 0) == 3).float().mean()
    assert set(plain._draw(logits, 0).tolist()) == {3, 7}
    assert abs(float(share) - 0.731) < 0.03  # e / (e + 1); four standard deviations


def test_models_that_it_does_not_know_are_refused():
    config = replace(TINY.transformer, iet_layers=1, body=BlocksConfig(num_layers=1, num_heads=4))
    with pytest.raises(NotWrittenDown, match="without attention"):
        PlainTransformer(HQTransformer(config), 1, same_for_all(TINY.vae, 1.0, None, None), torch.float32)


@pytest.mark.parametrize("kind", ["paper", "eager"])
def test_plain_pixels_are_those_of_ours(kind):
    params = same_for_all(TINY.vae, 1.0, None, None)
    plain = Plain(kind, open_model("tiny", None), CPU, torch.float32, params)
    ours = Ours(open_model("tiny", None), CPU, "fp32", params)
    codes = plain.draw(2)
    assert [tuple(level.shape) for level in codes] == [(2, 4, 4), (2, 8, 8)]
    torch.testing.assert_close(plain.decode(codes), ours.decode(codes), atol=1e-4, rtol=0)
    assert plain.parameters == ours.parameters


@pytest.mark.slow
@torch.no_grad()
def test_compiled_steps_are_the_same():
    blocks = BlocksConfig(num_layers=1, num_heads=4)
    model = HQTransformer(replace(TINY.transformer, body=blocks, head=blocks)).eval()
    params = same_for_all(TINY.vae, 1.0, 1, None)
    plain, compiled = (PlainTransformer(model, 2, params, torch.float32) for _ in range(2))
    compiled.compile("default")  # "max-autotune" takes minutes on a CPU
    labels = torch.tensor([1, 2])
    assert torch.equal(compiled.draw(labels), plain.draw(labels))
    assert torch.equal(compiled.draw(labels), plain.draw(labels))


# -------------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_several_batches_in_one_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "peaks_and_load", lambda device: (PEAKS, {}))
    file = tmp_path / "r.json"
    arguments = ("--preset", "tiny", "--batches", "1", "2", "--images", "2", "--baselines", "paper", "eager")
    assert cli.main(["bench", "generate", *arguments, "--repeats", "2", "--json", str(file)]) == 0
    said = capsys.readouterr()
    assert "tiny: best at batch" in said.out
    assert said.out.count("pictures on the host: batch by batch") == 1  # in a single batch nothing can overlap
    results = schema.read(file)
    names = {(row.name, row.entrant) for row in results.rows}
    labels = ("tiny, batch 1, 2 images", "tiny, batch 2")
    entrants = ("hqtvae_fast", "paper's protocol", "plain torch")
    expected = {(f"{label}: {part}", name) for label in labels for part in outcomes.PARTS for name in entrants}
    assert names == expected | {(f"{labels[0]}: {how}", "hqtvae_fast") for how in ("batch by batch", "stream")}
    assert all(len(row.runs) == 2 and row.work["floor_seconds"] > 0 for row in results.rows)
    assert tuple(results.details["roofs"]) == labels
    # Of ours on a CPU it is the process's, which never falls: only the first can be told.
    memory = {row.name: row.work["peak_memory"] for row in results.rows if row.ours}
    assert memory[f"{labels[0]}: total"] > 0
    assert memory[f"{labels[1]}: total"] is None


def test_a_baseline_that_fails_costs_its_own_column_only(monkeypatch, capsys):
    monkeypatch.setattr(generate, "peaks_and_load", lambda device: (PEAKS, {}))

    def fail(*arguments):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(sweep, "Plain", fail)
    assert cli.main(["bench", "generate", "--preset", "tiny", "--batch", "1", "--baselines", "eager"]) == 0
    said = capsys.readouterr()
    assert "left out: batch 1: plain torch: no compiler" in said.err
    assert "images/s" in said.out


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--preset", "tiny", "huge"), "got 'huge'"),
        (("--preset", "tiny", "--baselines", "jax"), "--baselines: expected some of paper, eager, compile, or none"),
        (("--preset", "tiny", "--decode-only", "--batches", "1", "2"), "expected one preset, one batch"),
        (("--preset", "tiny", "--dtype", "tf32"), "expected a CUDA device, got cpu"),
        (("--preset", "tiny", "--released", "/no/such/place"), "expected a checkout of"),
        (("--preset", "tiny", "--json", "/no/such/place/x.json"), "--json: no directory"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(arguments, message, capsys):
    assert cli.main(["bench", "generate", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_are_the_pipelines():
    params = same_for_all(TINY.vae, 1.0, None, None)
    ours = Ours(open_model("tiny", None), CPU, "fp32", params, quantization="int8", engine="tables")
    assert ours.precision == "float32, int8, tables"
    ours.stream([1, 1])


def test_text_and_no_condition_stream_too(monkeypatch):
    for config in (TEXT, replace(TINY.transformer, condition="none")):
        model = checkpoint.build(replace(TINY, transformer=config))
        ours = Ours(model, CPU, "fp32", same_for_all(TINY.vae, 1.0, None, None))
        decoded, decode = [], ours._executor.decode

        def counted(codes, count, decode=decode, decoded=decoded, **how):
            decoded.append(count)
            return decode(codes, count, **how)

        monkeypatch.setattr(ours._executor, "decode", counted)
        ours.one_by_one([2, 1])
        ours.stream([2, 1])
        assert decoded == [2, 1, 2, 1]


def test_values_of_a_list_option():
    assert spread(["--preset", "S", "M", "--json", "f", "--batch", "1", "8"], {"--preset", "--batch"}) == [
        *("--preset", "S", "--preset", "M", "--json", "f", "--batch", "1", "--batch", "8")
    ]


# ---------------------------------------------------------------------------------------------------------- the figures


def test_the_roof_is_the_papers_model_at_the_devices_peak():
    roof = Roof.of(image_cost(PRESETS["S"]), [50] * 20, Device("A100", 312e12, 2.039e12, 80 * 10**9))
    assert roof.images_per_second == pytest.approx(1035, abs=1)
    one = Roof.of(image_cost(PRESETS["S"]), [1], Device("H100", 990e12, 3.35e12, 80 * 10**9))
    assert one.draw == pytest.approx(22.6e-3, rel=0.02)  # 75.7 GB of weights and cache, by bandwidth
    assert one.seconds("total", 1) == 1 / one.images_per_second


def outcome(batch, seconds, whole=None, joules=None):
    timings = [Timing(0.75 * s, 0.25 * s, joules=joules) for s in seconds]
    entrant = Entrant("hqtvae_fast", "float32", 1, None, timings)
    roof = Roof(1e-3, 1e-3, 1000.0, "abacus")
    return Outcome(Workload("S", 100, batch, 64), roof, [entrant], whole or {})


def test_overlap_and_energy_are_told():
    whole = {
        "batch by batch": [Timing(2.0, 0.0, joules=100.0)] * 3,
        "stream": [Timing(s, 0.0, joules=80.0) for s in (1.0, 1.25, 9.0)],
    }
    told = outcomes.tell_whole(outcome(50, [1.9], whole))
    assert told.endswith(
        "batch by batch 50 images/s, stream 80 images/s: 1.60 times as fast; 1.25 images/J as a stream"
    )
    assert outcomes.tell_whole(outcome(50, [1.9])) is None
    facts = ("device", "cpus", "threads", "torch", "load_average", "git_revision", "date")
    table = outcomes.to_table(outcome(50, [2.0], joules=50.0), dict.fromkeys(facts))
    cells = dict(zip(table.columns[0]._cells, table.columns[1]._cells, strict=True))
    assert cells["images/J"] == "2"
    assert cells["of the roof"] == "5.0%"
    assert outcomes.median_joules([Timing(1, 1, joules=3.0), Timing(1, 1)]) is None  # one run was too short to count


def test_the_best_batch_counts_the_stream():
    stream = {"batch by batch": [Timing(1.0, 0.0)], "stream": [Timing(0.5, 0.0)]}
    lines = outcomes.tell_best([outcome(8, [1.0], stream), outcome(50, [0.8])])
    assert lines == ["S: best at batch 8, 200 images/s, 20.0%"]
    assert outcomes.tell_best([outcome(8, [1.0])]) == []


def test_rows_say_what_a_run_did():
    one = outcome(50, [2.0, 4.0], joules=50.0)
    rows = {row.name: row for row in outcomes.to_results([one], {}, {}).rows}
    total = rows["S, batch 50, 100 images: total"]
    assert total.median == median([2.0, 4.0])
    assert total.work["joules"] == 50
    assert rows["S, batch 50, 100 images: draw"].work["joules"] is None
    assert total.work["floor_seconds"] == 0.1
