// Products of a few rows with a weight that is streamed through shared memory once: the plan of schedule.h, carried out.
//
// One warp only copies. It walks all products of the kernel one after the other, fills a slot as soon as the ring has a
// free one, and never looks at an activation: while the other warps wait for each other at a grid-wide barrier, the next
// product's weights keep coming, until the ring is full. Full and empty slots are told by two mbarriers each, so that no
// warp waits for another one's pace. On sm_90 a row of a unit is one bulk copy; on sm_80 it is a 16-byte cp.async a lane.
#pragma once

#include "ptx.h"
#include "schedule.h"

namespace hqtvae {

struct Product {
  const uint16_t* weight;  // bf16 [outs, inputs]
  int outs, inputs;        // inputs: a multiple of kChunk
};

// `slots` slots of kSlotBytes, then two barriers a slot.
struct Ring {
  uint32_t memory;
  int slots;
  Cursor cursor{};

  DEVICE uint32_t slot() const { return memory + cursor.slot * kSlotBytes; }
  DEVICE uint32_t full() const { return memory + slots * kSlotBytes + cursor.slot * 16; }
  DEVICE uint32_t empty() const { return full() + 8; }

  DEVICE void init() const {  // by one thread, before a barrier of the block
    for (Ring ring = *this; ring.cursor.parity == 0; ring.cursor.advance(slots)) {
      mbarrier_init(ring.full(), HAS_BULK_COPIES ? 1 : 32);
      mbarrier_init(ring.empty(), kWarps);
    }
    fence_barrier_init();
  }
};
ANYWHERE int ring_bytes(int slots) { return slots * (kSlotBytes + 16); }

DEVICE void copy_unit(const Ring& ring, const uint16_t* from, int inputs, int rows, int lane) {
#if HAS_BULK_COPIES
  if (lane == 0) arrive_and_expect(ring.full(), rows * kRowBytes);
  __syncwarp();
  if (lane < rows) copy_bulk(ring.slot() + lane * kSlotRow, from + int64_t{lane} * inputs, kRowBytes, ring.full());
#else
  for (int row = 0; row < rows; ++row)
    copy_16_async(ring.slot() + row * kSlotRow + 16 * lane, from + int64_t{row} * inputs + 8 * lane);
  arrive_after_copies(ring.full());
#endif
}

// The copying warp's side of one product.
template <int mma_rows>
DEVICE void stream_weight(Ring& ring, const Product& product, int lane) {
  const Slab slab = slab_of(product.outs, blockIdx.x, gridDim.x);
  for (int start = 0; start < slab.count; start += kMostTiles<mma_rows> * kTileOuts)
    for (int input = 0; input < product.inputs; input += kChunk)
      for (int tile = 0; tile < tiles_from<mma_rows>(slab, start); ++tile) {
        const int row = start + tile * kTileOuts;
        const uint16_t* from = product.weight + int64_t{slab.first + row} * product.inputs + input;
        mbarrier_wait(ring.empty(), ring.cursor.parity ^ 1);
        copy_unit(ring, from, product.inputs, rows_of_tile(slab, row), lane);
        ring.cursor.advance(ring.slots);
      }
}

// Sums of one round of tiles, one set a warp, meet here: 32 KB.
constexpr int kPartials = 1024;
struct Partials {
  float sums[kWarps][kPartials];
};

// Adds up what the warps summed of `tiles` tiles and hands on each output: finish(row, out, value).
template <int mma_rows, int most, class Finish>
DEVICE void finish_tiles(Team team, Partials& partials, const float (&sums)[most][mma_rows][4], int tiles, int rows,
                         const Slab& slab, int start, const Finish& finish) {
  constexpr int kRound = kPartials / (128 * mma_rows);  // tiles that fit
  const int thread = opaque(team.thread), warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int first = 0; first < most; first += kRound) {
    if (first >= tiles) break;
#pragma unroll
    for (int tile = first; tile < first + kRound && tile < most; ++tile) {
      if (tile >= tiles) break;
#pragma unroll
      for (int m = 0; m < mma_rows; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * m + 8 * half + lane_row(lane);
          const int at = ((tile - first) * 16 * mma_rows + row) * kTileOuts + 2 * (lane % 4);
          *reinterpret_cast<float2*>(&partials.sums[warp][at]) =
              make_float2(sums[tile][m][2 * half], sums[tile][m][2 * half + 1]);
        }
    }
    team.sync();
    const int cells = (tiles - first < kRound ? tiles - first : kRound) * 128 * mma_rows;
#pragma unroll 1
    for (int cell = thread; cell < cells; cell += Team::kThreads) {
      const int row = cell / kTileOuts % (16 * mma_rows);
      const int out = start + (first + cell / (128 * mma_rows)) * kTileOuts + cell % kTileOuts;
      if (row >= rows || out >= slab.count) continue;
      float value = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += partials.sums[w][cell];
      finish(row, slab.first + out, value);
    }
    team.sync();
  }
}

// A warp's part of the next `tiles` units, which are then free to be overwritten.
template <int most>
DEVICE void take_units(Ring& ring, uint4 (&part)[most], int tiles, int warp, int lane) {
  Ring taken = ring;
#pragma unroll
  for (int tile = 0; tile < most; ++tile) {
    if (tile >= tiles) break;
    mbarrier_wait(ring.full(), ring.cursor.parity);
    part[tile] = load_shared_16(ring.slot() + slot_offset(warp, lane));
    ring.cursor.advance(ring.slots);
  }
  __syncwarp();  // all lanes have theirs
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile, taken.cursor.advance(taken.slots))
    if (lane == 0) mbarrier_arrive(taken.empty());
}

// The multiplying warps' side of one product. `activations`: load(row, input) gives the bits of eight values of one row,
// from `input` on; norm(input) what all rows need to make of them what ready() makes, eight values in bf16. The next chunk's
// are on their way while one is multiplied.
// `finish` makes what finish_tiles() takes: only then does it have to be in registers.
template <int mma_rows, class Activations, class Finish>
DEVICE void multiply(Team team, Ring& ring, Partials& partials, const Product& product, int rows,
                     const Activations& activations, const Finish& finish) {
  constexpr int kMost = kMostTiles<mma_rows>;
  const int thread = opaque(team.thread), warp = thread / 32, lane = thread % 32, first = lane_input(warp, lane);
  const Slab slab = slab_of(product.outs, blockIdx.x, gridDim.x);
  const auto load = [&](int i, int input) {  // a row that is not there only fills the instruction
    const int row = opaque(lane_row(lane) + 8 * i);  // no address is kept from chunk to chunk
    return row < rows ? activations.load(row, input) : uint4{};
  };
#pragma unroll 1
  for (int start = 0; start < slab.count; start += kMost * kTileOuts) {
    const int tiles = tiles_from<mma_rows>(slab, start);
    float sums[kMost][mma_rows][4] = {};
    auto norm = activations.norm(first);
    uint4 raw[2 * mma_rows];
#pragma unroll
    for (int i = 0; i < 2 * mma_rows; ++i) raw[i] = load(i, first);
#pragma unroll 1
    for (int chunk = 0; chunk < product.inputs; chunk += kChunk) {
      const int next = chunk + kChunk < product.inputs ? chunk + kChunk + first : first;
      uint4 w[kMost];
      take_units(ring, w, tiles, warp, lane);
#pragma unroll
      for (int m = 0; m < mma_rows; ++m) {
        const uint4 low = activations.ready(raw[2 * m], norm, lane_row(lane) + 16 * m);
        const uint4 high = activations.ready(raw[2 * m + 1], norm, lane_row(lane) + 16 * m + 8);
        raw[2 * m] = load(2 * m, next);
        raw[2 * m + 1] = load(2 * m + 1, next);
#pragma unroll
        for (int tile = 0; tile < kMost; ++tile) {
          if (tile >= tiles) break;
          mma_16_8_16(sums[tile][m], low.x, high.x, low.y, high.y, w[tile].x, w[tile].y);
          mma_16_8_16(sums[tile][m], low.z, high.z, low.w, high.w, w[tile].z, w[tile].w);
        }
      }
      norm = activations.norm(next);
    }
    finish_tiles<mma_rows>(team, partials, sums, tiles, rows, slab, start, finish());
  }
}

}  // namespace hqtvae
