"""The plan of the persistent kernel's products, walked on a CPU: shares, places in shared memory, sums, barriers."""

from __future__ import annotations

import struct

import pytest
import torch

from hqtvae_fast.ops.prediction_head import cuda, spec, table

from .host_library import pointer


@pytest.mark.parametrize("blocks", [1, 7, 108, 132])
@pytest.mark.parametrize("outs", [1, 64, 1536, 4608, 8192])
def test_slabs_are_even_and_cover_all(host, outs, blocks):
    first, count = (torch.empty(blocks, dtype=torch.int32) for _ in range(2))
    host.slabs(outs, blocks, pointer(first), pointer(count))
    assert first.tolist() == [0, *count.cumsum(0)[:-1].tolist()]
    assert int(count.sum()) == outs
    assert int(count.max() - count.min()) <= 1


def test_no_two_lanes_meet_in_a_bank(host):
    """Eight lanes at a time, 16 bytes each: all 32 banks of 4 bytes, once."""
    offsets = torch.empty(32, dtype=torch.int32)
    for warp in range(8):
        host.slot_offsets(warp, pointer(offsets))
        for lanes in offsets.split(8):
            banks = (lanes[:, None] // 4 + torch.arange(4)) % 32
            assert sorted(banks.flatten().tolist()) == list(range(32))


def product(host, x, weight, mma_rows, blocks, slots=27):
    y = torch.zeros(len(x), len(weight))
    sizes = (len(x), len(weight), x.shape[1])
    host.multiply(pointer(x), pointer(weight), *sizes, mma_rows, slots, blocks, pointer(y))
    return y


def operands(rows, outs, inputs):
    generator = torch.Generator().manual_seed(rows * outs)
    return (torch.randn(n, inputs, generator=generator).bfloat16() for n in (rows, outs))


@pytest.mark.parametrize(
    "rows,outs,inputs,mma_rows,blocks", [(1, 100, 512, 1, 3), (7, 61, 768, 2, 1), (64, 45, 256, 4, 2)]
)
def test_a_product_by_the_plan(host, rows, outs, inputs, mma_rows, blocks):
    x, weight = operands(rows, outs, inputs)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(product(host, x, weight, mma_rows, blocks).double(), exact, rtol=0, atol=1e-3)


def test_the_bits_depend_on_neither_blocks_nor_rows_nor_slots(host):
    x, weight = operands(16, 77, 512)
    bits = product(host, x, weight, 1, 1)
    for mma_rows, blocks, slots in ((1, 9, 8), (2, 2, 42), (4, 5, 27)):
        assert torch.equal(product(host, x, weight, mma_rows, blocks, slots), bits)
    assert torch.equal(product(host, x[3:4].contiguous(), weight, 1, 4), bits[3:4])


def test_a_wrong_place_would_be_seen(host):
    """The gate itself: inputs in another order give another product."""
    x, weight = operands(4, 16, 256)
    order = torch.arange(256).view(-1, 8).flip(1).flatten()
    got, exact = product(host, x, weight[:, order].contiguous(), 1, 1), x.double() @ weight.double().T
    assert float((got - exact).abs().max()) > 1


def test_the_barrier_holds_and_is_left_as_it_was_found(host):
    assert host.barrier_faults(4, 50, 3) == 0


def test_python_and_the_kernel_agree_on_the_layout(host):
    layout = torch.empty(10, dtype=torch.int32)
    host.head_layout(pointer(layout))
    fixed, layer, epsilon, start, stream, barrier, levels, shared, slot, codes = layout.tolist()
    assert (shared, slot, codes) == (cuda.FIXED_BYTES - 127, cuda.SLOT_BYTES, table.MOST_CODES)
    assert (fixed, layer) == (23 * 8, 12 * 8)
    weights = spec.make_weights(spec.SMALL_CASES[1], torch.device("cpu"), 0)
    made = table.HeadTable.of(weights, 4, "sigmoid")
    fields = made.table.tolist()
    assert len(fields) == (fixed + 2 * layer) // 8
    assert fields[:4] == [256, 4, 2, 1]
    assert struct.unpack("<ff", struct.pack("<q", fields[epsilon // 8])) == (pytest.approx(1e-5), 0.0)
    assert fields[start // 8 : start // 8 + 3] == [
        x.data_ptr() for x in (weights.start, weights.positions, weights.codes)
    ]
    assert fields[stream // 8] == made.buffer.data_ptr()
    assert fields[barrier // 8] == made.barrier.data_ptr()
    assert fields[levels // 8 + 7] == len(weights.levels[1].logits) == 90
    assert fields[fixed // 8 + 2] == weights.blocks[0].qkv.data_ptr()
    assert fields[-1] == weights.blocks[1].down_bias.data_ptr()
    assert all(address % 16 == 0 for address in fields[start // 8 : barrier // 8])


def test_shared_memory_fits(host):
    for most, slots in ((163 * 1024, 27), (227 * 1024, 42)):
        assert cuda.ring_slots(most) == slots
        assert cuda.shared_bytes(slots) <= most
