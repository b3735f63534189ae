// The prediction head's two passes, both heads and both draws of one step, in one launch, for 1 to 16 images.
//
// Why. At small batch a step of the head is the time to read its weights: per block 12 D^2 values, of which pass 1
// needs no query rows (position 0 sees itself alone: its attention is its value), and two heads of K D. Preset S (D =
// 1536, 4 blocks, K = 8192, bf16):
//   pass 1: 4 x 11 D^2 = 103.8 M, + 12.6 M   232.8 MB      pass 2: 4 x 12 D^2 = 113.2 M, + 12.6 M   251.7 MB
// 484 MB a step, 145 us on an H100 (3.35 TB/s), 238 us on an A100 (2.04 TB/s): the floor. With int8 or fp8 matrices, a
// byte a weight and 4 a row for its scale, 242.7 MB: 72 us and 119 us. A second reading of a block is a second reading
// from memory, as the caches hold a fifth of it (50 and 40 MB). One launch a product would make about 70 launches a
// step, each of which drains the memory system and fills it again: at 2 us that is 140 us, the floor again.
//
// Schedule. A persistent grid, one block a multiprocessor, of 8 warps that multiply and one that copies
// (weight_stream.h). Phases, with a grid-wide barrier after each:
//   a block   LayerNorm + qkv | attention (pass 2) | out + residual | LayerNorm + up + GELU | down + residual
//   a pass    its first rows | the blocks | LayerNorm + head; then the draw, a row a block of the grid (sample_row.h)
// A LayerNorm is no phase: each block makes it again for the rows that it multiplies, as it loads them, from 3 KB a row
// in the second-level cache. Every output is finished by the block that summed it. The block that draws an image's top
// code also writes the image's first rows of pass 2.
//
// Barriers. 4 x 4 + 2 in pass 1, 4 x 5 + 2 in pass 2 (nothing follows the last draw): 40. Each is a reduction to one
// counter and polling it, two trips to the second-level cache, about 1.3 us, and what must be loaded after it is
// another trip or two: 2.5 us of latency a phase, about 100 us a step, two thirds of the copies' time if they took
// turns. They do not: the copying warp knows no barriers. Its ring holds 42 slots of 4 KB a multiprocessor on an H100,
// 22.7 MB in all, 6.8 us of memory bandwidth (27 slots on an A100, 11.9 MB, 5.9 us); a phase that stalls for less than
// that costs nothing, as long as what it then finds waiting is consumed faster than it came: 4 KB take 280 cycles to
// arrive and about 100 to multiply. So the warps that multiply need 100 us of waiting and 50 of work (895 slots a
// multiprocessor), no less than the copies. 4 KB of bytes take twice the multiplying and about 100 cycles to widen
// (stored_weight.h), half as many slots: again 50 us. There the floor of the copies is half and that of the phases is
// not: int8 pays as far as phases turn out cheaper than estimated. These latencies are estimates from the literature;
// what has been measured: benchmarks/STATUS.md.
//
// Activations. Each block reads each product's inputs whole from the second-level cache: rows x inputs x 2 bytes x 132
// blocks. For 4 rows that is 1.6 MB for D inputs; for 64 rows (16 images, pass 2) 26 MB, and 104 MB where 4 D are read,
// 182 MB a block of the model against 57 MB of weights: there the caches' bandwidth sets the time, and products tiled
// in both directions should win. Where they do is to be measured.
//
// Bits. Weights, widened exactly, and activations in bf16, fp32 sums in the order that schedule.h fixes, times the
// row's scale, rounded once where a value is stored. They depend neither on the number of images nor on that of
// multiprocessors, and not on what runs when.
//
// The launch is cooperative: all blocks are resident, or it fails. On sm_90 it may be a dependent launch too, both at
// once: CUDA describes each attribute without a word against the other, and NVIDIA's own TensorRT-LLM launches its
// routing kernels with both. Then blocks take their places as the kernel before leaves them, and
//   before griddepcontrol.wait   only shared memory, the table and the weights are touched: nobody writes these while a
//       loop runs (what has just written weights must not be the kernel before);
//   after it   the kernel before is complete and its writes are there, and by its own wait, if it had started early, so
//       is everything before it. So nobody reads any more what is overwritten here (the codes, the work space), and the
//       barrier's counters are the zeros that this kernel's own last launch left, be it one step earlier in a captured
//       graph or the kernel before itself;
//   launch_dependents   comes after the last grid-wide barrier. All blocks have met there, so none can lose its place
//       to a block of the next kernel, which would wait for ours while ours waited for a place.
// The copying warp alone never waits: a block is over when its other warps are, which have.

#include "head_rows.h"
#include "sample_row.h"

namespace hqtvae {

constexpr int kHeadThreads = Team::kThreads + 32;

struct HeadShared {
  union {
    Partials partials;
    float row[kMostCodes];  // of logits, while a code is drawn
  };
  RowScratch scratch;
  float2 statistics[kMostRows];  // of each row's LayerNorm
};
static_assert(sizeof(Partials) == kMostCodes * sizeof(float), "neither wastes room of the other");
static_assert(sizeof(HeadShared) == kHeadSharedBytes, "the launcher in Python counts on it");
template <class Weight>
ANYWHERE int head_shared_bytes(int slots) {
  return (ring_bytes<Weight>(slots) + 127) / 128 * 128 + int{sizeof(HeadShared)};
}

struct GlobalCounter {
  uint32_t* counters;
  DEVICE void arrive() const { add_release(counters, 1); }
  DEVICE uint32_t arrived() const { return load_acquire(counters); }
  DEVICE uint32_t leave() const { return atomicAdd(counters + 1, 1); }
  DEVICE void reset() const { counters[0] = counters[1] = 0; }
};

// What differs from step to step. codes [images, 5], top first; parameters of the draw: one of each a level.
struct HeadStep {
  const uint16_t* h;  // [images, D]
  long long* codes;
  bool* invalid;
  const long long *seeds, *step;
  const float* temperature;
  const long long* top_k;
  const float* top_p;
  long long stride_codes;
  int images, draw_top;
};

// One product of a pass: what it reads, and what becomes of its outputs. Both kinds of warps walk the same list.
enum Which { kProject, kOut, kUp, kDown, kLogits };

template <class Weight>
DEVICE Product product_of(const HeadTable& model, bool bottom, int layer, int which) {
  const HeadLayer& weights = model.layer[layer];
  const int D = static_cast<int>(model.dim);
  const unsigned char* qkv = weights.qkv.weight;
  switch (which) {
    case kProject:  // in pass 1 without the queries
      return bottom ? Product{qkv, 3 * D, D} : Product{qkv + int64_t{D} * D * Weight::kBytes, 2 * D, D};
    case kOut: return {weights.out.weight, D, D};
    case kUp: return {weights.up.weight, 4 * D, D};
    case kDown: return {weights.down.weight, D, 4 * D};
    default: return {model.levels[bottom].logits, static_cast<int>(model.levels[bottom].codes), D};
  }
}

// Calls run(layer, which) for the products of a pass in their order.
template <class Run>
DEVICE void each_product(const HeadTable& model, bool with_logits, Run run) {
  const int count = 4 * static_cast<int>(model.layers);
  for (int i = 0; i < count + with_logits; ++i) run(i == count ? 0 : i / 4, i == count ? int{kLogits} : i % 4);
}

template <int mma_rows, class Weight>
DEVICE void stream_pass(Ring<Weight>& ring, const HeadTable& model, bool bottom, bool with_logits, int lane) {
  each_product(model, with_logits, [&](int layer, int which) {
    stream_weight<mma_rows>(ring, product_of<Weight>(model, bottom, layer, which), lane);
  });
}

// What a multiplying warp has at hand all along.
template <class Weight>
struct Worker {
  Team team;
  HeadShared& shared;
  Ring<Weight> ring;
  const HeadTable& model;
  const HeadStep& in;
  GridBarrier grid{};

  DEVICE void barrier() {
    team.sync();
    if (threadIdx.x == 0) grid.wait(GlobalCounter{model.barrier}, gridDim.x);
    team.sync();
  }
};

// What becomes of outputs: * scale, + bias, GELU, + residual (which they replace), rounded and stored.
struct Finish {
  uint16_t* out;
  int stride;
  const float* scale;
  const uint16_t* bias;
  enum { kStore, kGelu, kSigmoidGelu, kResidual } kind;

  DEVICE void operator()(int row, int column, float value) const {
    uint16_t* at = out + int64_t{row} * stride + column;
    if (scale != nullptr) value = mul(value, scale[column]);
    if (bias != nullptr) value = add(value, from_bf16(bias[column]));
    if (kind == kGelu || kind == kSigmoidGelu) value = gelu(value, kind == kSigmoidGelu);
    if (kind == kResidual) value = add(value, from_bf16(load_2_bytes(at)));
    *at = to_bf16(value);
  }
};

DEVICE Finish finish_of(const HeadTable& model, bool bottom, int layer, int which) {
  const auto& [n1, m1, qkv, out, n2, m2, up, down] = model.layer[layer];
  const HeadLevel& level = model.levels[bottom];
  const int D = static_cast<int>(model.dim), skipped = bottom ? 0 : D;  // rows of queries
  switch (which) {
    case kProject:
      return {bottom ? model.qkv : model.first + int64_t{layer} * kMostImages * 2 * D, 3 * D - skipped,
              qkv.scale ? qkv.scale + skipped : nullptr, qkv.bias ? qkv.bias + skipped : nullptr, Finish::kStore};
    case kOut: return {model.stream, D, out.scale, out.bias, Finish::kResidual};
    case kUp: {
      const auto kind = model.sigmoid_gelu ? Finish::kSigmoidGelu : Finish::kGelu;
      return {model.hidden, 4 * D, up.scale, up.bias, kind};
    }
    case kDown: return {model.stream, D, down.scale, down.bias, Finish::kResidual};
    default: return {model.logits, static_cast<int>(level.codes), level.logits_scale, nullptr, Finish::kStore};
  }
}

DEVICE Activations activations_of(const HeadTable& model, const HeadShared& shared, bool bottom, int layer, int which) {
  const HeadLayer& weights = model.layer[layer];
  const HeadLevel& level = model.levels[bottom];
  const int D = static_cast<int>(model.dim);
  const uint32_t statistics = shared_address(shared.statistics);
  switch (which) {
    case kProject: return {model.stream, D, weights.norm1_weight, weights.norm1_bias, statistics};
    case kOut:  // of position 0 alone the attention is the value
      if (!bottom) return {model.first + int64_t{layer} * kMostImages * 2 * D + D, 2 * D};
      return {model.attended, D};
    case kUp: return {model.stream, D, weights.norm2_weight, weights.norm2_bias, statistics};
    case kDown: return {model.hidden, 4 * D};
    default: return {model.stream, D, level.norm_weight, level.norm_bias, statistics};
  }
}

template <int mma_rows, class Weight>
DEVICE void multiply_pass(Worker<Weight>& worker, bool bottom, bool with_logits) {
  const HeadTable& model = worker.model;
  const int images = worker.in.images, rows = bottom ? images * kBottoms : images;
  each_product(model, with_logits, [&](int layer, int which) {
    if (bottom && which == kOut) {
      attend(worker.team, model, layer, images);
      worker.barrier();
    }
    const Activations activations = activations_of(model, worker.shared, bottom, layer, which);
    if (activations.weight != nullptr)
      row_statistics(worker.team, worker.shared.statistics, activations.x, rows, activations.stride, model.epsilon);
    multiply<mma_rows>(worker.team, worker.ring, worker.shared.partials,
                       product_of<Weight>(model, bottom, layer, which), rows, activations,
                       [&] { return finish_of(model, bottom, layer, which); });
    worker.barrier();
  });
}

template <class Weight>
DEVICE void draw_rows(Worker<Weight>& worker, bool bottom) {
  const HeadTable& model = worker.model;
  const HeadStep& in = worker.in;
  const int group = bottom ? kBottoms : 1, codes = static_cast<int>(model.levels[bottom].codes);
  for (int row = blockIdx.x; row < in.images * group; row += gridDim.x) {
    const int image = row / group, position = bottom ? 1 + row % group : 0;
    const Draw how{in.temperature[bottom], in.top_k[bottom], in.top_p[bottom], in.seeds[image], *in.step, position};
    const auto load = [&](int i) { return from_bf16(load_2_bytes(model.logits + int64_t{row} * codes + i)); };
    const int drawn =
        draw_from_row(worker.team, worker.shared.scratch, worker.shared.row, codes, load, how, in.invalid);
    if (worker.team.thread == 0) in.codes[image * in.stride_codes + position] = drawn;
  }
  worker.team.sync();  // the block itself may read its codes now
}

// Pass 1 begins with h + p_0, pass 2 with E(top code) + p_1 .. p_4: written, an image a block, by the block that has
// drawn the image's top code.
template <class Weight>
DEVICE void begin_pass(Worker<Weight>& worker, bool bottom) {
  const HeadTable& model = worker.model;
  const HeadStep& in = worker.in;
  const int D = static_cast<int>(model.dim);
  for (int image = blockIdx.x; image < in.images; image += gridDim.x) {
    if (!bottom) write_sum(worker.team, model.stream + image * D, in.h + image * D, model.start, D);
    if (!bottom) continue;
    const int64_t code = load_8_bytes(in.codes + image * in.stride_codes);
    for (int k = 0; k < kBottoms; ++k)
      write_sum(worker.team, model.stream + (image * kBottoms + k) * D, model.codes + code * D,
                model.positions + k * D, D);
  }
  worker.barrier();
}

template <int mma_rows, class Weight>
DEVICE void multiply_and_draw(Worker<Weight>& worker) {
#pragma unroll 1
  for (int bottom = 0; bottom < 2; ++bottom) {
    const bool draws = bottom || worker.in.draw_top;
    begin_pass(worker, bottom);
    multiply_pass<mma_rows>(worker, bottom, draws);
    if (bottom) let_next_kernel_start();
    if (draws) draw_rows(worker, bottom);
  }
}

// mma_rows: groups of 16 rows, 1, 2 or 4 for up to 4, 8 or 16 images, as pass 2 needs; pass 1 has a quarter of the
// rows, and the rest of its instructions multiply zeros, which costs nothing while weights are on their way.
template <int mma_rows, class Weight>
DEVICE void prediction_head(const HeadTable& model, const HeadStep& in, int slots) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<HeadShared*>(memory + head_shared_bytes<Weight>(slots) - sizeof(HeadShared));
  Ring<Weight> ring{shared_address(memory), slots};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) ring.init();
  __syncthreads();
  if (thread >= Team::kThreads) {
    for (int bottom = 0; bottom < 2; ++bottom)
      stream_pass<mma_rows>(ring, model, bottom, bottom || in.draw_top, thread % 32);
    return;
  }
  wait_for_kernel_before();
  Worker<Weight> worker{Team{thread}, shared, ring, model, in};
  multiply_and_draw<mma_rows>(worker);
  if (thread == 0) worker.grid.leave(GlobalCounter{model.barrier}, gridDim.x);
}

}  // namespace hqtvae

// Grid: any number of blocks that fit the device at once; dynamic shared memory: head_shared_bytes<Weight>(slots).
#define PREDICTION_HEAD_KERNEL(name, mma_rows, Weight)                                                             \
  extern "C" __global__ void __launch_bounds__(hqtvae::kHeadThreads, 1)                                            \
      name(const hqtvae::HeadTable* table, const uint16_t* h, long long* codes, bool* invalid,                     \
           const long long* seeds, const long long* step, const float* temperature, const long long* top_k,        \
           const float* top_p, long long stride_codes, int images, int draw_top, int slots) {                      \
    hqtvae::prediction_head<mma_rows, hqtvae::Weight>(                                                             \
        *table, {h, codes, invalid, seeds, step, temperature, top_k, top_p, stride_codes, images, draw_top}, slots); \
  }

PREDICTION_HEAD_KERNEL(prediction_head_bf16_1, 1, Bf16Weight)
PREDICTION_HEAD_KERNEL(prediction_head_bf16_2, 2, Bf16Weight)
PREDICTION_HEAD_KERNEL(prediction_head_bf16_4, 4, Bf16Weight)
PREDICTION_HEAD_KERNEL(prediction_head_int8_1, 1, Int8Weight)
PREDICTION_HEAD_KERNEL(prediction_head_int8_2, 2, Int8Weight)
PREDICTION_HEAD_KERNEL(prediction_head_int8_4, 4, Int8Weight)
PREDICTION_HEAD_KERNEL(prediction_head_fp8_1, 1, Fp8Weight)
PREDICTION_HEAD_KERNEL(prediction_head_fp8_2, 2, Fp8Weight)
PREDICTION_HEAD_KERNEL(prediction_head_fp8_4, 4, Fp8Weight)

#if !defined(__CUDACC_RTC__)
#include "launch.h"
#include "launchers.h"

cudaError_t hqtvae::launch_prediction_head(Stored stored, int images, int blocks, int slots, bool dependent,
                                           void** arguments, cudaStream_t stream) {
  decltype(&prediction_head_bf16_1) const kernels[][3] = {
      {prediction_head_bf16_1, prediction_head_bf16_2, prediction_head_bf16_4},
      {prediction_head_int8_1, prediction_head_int8_2, prediction_head_int8_4},
      {prediction_head_fp8_1, prediction_head_fp8_2, prediction_head_fp8_4}};
  const auto kernel = kernels[static_cast<int>(stored)][images <= 4 ? 0 : images <= 8 ? 1 : 2];
  const bool wide = stored == Stored::bf16;
  const int bytes = wide ? head_shared_bytes<Bf16Weight>(slots) : head_shared_bytes<Int8Weight>(slots);
  const Launch how{.blocks = blocks,
                   .threads = kHeadThreads,
                   .shared_bytes = bytes,
                   .cooperative = true,
                   .dependent = dependent};
  return launch(reinterpret_cast<void*>(kernel), how, arguments, stream);
}
#endif
