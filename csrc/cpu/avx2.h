// What the AVX2 kernels share: eight numbers at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define HAS_AVX2 1  // this compiler can make the kernels; whether the processor can run them is asked at run time
#define AVX2 __attribute__((target("avx2,fma")))

namespace avx2 {

using bf16 = uint16_t;

inline bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

AVX2 inline __m256 load(const float* from) { return _mm256_loadu_ps(from); }
AVX2 inline __m256 load(const bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
AVX2 inline void store(__m256 values, float* to) { _mm256_storeu_ps(to, values); }
AVX2 inline void store(__m256 values, bf16* to) {  // to nearest, ties to even
  const __m256i bits = _mm256_castps_si256(values), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x10000)), nan);
  const __m256i halves = _mm256_srli_epi32(kept, 16), packed = _mm256_packus_epi32(halves, halves);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

// The last `count` numbers of a row, and zeros, which change neither its least and largest nor any sum.
template <class Number>
AVX2 inline __m256 load_part(const Number* from, int64_t count) {
  Number part[8] = {};
  std::memcpy(part, from, count * sizeof(Number));
  return load(part);
}

// Keeps a product and a sum apart that the compiler might round once.
AVX2 inline __m256 rounded(__m256 value) {
  asm("" : "+x"(value));
  return value;
}

// 2^v = 2^n 2^f, n whole and |f| <= 1/2, 2^f by its series to f^6: relative error below 3e-7. v is at least -126.
AVX2 inline __m256 exp2_ps(__m256 v) {
  const __m256 n = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(v, n);
  __m256 power = _mm256_set1_ps(0.000154035304f);
  for (const float c : {0.00133335581f, 0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1.0f})
    power = _mm256_fmadd_ps(power, f, _mm256_set1_ps(c));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(power, _mm256_castsi256_ps(exponent));
}

}  // namespace avx2

#endif
