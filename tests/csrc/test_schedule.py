"""The plan of the persistent kernel's products, walked on a CPU: shares, places in shared memory, sums, barriers."""

from __future__ import annotations

import struct

import pytest
import torch

from hqtvae_fast.ops.kernels.prediction_head import cuda, spec, table

from .host_library import pointer


@pytest.mark.parametrize("blocks", [1, 7, 108, 132])
@pytest.mark.parametrize("outs", [1, 64, 1536, 4608, 8192])
def test_slabs_are_even_and_cover_all(host, outs, blocks):
    first, count = (torch.empty(blocks, dtype=torch.int32) for _ in range(2))
    host.slabs(outs, blocks, pointer(first), pointer(count))
    assert first.tolist() == [0, *count.cumsum(0)[:-1].tolist()]
    assert int(count.sum()) == outs
    assert int(count.max() - count.min()) <= 1


@pytest.mark.parametrize("weight_bytes", [2, 1])
def test_no_two_lanes_meet_in_a_bank(host, weight_bytes):
    """Eight lanes at a time with 16 bytes each, 16 with 8: all 32 banks of 4 bytes, once. All runs together: each byte
    of each row of the slot, once."""
    offsets, width = torch.empty(32, dtype=torch.int32), 8 * weight_bytes
    seen = []
    for warp in range(8):
        for run in range(2 // weight_bytes):
            host.slot_offsets(weight_bytes, warp, run, pointer(offsets))
            for lanes in offsets.split(128 // width):
                banks = (lanes[:, None] // 4 + torch.arange(width // 4)) % 32
                assert sorted(banks.flatten().tolist()) == list(range(32))
            seen += (offsets[:, None] + torch.arange(width)).flatten().tolist()
    row = 512 + 32 * weight_bytes
    assert sorted(seen) == [r * row + byte for r in range(8) for byte in range(512)]


STORED = {torch.bfloat16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}
dtypes = pytest.mark.parametrize("dtype", STORED)


def product(host, x, weight, mma_rows, blocks, slots=27):
    y = torch.zeros(len(x), len(weight))
    sizes = (len(x), len(weight), x.shape[1])
    host.multiply(STORED[weight.dtype], pointer(x), pointer(weight), *sizes, mma_rows, slots, blocks, pointer(y))
    return y


def operands(rows, outs, inputs, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(rows * outs)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outs))
    return x.bfloat16(), (30 * weight).round().to(dtype) if dtype is torch.int8 else weight.to(dtype)


@dtypes
@pytest.mark.parametrize(
    "rows,outs,inputs,mma_rows,blocks", [(1, 100, 512, 1, 3), (7, 61, 1024, 2, 1), (64, 45, 512, 4, 2)]
)
def test_a_product_by_the_plan(host, rows, outs, inputs, mma_rows, blocks, dtype):
    x, weight = operands(rows, outs, inputs, dtype)
    exact = x.double() @ weight.double().T
    atol = 1e-3 * (30 if dtype is torch.int8 else 1)
    torch.testing.assert_close(product(host, x, weight, mma_rows, blocks).double(), exact, rtol=0, atol=atol)


def test_bytes_become_bf16_exactly(host):
    """All 256 of each kind, but for fp8's two NaN, which no weight is rounded to."""
    stored = torch.arange(256).to(torch.uint8)
    int8, fp8 = torch.empty(256, dtype=torch.bfloat16), torch.empty(256, dtype=torch.bfloat16)
    host.widen_bytes(pointer(stored), pointer(int8), pointer(fp8))
    assert torch.equal(int8.float(), stored.view(torch.int8).float())
    wanted = stored.view(torch.float8_e4m3fn).float()
    assert torch.equal(fp8.float()[~wanted.isnan()].view(torch.int32), wanted[~wanted.isnan()].view(torch.int32))
    assert int(wanted.isnan().sum()) == 2


@dtypes
def test_the_bits_depend_on_neither_blocks_nor_rows_nor_slots(host, dtype):
    x, weight = operands(16, 77, 512, dtype)
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
    layout = torch.empty(11, dtype=torch.int32)
    host.head_layout(pointer(layout))
    fixed, layer, epsilon, start, stream, barrier, levels, shared, slot, byte_slot, codes = layout.tolist()
    assert (shared, codes) == (cuda.FIXED_BYTES - 127, table.MOST_CODES)
    assert {"bf16": slot, "int8": byte_slot, "fp8": byte_slot} == cuda.SLOT_BYTES
    assert (fixed, layer) == (25 * 8, 16 * 8)
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
    assert fields[levels // 8 + 9] == len(weights.levels[1].logits) == 90
    assert fields[fixed // 8 + 2 : fixed // 8 + 4] == [weights.blocks[0].qkv.data_ptr(), 0]
    assert fields[-1] == weights.blocks[1].down_bias.data_ptr()
    assert all(address % 16 == 0 for address in fields[start // 8 : barrier // 8])


def test_scales_are_in_the_table(host):
    weights = spec.make_weights(spec.SMALL_CASES[4], torch.device("cpu"), 0)
    made = table.HeadTable.of(weights, 8, "exact")
    fields, block, level = made.table.tolist()[-16:], weights.blocks[0], weights.levels[1]
    assert made.stored == "int8"
    wanted = (block.qkv, block.qkv_scale, block.qkv_bias, block.out, block.out_scale, block.out_bias)
    assert fields[2:8] == [x.data_ptr() for x in wanted]
    assert fields[10:13] == [x.data_ptr() for x in (block.up, block.up_scale, block.up_bias)]
    assert fields[13:16] == [x.data_ptr() for x in (block.down, block.down_scale, block.down_bias)]
    assert made.table.tolist()[-19:-16] == [level.logits.data_ptr(), level.logits_scale.data_ptr(), 90]


def test_shared_memory_fits(host):
    for most, stored, slots in ((163, "bf16", 27), (227, "bf16", 42), (163, "int8", 29), (227, "fp8", 44)):
        assert cuda.ring_slots(most * 1024, stored) == slots
        assert cuda.shared_bytes(slots, stored) <= most * 1024
