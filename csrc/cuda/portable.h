// What lets a kernel's device functions be compiled three ways: by nvcc, by NVRTC (no standard headers), and as plain
// C++, where the tests run them on a CPU against the references.
//
// Two rules make the three agree bit for bit. Floating-point operations whose bits matter are written as add(), mul(),
// div() and fma(), each rounded once: nvcc would otherwise join a product and a sum into one operation where it likes.
// On a device they are PTX, which no option changes: CuPy compiles with -ftz=true, with which even __fadd_rn() and its
// like take subnormal numbers for zero. And code that a whole block runs together is a sequence of steps (see Team):
// within a step threads do not look at each other.
#pragma once

#if defined(__CUDACC_RTC__)
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#include <cstring>
#endif

#if defined(__CUDACC__)
#define DEVICE __device__ __forceinline__
#define ANYWHERE __host__ __device__ __forceinline__  // launchers call it too
#define UNROLL(times) _Pragma(HQTVAE_TEXT(unroll times))
#define HQTVAE_TEXT(words) #words
#else
#include <cmath>
#define DEVICE inline
#define ANYWHERE inline
#define UNROLL(times)
#endif

namespace hqtvae {

#if defined(__CUDACC__)

DEVICE float add(float a, float b) {
  float c;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE float mul(float a, float b) {
  float c;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE float div(float a, float b) {
  float c;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE float fma(float a, float b, float c) {
  float d;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}
DEVICE double as_double(float x) {
  double y;
  asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));
  return y;
}
DEVICE int nearest_int(float x) { return __float2int_rn(x); }
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
DEVICE void atomic_add(uint32_t* sum, uint32_t value) { atomicAdd(sum, value); }
DEVICE float infinity() { return __int_as_float(0x7F800000); }

#else  // plain C++, to be compiled with -ffp-contract=off

inline float add(float a, float b) { return a + b; }
inline float mul(float a, float b) { return a * b; }
inline float div(float a, float b) { return a / b; }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline double as_double(float x) { return x; }
inline int nearest_int(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline uint32_t high_product(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline void atomic_add(uint32_t* sum, uint32_t value) { *sum += value; }
inline float infinity() { return HUGE_VALF; }

#endif

DEVICE bool is_nan(float x) { return x != x; }
ANYWHERE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// bf16 and fp16 travel as their bits: the vendor's headers are neither plain C++ nor there under NVRTC.
DEVICE float from_bf16(uint16_t bits) { return as_float(uint32_t{bits} << 16); }
DEVICE float low_bf16(uint32_t pair) { return as_float(pair << 16); }
DEVICE float high_bf16(uint32_t pair) { return as_float(pair & 0xFFFF0000u); }

// Rounded to the nearest, ties to even; NaN stays NaN.
DEVICE uint16_t to_bf16(float x) {
  const uint32_t bits = as_bits(x);
  if (is_nan(x)) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Subnormal numbers, infinities and NaN included.
DEVICE float from_fp16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, rest = bits & 0x7FFFu;
  if (rest >= 0x7C00u) return as_float(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  // The exponent field moves to fp32's; multiplying by 2^112 sets its bias, and normalises what was subnormal.
  return as_float(as_bits(mul(as_float(rest << 13), as_float(0x77800000u))) | sign);
}

// The threads of a block that work on one row together. Code is written as steps, each run by all threads and followed
// by a barrier. In plain C++ the threads of a step take their turns, so what must hold is checked there too: a step
// reads nothing that another of its threads writes, atomic sums of integers apart.
struct Team {
  static constexpr int kThreads = 256;

#if defined(__CUDACC__)
  int thread;
  // A barrier of these threads alone: a warp that only copies is in the same block and does not come here.
  DEVICE void sync() const { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }
  template <class Step>
  DEVICE void each(Step step) const {
    step(thread);
    sync();
  }
#else
  void sync() const {}
  template <class Step>
  void each(Step step) const {
    for (int thread = 0; thread < kThreads; ++thread) step(thread);
  }
#endif

  // The largest, or the sum, of one number a thread. Integers, so that no order of adding shows.
  DEVICE uint64_t max(uint64_t* values) const {
    return fold(values, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  }
  DEVICE uint64_t sum(uint64_t* values) const {
    return fold(values, [](uint64_t a, uint64_t b) { return a + b; });
  }

 private:
  template <class Join>
  DEVICE uint64_t fold(uint64_t* values, Join join) const {
    for (int half = kThreads / 2; half > 0; half /= 2)
      each([&](int t) {
        if (t < half) values[t] = join(values[t], values[t + half]);
      });
    const uint64_t result = values[0];
    sync();  // all have read it before anyone writes the next ones
    return result;
  }
};

}  // namespace hqtvae
