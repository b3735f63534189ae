// Rows of 8-bit numbers times a panel of 16 outputs: the inner loops of linear_int8.cpp, one for each instruction set.
#pragma once

#include "int8_rounding.h"

namespace int8 {

#ifdef HAS_AVX2

// What the products of some rows with a panel's outputs are added to, [rows, kPanel]: whole numbers within a group, then
// a product and an addition a group.
struct Pass {
  const int8_t* weights;  // of the panel, from the first of these inputs on
  int16_t* wide;          // AVX2: the same in 16 bits, made by the first pass of several
  const int16_t* totals;  // VNNI: [groups, kPanel], of the weights of a group
  const void* x;          // numbers of the rows, `stride` apart
  int64_t stride;
  const Rounding* rounding;  // of their groups, `groups` a row
  int64_t groups, inputs;    // inputs: a multiple of 4
  const char* ahead;         // prefetched from, `advance` bytes further for each input; a prefetch never faults
  int64_t advance;
};

enum class Weights { kNarrow, kWiden, kWide };  // 8 bits; 8 bits that are written in 16 for the passes that follow; 16

// Two inputs of 8 outputs, of which VPMADDWD adds both products of an output.
template <Weights kind>
AVX2 inline __m256i pairs(const int8_t* narrow, int16_t* wide) {
  if constexpr (kind == Weights::kWide) return _mm256_load_si256(reinterpret_cast<const __m256i*>(wide));
  const __m256i made = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(narrow)));
  if constexpr (kind == Weights::kWiden) _mm256_store_si256(reinterpret_cast<__m256i*>(wide), made);
  return made;
}

template <int rows, Weights kind>
AVX2 void sum_avx2(const Pass& pass, float* sums) {
  const int8_t* weights = pass.weights;
  int16_t* wide = pass.wide;
  const int16_t* x = static_cast<const int16_t*>(pass.x);
  const char* ahead = pass.ahead;
  const int64_t stride = pass.stride, advance = 4 * pass.advance;

  for (int64_t group = 0, left = pass.inputs; left > 0; ++group, left -= kGroup) {
    const int64_t fours = (left < kGroup ? left : kGroup) / 4;
    __m256i sum[rows][2];
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) sum[row][0] = sum[row][1] = _mm256_setzero_si256();
    for (int64_t four = 0; four < fours; ++four, ahead += advance) {
      _mm_prefetch(ahead, _MM_HINT_T0);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, weights += 2 * kPanel, wide += 2 * kPanel, x += 2) {
        const __m256i low = pairs<kind>(weights, wide), high = pairs<kind>(weights + kPanel, wide + kPanel);
#pragma GCC unroll 4
        for (int row = 0; row < rows; ++row) {
          int32_t two;
          std::memcpy(&two, x + row * stride, sizeof two);
          const __m256i broadcast = _mm256_set1_epi32(two);
          sum[row][0] = _mm256_add_epi32(sum[row][0], _mm256_madd_epi16(low, broadcast));
          sum[row][1] = _mm256_add_epi32(sum[row][1], _mm256_madd_epi16(high, broadcast));
          asm("" : "+x"(sum[row][0]), "+x"(sum[row][1]));  // or GCC adds products first and keeps sums in memory
        }
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {
      const __m256 scale = _mm256_set1_ps(pass.rounding[row * pass.groups + group].scale);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* const own = sums + row * kPanel + half * 8;
        store(_mm256_add_ps(load(own), rounded(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[row][half]), scale))), own);
      }
    }
  }
}

// A line of weights is 4 inputs of all outputs, one operand of VPDPBUSD.
template <int rows>
VNNI void sum_vnni(const Pass& pass, float* sums) {
  const int8_t* weights = pass.weights;
  const uint8_t* x = static_cast<const uint8_t*>(pass.x);
  const char* ahead = pass.ahead;
  const int64_t stride = pass.stride, advance = pass.advance;
  constexpr int chains = rows < 4 ? 4 : 1;  // of sums for a row, where rows alone would wait for each other
  __m512 all[rows];
  for (int row = 0; row < rows; ++row) all[row] = _mm512_loadu_ps(sums + row * kPanel);

  for (int64_t group = 0, left = pass.inputs; left > 0; ++group, left -= kGroup) {
    const int64_t steps = (left < kGroup ? left : kGroup) / 4;
    __m512i sum[rows][chains];
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; ++chain) sum[row][chain] = _mm512_setzero_si512();
    for (int64_t step = 0; step < steps; step += 4) {
#pragma GCC unroll 4
      for (int next = 0; next < 4; ++next, weights += 4 * kPanel, x += 4, ahead += 4 * advance) {
        if (step + next == steps) break;
        _mm_prefetch(ahead, _MM_HINT_T0);
        const __m512i line = _mm512_loadu_si512(weights);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
          int32_t four;
          std::memcpy(&four, x + row * stride, sizeof four);
          __m512i& own = sum[row][next % chains];
          own = _mm512_dpbusd_epi32(own, _mm512_set1_epi32(four), line);
        }
      }
    }
    const __m512i totals = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pass.totals + kPanel * group)));
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const Rounding own = pass.rounding[row * pass.groups + group];
      __m512i joined = sum[row][0];
#pragma GCC unroll 4
      for (int chain = 1; chain < chains; ++chain) joined = _mm512_add_epi32(joined, sum[row][chain]);
      const __m512i whole = _mm512_sub_epi32(joined, _mm512_mullo_epi32(_mm512_set1_epi32(own.zero), totals));
      __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(own.scale));
      asm("" : "+v"(product));  // as `rounded`
      all[row] = _mm512_add_ps(all[row], product);
    }
  }
  for (int row = 0; row < rows; ++row) _mm512_storeu_ps(sums + row * kPanel, all[row]);
}

using Sum = void (*)(const Pass&, float*);
constexpr int64_t kAvx2Rows = 4, kVnniRows = 8;
#define OF_ROWS(kind) {sum_avx2<1, kind>, sum_avx2<2, kind>, sum_avx2<3, kind>, sum_avx2<4, kind>}
constexpr Sum kAvx2Sums[3][kAvx2Rows] = {OF_ROWS(Weights::kNarrow), OF_ROWS(Weights::kWiden), OF_ROWS(Weights::kWide)};
#undef OF_ROWS
constexpr Sum kVnniSums[kVnniRows] = {sum_vnni<1>, sum_vnni<2>, sum_vnni<3>, sum_vnni<4>,
                                      sum_vnni<5>, sum_vnni<6>, sum_vnni<7>, sum_vnni<8>};

#endif

}  // namespace int8
