// Skinny products, with a weight that is streamed through shared memory once: the plan of schedule.h, carried out.
//
// One warp only copies. It walks all products of the kernel one after the other, fills a slot as soon as the ring has a
// free one, and never looks at an activation: while the other warps wait for each other at a grid-wide barrier, the
// next product's weights keep coming, until the ring is full. Full and empty slots are told by two mbarriers each, so
// that no warp waits for another one's pace. On sm_90 a row of a unit is one bulk copy; on sm_80 it is a 16-byte
// cp.async a lane.
#pragma once

#include "ptx.h"
#include "schedule.h"
#include "stored_weight.h"

namespace hqtvae {

struct Product {
  const unsigned char* weight;  // [outs, inputs], as a Weight of stored_weight.h
  int outs, inputs;             // inputs: a multiple of a unit's chunk
};

// `slots` slots of a unit, then two barriers a slot.
template <class Weight>
struct Ring {
  using Own = Unit<Weight::kBytes>;
  uint32_t memory;
  int slots;
  Cursor cursor{};

  DEVICE uint32_t slot() const { return memory + cursor.slot * Own::kSlotBytes; }
  DEVICE uint32_t full() const { return memory + slots * Own::kSlotBytes + cursor.slot * 16; }
  DEVICE uint32_t empty() const { return full() + 8; }

  DEVICE void init() const {  // by one thread, before a barrier of the block
    for (Ring ring = *this; ring.cursor.parity == 0; ring.cursor.advance(slots)) {
      mbarrier_init(ring.full(), HAS_BULK_COPIES ? 1 : 32);
      mbarrier_init(ring.empty(), kWarps);
    }
    fence_barrier_init();
  }
};
template <class Weight>
ANYWHERE int ring_bytes(int slots) {
  return slots * (Unit<Weight::kBytes>::kSlotBytes + 16);
}

// `stride`: bytes from a row to the next.
template <class Weight>
DEVICE void copy_unit(const Ring<Weight>& ring, const unsigned char* from, int64_t stride, int rows, int lane) {
  constexpr int kSlotRow = Ring<Weight>::Own::kSlotRow;
#if HAS_BULK_COPIES
  if (lane == 0) arrive_and_expect(ring.full(), rows * kRowBytes);
  __syncwarp();
  if (lane < rows) copy_bulk(ring.slot() + lane * kSlotRow, from + lane * stride, kRowBytes, ring.full());
#else
  for (int row = 0; row < rows; ++row)
    copy_16_async(ring.slot() + row * kSlotRow + 16 * lane, from + row * stride + 16 * lane);
  arrive_after_copies(ring.full());
#endif
}

// The copying warp's side of one product.
template <int mma_rows, class Weight>
DEVICE void stream_weight(Ring<Weight>& ring, const Product& product, int lane) {
  const int64_t stride = int64_t{product.inputs} * Weight::kBytes;
  const Slab slab = slab_of(product.outs, blockIdx.x, gridDim.x);
  for (int start = 0; start < slab.count; start += kMostTiles<mma_rows> * kTileOuts)
    for (int64_t byte = 0; byte < stride; byte += kRowBytes)
      for (int tile = 0; tile < tiles_from<mma_rows>(slab, start); ++tile) {
        const int row = start + tile * kTileOuts;
        const unsigned char* from = product.weight + (slab.first + row) * stride + byte;
        mbarrier_wait(ring.empty(), ring.cursor.parity ^ 1);
        copy_unit(ring, from, stride, rows_of_tile(slab, row), lane);
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

template <class Weight>
DEVICE Eight load_eight(uint32_t address) {
  if constexpr (Weight::kBytes == 2) {
    const uint4 v = load_shared_16(address);
    return {{v.x, v.y, v.z, v.w}};
  } else {
    const uint2 v = load_shared_8(address);
    return Weight::widen(v.x, v.y);
  }
}

// A warp's part of one run of inputs of the next `tiles` units; with the last run they are free to be overwritten. (All
// runs at once would take registers that sums need.)
template <class Weight, int most>
DEVICE void take_units(Ring<Weight>& ring, Eight (&part)[most], int tiles, int run, int warp, int lane) {
  Ring<Weight> taken = ring;
#pragma unroll
  for (int tile = 0; tile < most; ++tile) {
    if (tile >= tiles) break;
    mbarrier_wait(taken.full(), taken.cursor.parity);
    part[tile] = load_eight<Weight>(taken.slot() + slot_offset<Weight::kBytes>(warp, lane, run));
    taken.cursor.advance(taken.slots);
  }
  if (run + 1 < Ring<Weight>::Own::kRuns) return;
  __syncwarp();  // all lanes have theirs
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile, ring.cursor.advance(ring.slots))
    if (lane == 0) mbarrier_arrive(ring.empty());
}

// The multiplying warps' side of one product. `activations`: load(row, input) gives the bits of eight values of one
// row, from `input` on; norm(input) what all rows need to make of them what ready() makes, eight values in bf16. The
// next run's are on their way while one is multiplied. `finish` makes what finish_tiles() takes: only then does it
// have to be in registers.
template <int mma_rows, class Weight, class Activations, class Finish>
DEVICE void multiply(Team team, Ring<Weight>& ring, Partials& partials, const Product& product, int rows,
                     const Activations& activations, const Finish& finish) {
  constexpr int kMost = kMostTiles<mma_rows>, kChunk = Ring<Weight>::Own::kChunk, kRuns = Ring<Weight>::Own::kRuns;
  const int thread = opaque(team.thread), warp = thread / 32, lane = thread % 32;
  const int first = lane_input<Weight::kBytes>(warp, lane, 0);
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
#pragma unroll 1
      for (int run = 0; run < kRuns; ++run) {
        const int last = chunk + kChunk < product.inputs ? chunk + kChunk + first : first;
        const int next = run + 1 < kRuns ? chunk + first + (run + 1) * kRun : last;
        Eight w[kMost];
        take_units(ring, w, tiles, run, warp, lane);
#pragma unroll
        for (int m = 0; m < mma_rows; ++m) {
          const uint4 low = activations.ready(raw[2 * m], norm, lane_row(lane) + 16 * m);
          const uint4 high = activations.ready(raw[2 * m + 1], norm, lane_row(lane) + 16 * m + 8);
          raw[2 * m] = load(2 * m, next);
          raw[2 * m + 1] = load(2 * m + 1, next);
#pragma unroll
          for (int tile = 0; tile < kMost; ++tile) {
            if (tile >= tiles) break;
            const auto& pair = w[tile].pair;
            mma_16_8_16(sums[tile][m], low.x, high.x, low.y, high.y, pair[0], pair[1]);
            mma_16_8_16(sums[tile][m], low.z, high.z, low.w, high.w, pair[2], pair[3]);
          }
        }
        norm = activations.norm(next);
      }
    }
    finish_tiles<mma_rows>(team, partials, sums, tiles, rows, slab, start, finish());
  }
}

}  // namespace hqtvae
