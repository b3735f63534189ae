// Which entries of a row are the largest, without sorting it: radix selection by digits of eight bits.
//
// A float's bits, read as an unsigned number, have the float's order once the sign is dealt with. Four rounds, one a
// digit: the weights of all entries that agree with what is known so far are added up by digit in 256 bins; the bins
// are walked from the top until the target is reached; that bin's number is the next digit. With weight 1 this finds
// the k-th largest; with the entries' probabilities, the edge of top-p; with entry numbers as keys, the n-th of equal
// entries.
//
// Weights are integers. Their sums do not depend on the order in which threads add, so a row gives the same edge every
// time and on every device. Masses are 32-bit fixed point, e^(x - top) 2^32, in two words of 16 bits, so that neither
// sum overflows below 65,536 entries and both additions are the hardware's own on shared memory.
//
// Cost of a round over K entries: K/256 loads and compares a thread, as many shared-memory additions in the first round
// and far fewer later. The first digit is a sign and seven bits of exponent, of which real logits have about six:
// adding 1 to equal addresses is one instruction a warp (the compiler emits the popc form), adding masses is not, and
// takes a pass for each lane that meets another. Top-p therefore costs more than top-k.
#pragma once

#include "portable.h"

namespace hqtvae {

constexpr int kBins = 256;
static_assert(kBins == Team::kThreads, "a thread a bin");

struct SelectionScratch {
  uint32_t low[kBins], high[kBins];
  uint64_t group[16];
  uint32_t prefix;
  uint64_t above;
};

struct Edge {
  uint32_t key;    // the largest for which entries at or above it weigh `target` or more
  uint64_t above;  // what those strictly above it weigh: less than `target`
};

// In the order of the floats; -0 and 0 are one. Not for NaN.
DEVICE uint32_t ordered(float x) {
  const uint32_t own = as_bits(x), bits = own == 0x80000000u ? 0 : own;  // compared as bits: see -ftz in portable.h
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// `key(i)` uint32 and `weight(i)` uint64, at most 2^32, of entries 0 .. n - 1; `target` from 1 to the sum of all
// weights.
template <class Key, class Weight>
DEVICE Edge radix_select(Team team, SelectionScratch& s, int n, Key key, Weight weight, uint64_t target) {
  Edge edge{0, 0};
  for (int shift = 24; shift >= 0; shift -= 8) {
    team.each([&](int t) { s.low[t] = s.high[t] = 0; });
    team.each([&](int t) {
      const uint64_t known = uint64_t{edge.key} >> (shift + 8);
      for (int i = t; i < n; i += Team::kThreads) {
        const uint32_t k = key(i);
        if (uint64_t{k} >> (shift + 8) != known) continue;
        const uint32_t digit = k >> shift & 0xFF;
        const uint64_t w = weight(i);
        atomic_add(&s.low[digit], static_cast<uint32_t>(w & 0xFFFF));
        if (w >> 16) atomic_add(&s.high[digit], static_cast<uint32_t>(w >> 16));
      }
    });
    const auto bin = [&](int b) { return (uint64_t{s.high[b]} << 16) + s.low[b]; };
    team.each([&](int t) {
      if (t >= 16) return;
      uint64_t sum = 0;
      UNROLL(4)
      for (int b = 16 * t; b < 16 * t + 16; ++b) sum += bin(b);
      s.group[t] = sum;
    });
    team.each([&](int t) {  // each thread asks whether the target falls into its own bin; one says yes
      uint64_t above = edge.above;
      UNROLL(4)
      for (int g = t / 16 + 1; g < 16; ++g) above += s.group[g];
      UNROLL(4)
      for (int b = t + 1; b < (t / 16 + 1) * 16; ++b) above += bin(b);
      if (above >= target || above + bin(t) < target) return;
      s.prefix = edge.key | static_cast<uint32_t>(t) << shift;
      s.above = above;
    });
    edge = {s.prefix, s.above};
  }
  return edge;
}

// e^x 2^32 for x <= 0, rounded down, by a fixed sequence of roundings; e^0 is 2^32.
DEVICE uint64_t fixed_exp(float x) {
  if (x < -27.0f) return 0;  // below 2^-38
  constexpr float kPolynomial[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  const int n = nearest_int(mul(x, 1.44269504f));
  const float whole = static_cast<float>(n);
  const float r = add(add(x, -mul(whole, 0.693359375f)), -mul(whole, -2.12194440e-4f));
  float p = kPolynomial[0];
  for (int term = 1; term < 6; ++term) p = add(mul(p, r), kPolynomial[term]);
  const float power = add(add(mul(p, mul(r, r)), r), 1.0f);  // in [0.70, 1.42]: 24 bits behind the point
  return (static_cast<uint64_t>(mul(power, 0x1p24f)) << 8) >> -n;
}

}  // namespace hqtvae
