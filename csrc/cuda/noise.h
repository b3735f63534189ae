// The sampler's noise: Philox4x32-10 words (Salmon et al., 2011) and Gumbel variates, the same bits as
// hqtvae_fast/ops/kernels/sample_logits/noise.py, which is the definition.
//
// The word of (seed, step, position, index) is lane index % 4 of the block with counter (index / 4, position, step, 0)
// and key (seed low, seed high). A block is 40 multiplications for four words, so callers ask for four at a time.
#pragma once

#include "portable.h"

namespace hqtvae {

struct Words {
  uint32_t lane[4];
};

DEVICE Words philox(Words counter, uint32_t k0, uint32_t k1) {
  auto [c0, c1, c2, c3] = counter.lane;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint32_t high0 = high_product(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = high_product(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
  }
  return {{c0, c1, c2, c3}};
}

// Words of the indices 4 block, ..., 4 block + 3.
DEVICE Words random_words(int64_t seed, int64_t step, int64_t position, int block) {
  const Words counter{
      {static_cast<uint32_t>(block), static_cast<uint32_t>(position), static_cast<uint32_t>(step), 0}};
  return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
}

// Natural logarithm of a positive normal number within 2 units in the last place, by a fixed sequence of roundings.
DEVICE float exact_ln(float x) {
  constexpr uint32_t kSqrtHalf = 0x3F3504F3u;  // bits, so that the mantissa falls in [sqrt(1/2), sqrt(2))
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kPolynomial[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                   -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                   2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  const int32_t bits = static_cast<int32_t>(as_bits(x) - kSqrtHalf);
  const float exponent = static_cast<float>(bits >> 23);
  const float f = add(as_float((static_cast<uint32_t>(bits) & 0x7FFFFFu) + kSqrtHalf), -1.0f);
  const float square = mul(f, f);
  float p = kPolynomial[0];
  for (int term = 1; term < 9; ++term) p = add(mul(p, f), kPolynomial[term]);
  float tail = mul(mul(p, f), square);
  tail = add(tail, mul(exponent, kLn2Low));
  tail = add(tail, -mul(square, 0.5f));
  return add(add(tail, f), mul(exponent, kLn2High));
}

// v = (word + 1/2) / 2^32, below 1.
DEVICE float uniform(uint32_t word) {
  const float v = mul(add(static_cast<float>(word), 0.5f), 0x1p-32f);
  return v < 0x1.fffffep-1f ? v : 0x1.fffffep-1f;
}

// -ln(-ln(1 - v)). ln(1 - v) is taken as ln(w) + (what rounding w lost) / w: small v resolve finely, 1 - v does not.
DEVICE float gumbel(uint32_t word) {
  const float v = uniform(word), w = add(1.0f, -v);
  const float lost = add(v, -add(1.0f, -w));
  return -exact_ln(add(div(lost, w), -exact_ln(w)));
}

// gumbel() within 2e-5 in a third of the instructions: for finding out which few codes are worth the exact one.
DEVICE float rough_log2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));  // absolute error 2^-22 within [1/2, 2], relative outside
  return y;
#else
  return std::log2(x);
#endif
}

DEVICE float rough_gumbel(uint32_t word) {
  constexpr float kLn2 = 0.6931471805599453f;
  const float v = uniform(word);
  const float series = v * (v * (v * (v * 0.25f + 1.0f / 3.0f) + 0.5f) + 1.0f);  // -ln(1 - v) to v^4
  const float exponential = v < 0x1p-5f ? series : -kLn2 * rough_log2(1.0f - v);
  return -kLn2 * rough_log2(exponential);
}

// A code can only win by exact scores if its rough score is at least this. Twice what rough scores may be off: the
// exponential variate by 5e-6 of itself, its logarithm by 2^-22 of up to 33, and roundings of sums.
DEVICE float near(float best_rough) {
  const float magnitude = best_rough < 0 ? -best_rough : best_rough;
  const float finite = magnitude < 3.4028234663852886e38f ? magnitude : 3.4028234663852886e38f;
  return best_rough - (6e-5f + 0x1p-21f * finite);
}

}  // namespace hqtvae
