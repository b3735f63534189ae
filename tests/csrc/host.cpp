// The kernels' device functions as plain C++, for ctypes. Nothing here computes: it calls what the kernels call.

#include "head_table.h"
#include "sample_row.h"
#include "schedule.h"
#include "stored_weight.h"

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

using namespace hqtvae;

namespace {

// One block's share of x [rows, inputs] weight^T, by the plan that the kernel follows: units through a ring of slots,
// lanes by their places, an instruction's 16 x 8 x 16 products as tensor cores define them. False where a slot is read
// that does not hold what the reader expects.
template <int mma_rows, class Weight>
struct HostProduct {
  using Own = Unit<Weight::kBytes>;
  const uint16_t* x;
  const unsigned char* weight;
  int rows, outs, inputs, slots, block, blocks;
  std::vector<unsigned char> memory = std::vector<unsigned char>(slots * Own::kSlotBytes);

  void copy_unit(const Cursor& cursor, const Slab& slab, int row, int input) {
    for (int r = 0; r < rows_of_tile(slab, row); ++r)
      std::memcpy(&memory[cursor.slot * Own::kSlotBytes + r * Own::kSlotRow],
                  weight + (int64_t{slab.first + row + r} * inputs + input) * Weight::kBytes, kRowBytes);
  }

  // A lane's eight weights of a run.
  Eight eight(const Cursor& cursor, int warp, int lane, int run) const {
    const unsigned char* at = &memory[cursor.slot * Own::kSlotBytes + slot_offset<Weight::kBytes>(warp, lane, run)];
    Eight words;
    std::memcpy(&words, at, kLaneInputs * Weight::kBytes);
    if constexpr (Weight::kBytes == 1) words = Weight::widen(words.pair[0], words.pair[1]);
    return words;
  }

  using Sums = float[kMostTiles<mma_rows> * 8][16 * mma_rows];

  void add(Sums& sums, const Cursor& cursor, int tile, int warp, int input) {
    for (int run = 0; run < Own::kRuns; ++run)
      for (int lane = 0; lane < 32; ++lane) {  // of an output, four lanes' products meet in a sum
        const Eight w = eight(cursor, warp, lane, run);
        for (int row = 0; row < 16 * mma_rows && row < rows; ++row) {
          const int from = input + lane_input<Weight::kBytes>(warp, row % 8 * 4 + lane % 4, run);
          for (int i = 0; i < 8; ++i)
            sums[tile * 8 + lane_row(lane)][row] += (i % 2 ? high_bf16(w.pair[i / 2]) : low_bf16(w.pair[i / 2])) *
                                                    from_bf16(x[int64_t{row} * inputs + from + i]);
        }
      }
  }

  void run(float* y) {
    const Slab slab = slab_of(outs, block, blocks);
    Cursor in, out;
    for (int start = 0; start < slab.count; start += kMostTiles<mma_rows> * kTileOuts) {
      const int tiles = tiles_from<mma_rows>(slab, start);
      std::vector<float> total(kMostTiles<mma_rows> * 8 * 16 * mma_rows);
      for (int warp = 0; warp < kWarps; ++warp) {
        Sums sums = {};
        for (int input = 0; input < inputs; input += Own::kChunk) {
          for (int tile = 0; tile < tiles; ++tile, in.advance(slots)) copy_unit(in, slab, start + tile * 8, input);
          for (int tile = 0; tile < tiles; ++tile, out.advance(slots)) add(sums, out, tile, warp, input);
        }
        for (int o = 0; o < tiles * 8; ++o)
          for (int row = 0; row < rows; ++row) total[o * 16 * mma_rows + row] += sums[o][row];
      }
      for (int o = 0; o < tiles * 8 && start + o < slab.count; ++o)
        for (int row = 0; row < rows; ++row)
          y[int64_t{row} * outs + slab.first + start + o] += total[o * 16 * mma_rows + row];
    }
  }
};

template <class Weight>
void multiply_as(const uint16_t* x, const unsigned char* w, int rows, int outs, int inputs, int mma_rows, int slots,
                 int blocks, float* y) {
  for (int block = 0; block < blocks; ++block) {
    if (mma_rows == 1) HostProduct<1, Weight>{x, w, rows, outs, inputs, slots, block, blocks}.run(y);
    if (mma_rows == 2) HostProduct<2, Weight>{x, w, rows, outs, inputs, slots, block, blocks}.run(y);
    if (mma_rows == 4) HostProduct<4, Weight>{x, w, rows, outs, inputs, slots, block, blocks}.run(y);
  }
}

struct HostCounter {
  std::atomic<uint32_t>* counters;
  void arrive() const { counters[0].fetch_add(1); }
  uint32_t arrived() const {
    std::this_thread::yield();
    return counters[0].load();
  }
  uint32_t leave() const { return counters[1].fetch_add(1); }
  void reset() const { counters[0] = counters[1] = 0; }
};

}  // namespace

extern "C" {

void words(int64_t seed, int64_t step, int64_t position, int count, uint32_t* out) {
  for (int i = 0; i < count; ++i) out[i] = random_words(seed, step, position, i / 4).lane[i % 4];
}

void gumbels(const uint32_t* words, int count, float* exact, float* rough) {
  for (int i = 0; i < count; ++i) exact[i] = gumbel(words[i]), rough[i] = rough_gumbel(words[i]);
}

float near_limit(float best) { return near(best); }

void narrow(const float* x, int count, uint16_t* bf16) {
  for (int i = 0; i < count; ++i) bf16[i] = to_bf16(x[i]);
}

void widen(const uint16_t* bits, int count, float* bf16, float* fp16) {
  for (int i = 0; i < count; ++i) bf16[i] = from_bf16(bits[i]), fp16[i] = from_fp16(bits[i]);
}

void masses(const float* x, int count, uint64_t* out) {
  for (int i = 0; i < count; ++i) out[i] = fixed_exp(x[i]);
}

// keys == nullptr: those of x.
uint32_t edge_of(const float* x, const uint32_t* keys, const uint64_t* weights, int count, uint64_t target,
                uint64_t* above) {
  SelectionScratch scratch;
  const auto key = [&](int i) { return keys == nullptr ? ordered(x[i]) : keys[i]; };
  const Edge edge = radix_select(Team{}, scratch, count, key, [&](int i) { return weights[i]; }, target);
  *above = edge.above;
  return edge.key;
}

// logits [rows, codes]; returns whether any was NaN.
bool draw(const float* logits, int rows, int codes, float temperature, int64_t top_k, float top_p, const int64_t* seeds,
          int64_t step, int64_t position, int64_t* out) {
  std::vector<float> row((codes + 3) / 4 * 4);
  RowScratch scratch;
  bool invalid = false;
  for (int r = 0; r < rows; ++r) {
    const auto load = [&](int i) { return logits[static_cast<int64_t>(r) * codes + i]; };
    const Draw how{temperature, top_k, top_p, seeds[r], step, position};
    out[r] = draw_from_row(Team{}, scratch, row.data(), codes, load, how, &invalid);
  }
  return invalid;
}

void guide(const float* shown, const float* withheld, int count, float scale, float* out) {
  for (int i = 0; i < count; ++i) out[i] = guided(shown[i], withheld[i], scale);
}

// y [rows, outs] must be zeros: each output must be added to once. stored: 0 bf16, 1 int8, 2 fp8.
void multiply(int stored, const uint16_t* x, const unsigned char* weight, int rows, int outs, int inputs, int mma_rows,
              int slots, int blocks, float* y) {
  const auto kinds = {multiply_as<Bf16Weight>, multiply_as<Int8Weight>, multiply_as<Fp8Weight>};
  kinds.begin()[stored](x, weight, rows, outs, inputs, mma_rows, slots, blocks, y);
}

// All 256 bytes as bf16.
void widen_bytes(const uint32_t* bytes, uint32_t* int8, uint32_t* fp8) {
  for (int i = 0; i < 64; i += 2) {
    const Eight a = Int8Weight::widen(bytes[i], bytes[i + 1]), b = Fp8Weight::widen(bytes[i], bytes[i + 1]);
    std::memcpy(int8 + 2 * i, &a, sizeof a), std::memcpy(fp8 + 2 * i, &b, sizeof b);
  }
}

void slabs(int outs, int blocks, int* first, int* count) {
  for (int b = 0; b < blocks; ++b) first[b] = slab_of(outs, b, blocks).first, count[b] = slab_of(outs, b, blocks).count;
}

// Byte of a slot that each lane of a warp reads.
void slot_offsets(int bytes, int warp, int run, int* out) {
  for (int lane = 0; lane < 32; ++lane)
    out[lane] = bytes == 2 ? slot_offset<2>(warp, lane, run) : slot_offset<1>(warp, lane, run);
}

// Launches, one after the other, of `blocks` threads that meet `times` times; how often one went on before all had
// come.
int barrier_faults(int blocks, int times, int launches) {
  std::atomic<uint32_t> counters[2] = {0, 0};
  std::atomic<int> faults{0};
  for (int launch = 0; launch < launches; ++launch) {
    std::vector<std::atomic<int>> seen(blocks);
    std::vector<std::thread> threads;
    for (int b = 0; b < blocks; ++b)
      threads.emplace_back([&, b] {
        GridBarrier barrier;
        for (int time = 1; time <= times; ++time) {
          seen[b] = time;
          barrier.wait(HostCounter{counters}, blocks);
          for (const auto& other : seen) faults += other < time;
        }
        barrier.leave(HostCounter{counters}, blocks);
      });
    for (auto& thread : threads) thread.join();
    faults += counters[0] != 0 || counters[1] != 0;
  }
  return faults;
}

// Sizes and offsets that Python counts on.
void head_layout(int* out) {
  const int values[] = {sizeof(HeadTable) - sizeof(HeadLayer),
                        sizeof(HeadLayer),
                        offsetof(HeadTable, epsilon),
                        offsetof(HeadTable, start),
                        offsetof(HeadTable, stream),
                        offsetof(HeadTable, barrier),
                        offsetof(HeadTable, levels),
                        kHeadSharedBytes,
                        Unit<2>::kSlotBytes + 16,
                        Unit<1>::kSlotBytes + 16,
                        kMostCodes};
  std::memcpy(out, values, sizeof values);
}

}  // extern "C"
