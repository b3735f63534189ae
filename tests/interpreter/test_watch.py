"""The watch over interpreted kernels catches what it is there to catch: each fault is planted once."""

from __future__ import annotations

import pytest
import torch
from interpreted import file_outcomes, main, needs_triton, outcomes

EXPECTED = {
    "beyond_a_view": "store: 1 of 5 places are in none of the tensors",
    "an_offset_in_32_bits": "int32 overflow detected for operation mul",
    "two_stores": "store: stored or loaded by another program",
    "a_load_of_another_programs_store": "load: stored by another program",
    "an_addition_to_a_stored_place": "add: stored or added to by another program",
    "a_load_without_a_barrier": "load: stored by the same program since its last barrier",
    "a_grid_whose_size_is_no_int": "grid: (65536, 32768, 1)",
}
PASS = ("a_load_after_a_barrier", "two_stores_of_one_value", "after_an_acquire", "hashes_wrap")


def kernels():
    import triton
    import triton.language as tl

    @triton.jit
    def fill(x, count, value):
        o = tl.arange(0, 8)
        tl.store(x + o, value + 0 * o, mask=o < count)

    @triton.jit
    def far(x, step):
        o = tl.program_id(0) * step + tl.arange(0, 4)
        tl.store(x + o, 1, mask=o < 0)

    @triton.jit
    def own_number(x):
        tl.store(x + tl.arange(0, 8), tl.program_id(0) + tl.zeros((8,), tl.int32))

    @triton.jit
    def pass_on(x):
        tl.store(x + tl.program_id(0), 1)
        tl.load(x + tl.program_id(0) - 1, mask=tl.program_id(0) > 0)

    @triton.jit
    def store_and_add(x):
        if tl.program_id(0) == 0:
            tl.store(x, 1)
        else:
            tl.atomic_add(x, 1, sem="relaxed")

    @triton.jit
    def turn_round(x, BARRIER: tl.constexpr):
        o = tl.arange(0, 8)
        tl.store(x + o, o)
        if BARRIER:
            tl.debug_barrier()
        b = tl.load(x + 7 - o)
        tl.debug_barrier()
        tl.store(x + o, b)

    @triton.jit
    def last_one_sums(x, counter):
        tl.store(x + tl.program_id(0), 1)
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            tl.store(x, tl.sum(tl.load(x + tl.arange(0, 4)), axis=0))

    @triton.jit
    def multiply(x):
        tl.store(
            x, (tl.full((), 0xD2511F53, tl.uint32) * tl.full((), 0xCD9E8D57, tl.uint32)).to(tl.int32, bitcast=True)
        )

    return locals()


def checks():
    found, x = kernels(), torch.zeros(8, dtype=torch.int32)
    y = x.clone()

    def a_grid_whose_size_is_no_int():
        import watch

        watch.last_programs()
        found["own_number"][(65536, 32768)](x)

    return {
        "beyond_a_view": lambda: found["fill"][(1,)](x[:4], 5, 1),
        "an_offset_in_32_bits": lambda: found["far"][(3,)](x, 2**30),
        "two_stores": lambda: found["own_number"][(2,)](x),
        "a_load_of_another_programs_store": lambda: found["pass_on"][(2,)](x),
        "an_addition_to_a_stored_place": lambda: found["store_and_add"][(2,)](x),
        "a_load_without_a_barrier": lambda: found["turn_round"][(1,)](x, BARRIER=False),
        "a_load_after_a_barrier": lambda: found["turn_round"][(1,)](x, BARRIER=True),
        "two_stores_of_one_value": lambda: found["fill"][(2,)](x, 8, 1),
        "after_an_acquire": lambda: found["last_one_sums"][(4,)](x, y),
        "hashes_wrap": lambda: found["multiply"][(1,)](x),
        "a_grid_whose_size_is_no_int": a_grid_whose_size_is_no_int,  # the last one: it changes how kernels are run
    }


NAMES = (*PASS, *EXPECTED)


@needs_triton
@pytest.mark.parametrize("fault", EXPECTED)
def test_a_planted_fault_is_caught(fault):
    outcome = file_outcomes(__file__, NAMES)[fault]
    assert EXPECTED[fault] in outcome, outcome or "nothing was found"


@needs_triton
@pytest.mark.parametrize("name", PASS)
def test_what_is_no_fault_passes(name):
    assert file_outcomes(__file__, NAMES)[name] == ""


@needs_triton
def test_a_program_that_dies_does_not_pass():
    with pytest.raises(AssertionError, match=r"exit status 6\n"):
        outcomes("import os\nos.abort()\n", ("nothing",))
    with pytest.raises(AssertionError, match=r"(?s)exit status 256\n.*ZeroDivisionError"):
        outcomes("1 / 0\n", ("nothing",))


if __name__ == "__main__":
    main(checks())
