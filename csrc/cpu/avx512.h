// What the AVX512-BF16 kernels share.
#pragma once

#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define HAS_AVX512_BF16 1  // this compiler can make the kernels; whether the processor can run them is asked at run time
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

// 2^v = 2^n 2^f, n whole and |f| <= 1/2, 2^f by its series to f^5: relative error below 3e-6.
TARGET inline __m512 exp2_ps(__m512 v) {
  const __m512 n = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(v, n);
  __m512 power = _mm512_set1_ps(0.00133335581f);
  for (const float c : {0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1.0f})
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(power, n);
}

constexpr float kLog2e = 1.44269504f;

// bf16 values 0, 2, 4, ... and 1, 3, 5, ... of a vector of 32, as fp32.
TARGET inline __m512 even_ps(__m512i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(values, 16)); }
TARGET inline __m512 odd_ps(__m512i values) {
  return _mm512_castsi512_ps(_mm512_and_si512(values, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
}

#endif
