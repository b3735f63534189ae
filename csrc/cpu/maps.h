// What kernels of channels-last maps share: numbers read as fp32 and written as what they are stored in, in code that
// the compiler vectorises for each kind of processor.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_TARGETS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MANY_TARGETS
#endif
#define INLINE inline __attribute__((always_inline))  // into each of the targets

namespace {

using bf16 = uint16_t;

INLINE float widen(float value) { return value; }
INLINE float widen(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
INLINE void narrow(float value, float* out) { *out = value; }
// To nearest, ties to even. NaN stays NaN unless its last 16 bits make the sum carry: neither arithmetic nor bf16
// inputs make such a one.
INLINE void narrow(float value, bf16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  *out = static_cast<bf16>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}
// As a map of T would hold it.
template <typename T>
INLINE float stored(float value) {
  T narrowed;
  narrow(value, &narrowed);
  return widen(narrowed);
}

// Numbers 0 to 255 that stand for (number - zero) / inverse.
struct Rounding {
  float inverse;
  int32_t zero;
};

// To the nearest, ties to even; beyond the numbers the last of them, and for NaN that of 0. Cut off before it is
// rounded, so that the product is rounded by itself, and not fused with the sum.
INLINE uint8_t rounded(float value, const Rounding& r) {
  const float zero = static_cast<float>(r.zero);
  float number = value * r.inverse;
  number = number == number ? number : 0.0f;
  number = number < -zero ? -zero : number;
  number = number > 255.0f - zero ? 255.0f - zero : number;
  const float sum = number + 12582912.0f;  // 1.5 * 2^23: its last 8 bits are 0
  uint32_t bits;
  std::memcpy(&bits, &sum, 4);
  return static_cast<uint8_t>(bits + static_cast<uint32_t>(r.zero));
}

}  // namespace
