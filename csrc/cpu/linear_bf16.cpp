// y = x W^T + b, or GELU of it, for skinny x: bf16 in and out, fp32 sums, on x86 processors with AVX512-BF16.
//
// A sampling step multiplies 8 or so rows by every weight of the model, so the time is that of streaming the weights
// from memory, if the arithmetic hides behind it. The schedule is made for that:
//
//   - Weights lie in panels of 32 outputs, and within a panel pair of inputs by pair of inputs: 64 values, 128 bytes,
//     in exactly the order in which VDPBF16PS wants them. A thread reads its panels front to back: one forward stream.
//     It is prefetched 8 KB ahead, which at 128 bytes in 16 cycles is 300 ns, two or three times the memory's latency.
//   - x is first laid out pair of inputs by pair of inputs too, so that it is a second forward stream. Row by row its
//     lines would be 2 * in bytes apart, which for most widths is a multiple of 4 KB, or nearly: all 8 in one set of an
//     8-way first-level cache.
//   - The sums of 8 rows x 32 outputs stay in 16 of the 32 vector registers from the first input to the last. A pair of
//     inputs then costs 2 loads of weights, 8 broadcasts of x and 16 VDPBF16PS, which a Zen 4 core starts once a
//     cycle: 128 bytes in 16 cycles, about 28 GB/s a core at 3.5 GHz, which is more than its share of memory gives.
//   - More than 8 rows take the panel again for each 8, from the second-level cache (96 KB at 1536 inputs). From there
//     on the arithmetic is the limit, so the next panel is prefetched evenly over all the passes through this one, and
//     memory works while the arithmetic does (32 rows: +20 %).
//
// Measured with 2 cores of an EPYC (Zen 4, 3 layers of preset S, 300 MB of weights, in huge pages), GB/s of weights:
// 33-42 for 8 rows, where reading them for 1 row gives 33-57 and oneDNN's kernel 20; 13.8 for 32 rows, where
// 14 is what the instruction allows and oneDNN gives 10.
//
// Every row is summed in the same order, whatever the number of rows: a picture's values do not depend on its batch.
// Values below the smallest normal number count as zero, as in every product of this instruction.
//
// Plain C interface and no headers of Python or torch: one file, one compiler call, loaded through ctypes. OpenMP is the
// one that torch has loaded (nothing links to it here), so that both share one pool of threads.

#include "avx512.h"

#include <cstring>

namespace {

constexpr int64_t kPanel = 32;  // outputs in a panel
constexpr int kRows = 8;        // rows whose sums fit the registers
constexpr int64_t kPrefetchBytes = 8192;
constexpr int64_t kPairBytes = 2 * kPanel * sizeof(uint16_t);  // a panel's weights of two inputs

#ifdef HAS_AVX512_BF16

// x Phi(x), to about 1e-6 of |x|. With z = |x| / sqrt 2, erfc(z) is a polynomial in t = 1 / (1 + p z) times exp(-z^2)
// (Abramowitz and Stegun, 7.1.26).
TARGET __m512 gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 tail = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(c));
  const __m512 power = exp2_ps(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-kLog2e)));  // exp(-z^2)
  const __m512 below = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(tail, t), power), _mm512_set1_ps(0.5f));  // Phi(-|x|)
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, below), below));
}

// `rows` x 32 outputs of one panel. x: [in / 2, rows] pairs; y: [rows, out] at the panel's first output; bias: 32 values
// or null. `ahead` is prefetched from, `stride` bytes further for each pair; where that is beyond the weights' end, a
// prefetch neither faults nor does anything.
template <int rows>
TARGET void multiply_panel(const uint16_t* panel, const uint32_t* x, const uint16_t* bias, uint16_t* y, int64_t in,
                           int64_t out, bool with_gelu, const char* ahead, int64_t stride) {
  __m512 sums[rows][2];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();

  for (int64_t i = 0; i < in; i += 2, panel += 2 * kPanel, x += rows, ahead += stride) {
    _mm_prefetch(ahead, _MM_HINT_T0);
    _mm_prefetch(ahead + 64, _MM_HINT_T0);
    const __m512bh left = (__m512bh)_mm512_loadu_si512(panel);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(panel + kPanel);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const __m512bh broadcast = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[row]));
      sums[row][0] = _mm512_dpbf16_ps(sums[row][0], left, broadcast);
      sums[row][1] = _mm512_dpbf16_ps(sums[row][1], right, broadcast);
    }
  }

  for (int half = 0; half < 2; ++half) {
    __m512 shift = _mm512_setzero_ps();
    if (bias != nullptr) {
      const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bias + 16 * half));
      shift = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    for (int row = 0; row < rows; ++row) {
      const __m512 sum = _mm512_add_ps(sums[row][half], shift);
      const __m256bh rounded = _mm512_cvtneps_pbh(with_gelu ? gelu(sum) : sum);
      std::memcpy(y + row * out + 16 * half, &rounded, sizeof rounded);
    }
  }
}

using Multiply = void (*)(const uint16_t*, const uint32_t*, const uint16_t*, uint16_t*, int64_t, int64_t, bool,
                          const char*, int64_t);
constexpr Multiply kMultiply[kRows] = {multiply_panel<1>, multiply_panel<2>, multiply_panel<3>, multiply_panel<4>,
                                       multiply_panel<5>, multiply_panel<6>, multiply_panel<7>, multiply_panel<8>};

#endif

}  // namespace

extern "C" {

// Whether this build has the kernels for AVX512-BF16 and this processor the instructions.
int hqtvae_avx512_bf16_supported() {
#ifdef HAS_AVX512_BF16
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#else
  return 0;
#endif
}

// weight [out, in], row-major -> packed [out / 32, in / 2, 32, 2]. out is a multiple of 32, in of 2.
void hqtvae_linear_bf16_pack(const uint16_t* weight, uint16_t* packed, int64_t out, int64_t in) {
#pragma omp parallel for
  for (int64_t first = 0; first < out; first += kPanel)
    for (int64_t i = 0; i < in; i += 2)
      for (int64_t o = first; o < first + kPanel; ++o)
        std::memcpy(packed + first * in + i * kPanel + (o - first) * 2, weight + o * in + i, 2 * sizeof(uint16_t));
}

// x [rows, in], packed as above, bias [out] or null -> y [rows, out]. scratch: room for as many values as x has.
void hqtvae_linear_bf16(const uint16_t* packed, const uint16_t* x, const uint16_t* bias, uint16_t* y, uint32_t* scratch,
                        int64_t rows, int64_t out, int64_t in, int with_gelu) {
#ifdef HAS_AVX512_BF16
  const int64_t groups = (rows + kRows - 1) / kRows, stride = groups == 0 ? 0 : kPairBytes / groups;
#pragma omp parallel
  {
    // Groups of 8 rows (the last may have fewer) one after another, each [in / 2, rows of the group].
    for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
      const int64_t group = rows - first_row < kRows ? rows - first_row : kRows;
      uint32_t* pairs = scratch + first_row * in / 2;
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < in / 2; ++i)
        for (int64_t row = 0; row < group; ++row)
          std::memcpy(pairs + i * group + row, x + (first_row + row) * in + 2 * i, sizeof(uint32_t));
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t first = 0; first < out; first += kPanel) {
      const uint16_t* panel = packed + first * in;
      const char* ahead = reinterpret_cast<const char*>(panel) + (groups == 1 ? kPrefetchBytes : in / 2 * kPairBytes);
      for (int64_t first_row = 0; first_row < rows; first_row += kRows, ahead += in / 2 * stride) {
        const int64_t group = rows - first_row < kRows ? rows - first_row : kRows;
        kMultiply[group - 1](panel, scratch + first_row * in / 2, bias == nullptr ? nullptr : bias + first,
                             y + first_row * out + first, in, out, with_gelu != 0, ahead, stride);
      }
    }
  }
#endif
}

}  // extern "C"
