// Attention of a few new positions over a cache of keys and values, fp32, for x86 processors with AVX2 and FMA.
//
// As attention_bf16.cpp, whose schedule this is: a thread takes a head, 2 x 16 KB at most that are read once. A query
// meets four keys at a time, so that four sums hide each other's latency and are joined by three additions of
// neighbours. Scores, exponentials (relative 3e-7) and sums are fp32.

#include "avx2.h"

#include <cstring>

namespace {

#ifdef HAS_AVX2

using namespace avx2;

constexpr float kLog2e = 1.44269504f;

// Products of a query with four keys, or with one four times, each of `width` numbers, a multiple of 8.
AVX2 inline __m128 four_scores(const float* query, const float* const keys[4], int64_t width) {
  __m256 sum[4];
#pragma GCC unroll 4
  for (int key = 0; key < 4; ++key) sum[key] = _mm256_setzero_ps();
  for (int64_t first = 0; first < width; first += 8) {
    const __m256 q = load(query + first);
#pragma GCC unroll 4
    for (int key = 0; key < 4; ++key) sum[key] = _mm256_fmadd_ps(q, load(keys[key] + first), sum[key]);
  }
  const __m256 joined = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
  return _mm_add_ps(_mm256_castps256_ps128(joined), _mm256_extractf128_ps(joined, 1));
}

// Scores to weights that are not yet divided by their sum, which is returned. Eight at a time: `scores` has room for
// count up to a whole 8.
AVX2 inline float weigh(float* scores, int64_t count, float scale) {
  for (int64_t s = count; s % 8; ++s) scores[s] = -__builtin_inff();
  __m256 most = _mm256_set1_ps(-__builtin_inff());
  for (int64_t s = 0; s < count; s += 8) most = _mm256_max_ps(most, load(scores + s));
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  most = _mm256_set1_ps(_mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1))));
  const __m256 factor = _mm256_set1_ps(scale * kLog2e), floor = _mm256_set1_ps(-126.0f);
  __m256 total = _mm256_setzero_ps();
  for (int64_t s = 0; s < count; s += 8) {
    const __m256 score = load(scores + s), below = _mm256_mul_ps(_mm256_sub_ps(score, most), factor);
    // The maximum's second operand is what it gives for NaN. Below the floor nothing is left, of what is no score too.
    const __m256 weight = _mm256_andnot_ps(_mm256_cmp_ps(below, floor, _CMP_LT_OQ), exp2_ps(_mm256_max_ps(floor, below)));
    total = _mm256_add_ps(total, weight);
    store(weight, scores + s);
  }
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
  const __m128 pairs = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

// `vectors` x 8 numbers of the weighted sum of values, `stride` apart.
template <int vectors>
AVX2 void add_up(const float* weights, const float* values, int64_t stride, int64_t count, float norm, float* y) {
  __m256 sum[vectors];
#pragma GCC unroll 8
  for (int vector = 0; vector < vectors; ++vector) sum[vector] = _mm256_setzero_ps();
  for (int64_t s = 0; s < count; ++s) {
    const __m256 weight = _mm256_set1_ps(weights[s]);
#pragma GCC unroll 8
    for (int vector = 0; vector < vectors; ++vector)
      sum[vector] = _mm256_fmadd_ps(weight, load(values + s * stride + 8 * vector), sum[vector]);
  }
#pragma GCC unroll 8
  for (int vector = 0; vector < vectors; ++vector) store(_mm256_mul_ps(sum[vector], _mm256_set1_ps(norm)), y + 8 * vector);
}

AVX2 void attend(const float* query, const float* keys, const float* values, float* y, float* scores, int64_t width,
                 int64_t count, float scale) {
  for (int64_t s = 0; s < count; s += 4) {
    const float* four[4];
    for (int64_t key = 0; key < 4; ++key) four[key] = keys + (s + key < count ? s + key : count - 1) * width;
    _mm_storeu_ps(scores + s, four_scores(query, four, width));
  }
  const float norm = 1.0f / weigh(scores, count, scale);
  int64_t first = 0;
  for (; first + 64 <= width; first += 64) add_up<8>(scores, values + first, width, count, norm, y + first);
  for (; first < width; first += 32) add_up<4>(scores, values + first, width, count, norm, y + first);
}

#endif

}  // namespace

extern "C" {

// Whether this build has kernels for AVX2 and this processor the instructions.
int hqtvae_avx2_supported() {
#ifdef HAS_AVX2
  return avx2::supported();
#else
  return 0;
#endif
}

// As hqtvae_decode_attention_bf16.
void hqtvae_decode_attention_fp32(const float* qkv, float* keys, float* values, float* y, float* scratch, int64_t batch,
                                  int64_t steps, int64_t heads, int64_t width, int64_t capacity, int64_t start,
                                  float scale) {
#ifdef HAS_AVX2
  const int64_t row = heads * width;
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < batch * heads; ++item) {
    const float* q = qkv + (item / heads) * steps * 3 * row + item % heads * width;
    float* k = keys + item * capacity * width;
    float* v = values + item * capacity * width;
    for (int64_t t = 0; t < steps; ++t) {
      std::memcpy(k + (start + t) * width, q + (3 * t + 1) * row, width * sizeof(float));
      std::memcpy(v + (start + t) * width, q + (3 * t + 2) * row, width * sizeof(float));
    }
    float* out = y + (item / heads) * steps * row + item % heads * width;
    for (int64_t t = 0; t < steps; ++t)
      attend(q + 3 * t * row, k, v, out + t * row, scratch + item * (capacity + 16), width, start + steps, scale);
  }
#endif
}

}  // extern "C"
