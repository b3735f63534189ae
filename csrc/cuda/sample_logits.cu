// Drawing codes from logits: one block a row, radix selection for top-k and top-p, an exponential race for the draw.
//
// Bytes: a row is read once from memory (16 KB of bf16 for K = 8192; the few codes near the best are read again, from a
// cache), 8 bytes are written. At 3.35 TB/s that is 5 ns a row: this kernel is arithmetic and latency, not bandwidth.
//
// Schedule, K = 8192, 256 threads, 32 codes a thread, the row in 32 KB of shared memory, 47 barriers with top-k:
//   read, divide by the temperature, find the top     1 division a code                              8 + 2 barriers
//   top-k: 4 rounds of 8 bits                         1 load, 4 operations, 1 atomic a code in the first round; in the
//                                                     later ones only codes that agree so far get beyond a compare
//   top-p: the same, weights computed                 and 15 operations a code for the mass; only where asked for
//   rough scores                                      15 operations of Philox, 20 of two logarithms a code
//   exact scores                                      62 operations, for about one code a row
// About 75 operations a code with top-k: 0.6 M for a row, 4,800 cycles of a multiprocessor's 128 lanes. Five blocks
// share one on an H100 (48 registers a thread, 37 KB each), four on an A100, so that one block's barriers are another's
// arithmetic.
//
// With guidance a block reads two rows, 32 KB, and combines them as it loads: the same launch.
//
// All that a captured graph may want to change between replays is read from device memory: seeds, step, position,
// temperature, top-k, top-p and guidance.

#include "sample_row.h"

namespace hqtvae {

// How each dtype's bits become fp32, which is exact.
struct Fp32 {
  using Stored = float;
  DEVICE static float wide(float x) { return x; }
};
struct Bf16 {
  using Stored = uint16_t;
  DEVICE static float wide(uint16_t bits) { return from_bf16(bits); }
};
struct Fp16 {
  using Stored = uint16_t;
  DEVICE static float wide(uint16_t bits) { return from_fp16(bits); }
};

// logits [B, G, K], a row's values next to each other; out [B, G]; step and position [B], or one for all (stride 0).
// guidance [B], or one for all (stride 0): then logits [2 B, G, K] are of conditions shown and, behind them, withheld,
// and out [2 B, G] gets an image's code in both of its rows; nullptr: none. Strides count elements. Grid: B * G blocks. Dynamic shared memory: row_bytes(K).
#define SAMPLE_LOGITS_PARAMETERS(Stored)                                                                           \
  const Stored *logits, long long *out, bool *invalid, const long long *seeds, const long long *step,              \
      const long long *position, const float *temperature, const long long *top_k, const float *top_p,             \
      const float *guidance, int groups, int codes, long long stride_b, long long stride_g,                        \
      long long stride_out_b, long long stride_out_g, int stride_step, int stride_position, int stride_guidance

template <class Type>
DEVICE void sample_block(SAMPLE_LOGITS_PARAMETERS(typename Type::Stored)) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ RowScratch scratch;
  const int b = blockIdx.x / groups, g = blockIdx.x % groups, images = gridDim.x / groups;
  const auto* row = logits + b * stride_b + g * stride_g;
  const auto* withheld = guidance == nullptr ? row : row + images * stride_b;
  const float scale = guidance == nullptr ? 1.0f : guidance[b * stride_guidance];
  const Draw draw{*temperature, *top_k, *top_p, seeds[b], step[b * stride_step], position[b * stride_position] + g};
  const Team team{static_cast<int>(threadIdx.x)};
  const auto load = [&](int i) {
    return scale == 1.0f ? Type::wide(row[i]) : guided(Type::wide(row[i]), Type::wide(withheld[i]), scale);
  };
  const int drawn = draw_from_row(team, scratch, reinterpret_cast<float*>(shared), codes, load, draw, invalid);
  if (team.thread != 0) return;
  auto* own = out + b * stride_out_b + g * stride_out_g;
  *own = drawn;
  if (guidance != nullptr) own[images * stride_out_b] = drawn;
}

}  // namespace hqtvae

#define SAMPLE_LOGITS_KERNEL(name, Type)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) name(SAMPLE_LOGITS_PARAMETERS(hqtvae::Type::Stored)) {            \
    hqtvae::sample_block<hqtvae::Type>(logits, out, invalid, seeds, step, position, temperature, top_k, top_p,        \
                                       guidance, groups, codes, stride_b, stride_g, stride_out_b, stride_out_g,       \
                                       stride_step, stride_position, stride_guidance);                                \
  }

SAMPLE_LOGITS_KERNEL(sample_logits_fp32, Fp32)
SAMPLE_LOGITS_KERNEL(sample_logits_bf16, Bf16)
SAMPLE_LOGITS_KERNEL(sample_logits_fp16, Fp16)

#if !defined(__CUDACC_RTC__)
#include "launch.h"
#include "launchers.h"

cudaError_t hqtvae::launch_sample_logits(Dtype dtype, int rows, int codes, void** arguments, cudaStream_t stream) {
  const void* kernels[] = {reinterpret_cast<void*>(sample_logits_fp32), reinterpret_cast<void*>(sample_logits_bf16),
                           reinterpret_cast<void*>(sample_logits_fp16)};
  const Launch how{.blocks = rows, .threads = Team::kThreads, .shared_bytes = ceil_div(codes, 4) * 16};
  return launch(kernels[static_cast<int>(dtype)], how, arguments, stream);
}
#endif
