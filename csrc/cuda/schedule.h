// Who multiplies what, and in which order: the plan of skinny products with a weight [outs, inputs], as the persistent
// kernels run them. Nothing here touches memory; the tests walk it on a CPU.
//
// A block owns a slab, a run of the weight's rows: slabs differ by one row at most, so that no block reads more than
// 1/outs beyond its share (of 1,536 rows over 132 blocks: 12 where 11.6 would be even, 97 %). It takes the slab in
// units of 8 outputs x 512 bytes of each, 4 KB, which travel through a ring of slots in shared memory: all units of one
// chunk of inputs, then the next chunk, so that each activation is loaded once. A chunk is 256 inputs where a weight
// takes two bytes and 512 where it takes one: who copies sees bytes alone.
//
// Of a unit, warp w multiplies a run of 32 inputs, or two runs one after the other where weights take one byte, each
// with two mma.m16n8k16 (16 rows of activations, 8 outputs). Which input stands in which of an instruction's k places
// does not matter as long as both operands agree, so lane q of a group of four takes inputs 8 q .. 8 q + 7 of the 32:
// one load of 16 or 8 bytes for a row of the weight, one of 16 for a row of activations, and no shuffling. (One load of
// 16 one-byte weights would give a lane 16 neighbouring inputs, and each load of activations half of every sector.)
//
// In a slot rows are 512 bytes and what four lanes take at a time apart. So the lanes that one access serves together
// meet all 32 banks once: 8 of them with 16 bytes, in two rows, 576 bytes apart; 16 with 8 bytes, in four rows, 544
// apart. A slot is 4,608 or 4,352 bytes, and two or three more of the latter fit.
//
// An output is the sum over warps 0, 1, ..., 7 of what each one summed over chunks 0, 1, ...: an order that does not
// depend on the number of blocks or of rows, so neither do the bits.
#pragma once

#include "portable.h"

namespace hqtvae {

constexpr int kWarps = Team::kThreads / 32;  // that multiply
constexpr int kTileOuts = 8, kRowBytes = 512;        // a unit
constexpr int kRun = 32, kLaneInputs = kRun / 4;     // inputs that two k16 instructions take; a lane's of them

// A unit by the bytes that a weight takes.
template <int bytes>
struct Unit {
  static constexpr int kChunk = kRowBytes / bytes, kRuns = kChunk / (kRun * kWarps);
  static constexpr int kSlotRow = kRowBytes + kRun * bytes, kSlotBytes = kTileOuts * kSlotRow;
  static_assert(kRuns * bytes == 2 && kSlotRow % 16 == 0, "each warp has whole runs, copies go to multiples of 16");
};

struct Slab {
  int first, count;
};

// The first outs % blocks blocks have a row more.
ANYWHERE Slab slab_of(int outs, int block, int blocks) {
  const int least = outs / blocks, longer = outs % blocks;
  return {block * least + (block < longer ? block : longer), least + (block < longer)};
}

// Tiles whose sums a warp holds at once, for `mma_rows` groups of 16 rows: as registers allow.
template <int mma_rows>
constexpr int kMostTiles = mma_rows == 2 ? 6 : mma_rows == 4 ? 3 : 8;

// Of the tiles from row `start` of a slab on.
template <int mma_rows>
ANYWHERE int tiles_from(const Slab& slab, int start) {
  const int tiles = ceil_div(slab.count - start, kTileOuts);
  return tiles < kMostTiles<mma_rows> ? tiles : kMostTiles<mma_rows>;
}

ANYWHERE int rows_of_tile(const Slab& slab, int row) {
  return slab.count - row < kTileOuts ? slab.count - row : kTileOuts;
}

// A lane's place in a unit: its row (an output; of activations, row and row + 8), and its eight inputs of a run.
ANYWHERE int lane_row(int lane) { return lane / 4; }
template <int bytes>
ANYWHERE int lane_input(int warp, int lane, int run) {
  return (warp * Unit<bytes>::kRuns + run) * kRun + lane % 4 * kLaneInputs;
}
template <int bytes>
ANYWHERE int slot_offset(int warp, int lane, int run) {
  return lane_row(lane) * Unit<bytes>::kSlotRow + bytes * lane_input<bytes>(warp, lane, run);
}

// A place in a ring of slots, and the parity of the round: both sides step through it alike.
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;
  ANYWHERE void advance(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
};

// A barrier of all blocks of a grid: a counter that only grows, `blocks` by `blocks`, while the kernel runs. Who leaves
// last sets it back to zero for the next launch. No block can leave while another waits, as that one's arrival would be
// missing.
struct GridBarrier {
  uint32_t target = 0;

  template <class Counter>
  DEVICE void wait(const Counter& counter, uint32_t blocks) {
    target += blocks;
    counter.arrive();
    while (counter.arrived() < target) {
    }
  }
  template <class Counter>
  DEVICE void leave(const Counter& counter, uint32_t blocks) const {
    if (counter.leave() == blocks - 1) counter.reset();
  }
};

}  // namespace hqtvae
