// What the 8-bit products share: instructions, and rows rounded to 8 bits.
#pragma once

#include "avx2.h"

#ifdef HAS_AVX2
#define VNNI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

namespace int8 {

constexpr int64_t kGroup = 64;  // inputs with a scale of their own
constexpr int64_t kPanel = 16;  // outputs whose weights lie together

#ifdef HAS_AVX2

using namespace avx2;

// --------------------------------------------------------------------------------------------------------- rows of x

struct Rounding {
  float scale;
  int32_t zero;
};

AVX2 inline float least(__m256 values) {
  __m128 half = _mm_min_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  half = _mm_min_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_min_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// A group's inputs up to a whole 8 of them, where weights are 0: u, 0 to 255, in 8 bits for VNNI; u - z in 16 for AVX2.
// The scale of a group that holds an infinity or NaN is NaN, and so is whatever it is added to.
template <class Number>
AVX2 Rounding round_group(const Number* x, int64_t count, bool bytes, void* out) {
  const auto eight = [&](int64_t i) AVX2 { return count - i < 8 ? load_part(x + i, count - i) : load(x + i); };
  __m256 low = _mm256_setzero_ps(), minus_high = low, strange = low;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 values = eight(i), nothing = _mm256_sub_ps(values, values);  // NaN of what is not finite
    low = _mm256_min_ps(low, values);
    minus_high = _mm256_min_ps(minus_high, _mm256_sub_ps(_mm256_setzero_ps(), values));
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(nothing, nothing, _CMP_UNORD_Q));
  }
  const float from = least(low), to = -least(minus_high);
  float scale = (to - from) / 255.0f;
  scale = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
  const float zero = __builtin_rintf(-from / scale);
  const __m256 scales = _mm256_set1_ps(scale), zeros = _mm256_set1_ps(zero);
  const __m128i shift = _mm_set1_epi16(static_cast<int16_t>(zero));
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 whole = _mm256_round_ps(_mm256_div_ps(eight(i), scales), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 moved = _mm256_max_ps(_mm256_add_ps(whole, zeros), _mm256_setzero_ps());
    const __m256i numbers = _mm256_cvtps_epi32(_mm256_min_ps(moved, _mm256_set1_ps(255.0f)));
    const __m128i words = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(numbers, numbers), 0x08));
    if (bytes)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(static_cast<uint8_t*>(out) + i), _mm_packus_epi16(words, words));
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<int16_t*>(out) + i), _mm_sub_epi16(words, shift));
  }
  if (_mm256_movemask_ps(strange) != 0) return {__builtin_nanf(""), 0};
  return {scale, static_cast<int32_t>(zero)};
}

#endif

}  // namespace int8
