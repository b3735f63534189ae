"""The draw: its noise bit for bit, its distribution, its rules and its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hqtvae_fast.ops import cpu_library, sample_logits
from hqtvae_fast.ops.kernels.sample_logits import cpu, reference
from hqtvae_fast.ops.kernels.sample_logits.noise import _ln, gumbel, philox, random_words
from hqtvae_fast.ops.kernels.sample_logits.reference import filter_logits


def words(*values):
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    "counter,key,expected",
    [  # the known answers published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def test_words_are_keyed_by_seed_step_position_and_index():
    seeds = torch.tensor([5, -5, 2**62])
    whole = random_words(seeds, 3, 2, 100)
    assert whole.shape == (3, 100)
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 2**32
    assert torch.equal(whole[:, :7], random_words(seeds, 3, 2, 7))  # not of how many there are
    assert torch.equal(whole[1:2], random_words(seeds[1:2], torch.tensor([3]), torch.tensor([2]), 100))
    others = [random_words(seeds, 4, 2, 100), random_words(seeds, 3, 1, 100), random_words(seeds + 2**32, 3, 2, 100)]
    for other in others:
        assert not torch.equal(whole, other)


def test_word_layout():
    """Lane index % 4 of the block with counter (index // 4, position, step, 0) and key (low, high)."""
    seed = (0xA4093822) | (0x299F31D0 << 32)
    blocks = philox(words(0x5, 0x2, 0x7, 0), words(0xA4093822, 0x299F31D0))
    drawn = random_words(torch.tensor([seed]), 7, 2, 24)[0, 20:24]
    assert drawn.tolist() == [int(word) for word in blocks]


@pytest.mark.skipif(cpu_library.load()[0] is None, reason=f"compiled kernels for CPUs: {cpu_library.load()[1]}")
@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    step=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**32 - 1),
    count=st.integers(1, 200),
)
def test_compiled_words_are_the_same_words(seeds, step, position, count):
    seeds = torch.tensor(seeds)
    assert torch.equal(cpu.compiled_words(seeds, step, position, count), random_words(seeds, step, position, count))
    steps, positions = step - torch.arange(len(seeds)) % (step + 1), torch.arange(len(seeds)) * 1000
    assert torch.equal(cpu.compiled_words(seeds, steps, positions, count), random_words(seeds, steps, positions, count))


def test_logarithm_against_double_precision():
    x = torch.exp2(torch.linspace(-33, 5, 200_001))
    error = (_ln(x).double() - x.double().log()).abs()
    assert float((error / x.double().log().abs().clamp_min(2**-20)).max()) < 2.0**-22


def test_gumbel_bits_do_not_change():
    """A change of these bits changes every picture that anyone has drawn with a seed."""
    chosen = torch.tensor([0, 1, 2**16, 2**31, 2**32 - 2, 2**32 - 1])
    drawn = gumbel(chosen)
    exact = -torch.log(-torch.log1p(-(chosen.double() + 0.5) / 2**32))
    torch.testing.assert_close(drawn[:4].double(), exact[:4], rtol=1e-6, atol=0)
    expected = [0x41B6FDA9, 0x41AE33B3, 0x41317208, 0x3EBBA795, 0xC033F049, 0xC033F049]
    assert [bits & 0xFFFFFFFF for bits in drawn.view(torch.int32).tolist()] == expected


def test_gumbel_distribution():
    noise = gumbel(random_words(torch.arange(200), 0, 0, 5000)).flatten()
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 0.001


def test_the_rough_variate_stays_far_inside_the_margin():
    chosen = torch.cat([torch.arange(2**19), torch.arange(2**32 - 2**19, 2**32), torch.arange(0, 2**32, 1999)])
    assert float((cpu._rough_gumbel(chosen) - gumbel(chosen)).abs().max()) < cpu.MARGIN / 8


@settings(max_examples=80, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 10.0, 1e4, 1e30]),
    infinite=st.integers(0, 3),
    k=st.one_of(st.none(), st.integers(1, 64)),
    p=st.one_of(st.none(), st.floats(0.01, 1.0)),
    seed=st.integers(0, 2**32),
)
def test_the_fast_draw_is_the_reference_draw(scale, infinite, k, p, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(64, 64, generator=generator) * scale).bfloat16()
    logits[:infinite, 3::7] = float("-inf")
    seeds = torch.randint(-(2**62), 2**62, (64,), generator=generator)
    arguments = (logits, 0.9, k, p, seeds, 5, 2)
    assert torch.equal(cpu.sample_logits(*arguments), reference.sample_logits(*arguments))


def test_a_near_tie_is_settled_by_the_exact_score(monkeypatch):
    """A margin so wide that every code is near: the draw must still be the definition's."""
    monkeypatch.setattr(cpu, "MARGIN", 1e9)
    logits, seeds = torch.randn(50, 30), torch.arange(50)
    arguments = (logits, 1.0, None, None, seeds, 0, 0)
    assert torch.equal(cpu.sample_logits(*arguments), reference.sample_logits(*arguments))


def test_an_infinite_logit_wins():
    logits = torch.zeros(1, 6)
    logits[0, 4] = float("inf")
    assert int(sample_logits(logits, seeds=torch.zeros(1, dtype=torch.int64), step=0, position=0)) == 4


CASES = [(1.0, None, None), (0.7, 8, None), (1.3, None, 0.8), (0.9, 12, 0.9), (1.0, 20, 1.0)]


@pytest.mark.parametrize("temperature,top_k,top_p", CASES)
def test_distribution(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 20, generator=generator) * 1.5
    logits[0, 3] = logits[0, 11]  # a tie
    count = 200_000
    drawn = sample_logits(
        logits.expand(count, -1),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seeds=torch.arange(count),
        step=1,
        position=0,
    )
    probabilities = filter_logits(logits, temperature, top_k, top_p)[0].double().softmax(0).numpy()
    observed = torch.bincount(drawn, minlength=20).numpy()
    allowed = probabilities > 0
    assert observed[~allowed].sum() == 0
    expected = probabilities[allowed] / probabilities[allowed].sum() * count
    assert stats.chisquare(observed[allowed], expected).pvalue > 0.001


def test_rare_entries_are_drawn_at_their_rate():
    logits = torch.tensor([[0.0, math.log(1e-4)]])
    count = 2_000_000
    drawn = sample_logits(logits.expand(count, -1), seeds=torch.arange(count), step=0, position=0)
    rare = int(drawn.sum())
    assert stats.binomtest(rare, count, 1e-4 / (1 + 1e-4)).pvalue > 0.001


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.one_of(st.integers(-3, 3), st.floats(-50, 50, width=32)), min_size=1, max_size=40),
    k=st.integers(1, 40),
    p=st.one_of(st.none(), st.floats(0.01, 1.0)),
    temperature=st.floats(0.1, 5.0),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_draws_stay_inside_the_allowed_set(logits, k, p, temperature, seed):
    row = torch.tensor([logits], dtype=torch.float32)
    k = min(k, row.shape[1])
    drawn = int(
        sample_logits(row, temperature=temperature, top_k=k, top_p=p, seeds=torch.tensor([seed]), step=0, position=0)
    )
    kth = row[0].sort(descending=True).values[k - 1] / temperature
    assert 0 <= drawn < row.shape[1]
    assert float(row[0, drawn] / temperature) >= float(kth)
    if k == 1:
        assert drawn == int(row[0].argmax())


def test_top_p_keeps_at_least_the_first_entry():
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    drawn = sample_logits(logits.expand(500, -1), top_p=1e-6, seeds=torch.arange(500), step=0, position=0)
    assert set(drawn.tolist()) == {1}


def test_minus_infinity_is_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0]])
    drawn = sample_logits(logits.expand(1000, -1), seeds=torch.arange(1000), step=0, position=0)
    assert set(drawn.tolist()) == {1, 3}


def test_greedy_takes_the_lowest_of_equal_logits():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert int(sample_logits(logits, top_k=1, seeds=torch.tensor([0]), step=0, position=0)) == 1


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"temperature": 0.0}, "temperature: expected a number from 1e-30 to 1e[+]30 .*; got 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k: expected an integer from 1 to 4"),
        ({"top_k": 5}, "top_k: expected an integer from 1 to 4, or None; got 5"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds: expected \[2\]; got \[3\]"),
    ],
)
def test_refusals(arguments, message):
    values = {"seeds": torch.zeros(2, dtype=torch.int64), **arguments}
    with pytest.raises(ValueError, match=message):
        sample_logits(torch.zeros(2, 4), step=0, position=0, **values)


def test_nan_row_is_named():
    logits = torch.zeros(3, 4)
    logits[2, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN in row 2"):
        sample_logits(logits, seeds=torch.zeros(3, dtype=torch.int64), step=0, position=0)
