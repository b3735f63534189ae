// Attention of a few new positions over a cache of keys and values, bf16, for x86 processors with AVX512-BF16.
//
// A step of preset S at batch 8 does this 192 times a layer (8 images x 24 heads), each on one query of 64 and at most
// 64 cached positions: 16 KB that are read once, so there is nothing to block or to tile. A thread takes a head, keeps
// its query in registers and its scores in a small array, and writes the result where the output projection reads it.
// The new keys and values go into the cache first, straight from the fused projection's output.
//
// Scores, exponentials and sums are fp32; only the result is rounded. A layer takes 0.13 ms, weights and caches cold,
// where two batched products, a softmax and their copies take 0.4 (EPYC, Zen 4, 2 cores, 32-64 positions).

#include "avx512.h"

#include <cstring>

namespace {

#ifdef HAS_AVX512_BF16

// One query against `count` positions; scores: room for count, rounded up to 16. parts: E / 32.
template <int parts>
TARGET void attend(const uint16_t* query, const uint16_t* keys, const uint16_t* values, uint16_t* y, float* scores,
                   int64_t count, float scale) {
  constexpr int kWidth = 32 * parts;
  __m512bh q[parts];
  for (int part = 0; part < parts; ++part) q[part] = (__m512bh)_mm512_loadu_si512(query + 32 * part);
  for (int64_t s = 0; s < count; ++s) {
    __m512 sum = _mm512_setzero_ps();
    for (int part = 0; part < parts; ++part)
      sum = _mm512_dpbf16_ps(sum, q[part], (__m512bh)_mm512_loadu_si512(keys + s * kWidth + 32 * part));
    scores[s] = _mm512_reduce_add_ps(sum);
  }

  const __m512 factor = _mm512_set1_ps(scale * kLog2e), lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 most = lowest;
  for (int64_t s = 0; s < count; s += 16) {
    const __mmask16 inside = count - s >= 16 ? 0xFFFF : (1u << (count - s)) - 1;
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, inside, scores + s));
  }
  most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 total = _mm512_setzero_ps();
  for (int64_t s = 0; s < count; s += 16) {
    const __mmask16 inside = count - s >= 16 ? 0xFFFF : (1u << (count - s)) - 1;
    const __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_mask_loadu_ps(lowest, inside, scores + s), most), factor);
    const __m512 weight = _mm512_maskz_mov_ps(inside, exp2_ps(below));
    total = _mm512_add_ps(total, weight);
    _mm512_mask_storeu_ps(scores + s, inside, weight);
  }

  __m512 even[parts], odd[parts];
  for (int part = 0; part < parts; ++part) even[part] = odd[part] = _mm512_setzero_ps();
  for (int64_t s = 0; s < count; ++s) {
    const __m512 weight = _mm512_set1_ps(scores[s]);
    for (int part = 0; part < parts; ++part) {
      const __m512i value = _mm512_loadu_si512(values + s * kWidth + 32 * part);
      even[part] = _mm512_fmadd_ps(weight, even_ps(value), even[part]);
      odd[part] = _mm512_fmadd_ps(weight, odd_ps(value), odd[part]);
    }
  }
  const __m512 norm = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int part = 0; part < parts; ++part) {
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(even[part], norm));
    const __m256i high = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(odd[part], norm));
    const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    _mm512_storeu_si512(y + 32 * part, both);
  }
}

using Attend = void (*)(const uint16_t*, const uint16_t*, const uint16_t*, uint16_t*, float*, int64_t, float);
constexpr Attend kAttend[] = {attend<1>, attend<2>, attend<3>, attend<4>};

#endif

}  // namespace

extern "C" {

// qkv [batch, steps, 3, heads, width]: queries, keys and values of the new positions. keys, values [batch, heads,
// capacity, width]: the new ones are written at `start`. y [batch, steps, heads, width]: every new position sees all
// start + steps. width: 32, 64, 96 or 128; scratch: capacity + 16 floats for each head of the batch.
void hqtvae_decode_attention_bf16(const uint16_t* qkv, uint16_t* keys, uint16_t* values, uint16_t* y, float* scratch,
                                  int64_t batch, int64_t steps, int64_t heads, int64_t width, int64_t capacity,
                                  int64_t start, float scale) {
#ifdef HAS_AVX512_BF16
  const int64_t row = heads * width;
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < batch * heads; ++item) {
    const uint16_t* q = qkv + (item / heads) * steps * 3 * row + item % heads * width;
    uint16_t* k = keys + item * capacity * width;
    uint16_t* v = values + item * capacity * width;
    for (int64_t t = 0; t < steps; ++t) {
      std::memcpy(k + (start + t) * width, q + (3 * t + 1) * row, width * sizeof(uint16_t));
      std::memcpy(v + (start + t) * width, q + (3 * t + 2) * row, width * sizeof(uint16_t));
    }
    uint16_t* out = y + (item / heads) * steps * row + item % heads * width;
    for (int64_t t = 0; t < steps; ++t)
      kAttend[width / 32 - 1](q + 3 * t * row, k, v, out + t * row, scratch + item * (capacity + 16), start + steps,
                              scale);
  }
#endif
}

}  // extern "C"
