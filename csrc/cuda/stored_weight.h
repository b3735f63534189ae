// How a weight is stored: bf16, or a byte with a scale a row that its sums are multiplied by (Finish in
// prediction_head.cu). Eight of a lane's weights become pairs of bf16, which hold every such byte's value exactly: the
// tensor cores multiply the same numbers as the reference does.
//
// Widening is work of every lane for every weight, so it must cost less than the byte that it saves: 4 instructions for
// two weights. Of a 4 KB unit that is 8,192, of which the integer ones go at 64 a cycle and multiprocessor: 100 cycles
// with three of them (int8; 130 with four, fp8), where the copies take 280 (H100).
#pragma once

#include "portable.h"

namespace hqtvae {

// Bytes of (b, a), 0 .. 3 from a: one a nibble of `which`, the lowest first.
DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t which) {
#if defined(__CUDACC__)
  return __byte_perm(a, b, which);
#else
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i, which >>= 4)
    picked |= static_cast<uint32_t>((uint64_t{b} << 32 | a) >> 8 * (which & 7) & 0xFF) << 8 * i;
  return picked;
#endif
}

// Of two pairs of bf16, a b + c, rounded once.
DEVICE uint32_t fma_bf16_pairs(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDACC__)
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
#else
  const float low = low_bf16(a) * low_bf16(b) + low_bf16(c), high = high_bf16(a) * high_bf16(b) + high_bf16(c);
  return uint32_t{to_bf16(high)} << 16 | to_bf16(low);
#endif
}

struct Eight {  // weights, in pairs of bf16
  uint32_t pair[4];
};

struct Bf16Weight {
  static constexpr int kBytes = 2;
};

// A byte b of two's complement, u its low seven bits and s its sign, is u - 128 s. Below an upper byte 0x43 it reads as
// a bf16 number from 128 on: without the sign bit that is 128 + u, with the sign bit alone 128 or 256, which is 128 +
// 128 s. The difference is the value, and exact.
struct Int8Weight {
  static constexpr int kBytes = 1;

  DEVICE static uint32_t pair(uint32_t word, uint32_t which) {
    constexpr uint32_t kOne = 0x3F803F80u;
    const uint32_t above = pick_bytes(word, 0x43434343u, which);
    const uint32_t less = (above & 0xFF80FF80u) | 0x80008000u;  // -128 or -256
    return fma_bf16_pairs(above & 0xFF7FFF7Fu, kOne, less);
  }
  DEVICE static Eight widen(uint32_t a, uint32_t b) {
    return {{pair(a, 0x4140), pair(a, 0x4342), pair(b, 0x4140), pair(b, 0x4342)}};
  }
};

// e4m3: sign, four bits of exponent (bias 7), three of mantissa. Moved down by four bits from the upper byte, all but
// the sign, they are a bf16 number 2^120 (of the biases' difference) too small, subnormal where the byte is: one
// multiplication sets both right. Not for NaN.
struct Fp8Weight {
  static constexpr int kBytes = 1;

  DEVICE static uint32_t pair(uint32_t word, uint32_t which) {
    constexpr uint32_t kScale = 0x7B807B80u, kMinusZero = 0x80008000u;  // 2^120; adding -0 changes nothing
    const uint32_t upper = pick_bytes(word, 0, which);
    return fma_bf16_pairs((upper & 0x80008000u) | (upper >> 4 & 0x07F007F0u), kScale, kMinusZero);
  }
  DEVICE static Eight widen(uint32_t a, uint32_t b) {
    return {{pair(a, 0x1404), pair(a, 0x3424), pair(b, 0x1404), pair(b, 0x3424)}};
  }
};

}  // namespace hqtvae
