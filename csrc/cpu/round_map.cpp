// Maps in uint8 by a scale that is known beforehand, fp32 or bf16, of one map or of the sum of two.
//
// One pass: a map of 128x128x128 in fp32 is 8.4 MB, read once and written in a quarter, where torch's operators for the
// same numbers pass over it five times.

#include <algorithm>

#include "maps.h"

namespace {

constexpr int64_t kRun = 16384;  // values that a thread takes at a time

template <typename T>
INLINE void run_round(const T* x, const T* residual, int64_t count, const Rounding& r, uint8_t* out) {
  if (residual != nullptr)
    for (int64_t i = 0; i < count; ++i) out[i] = rounded(stored<T>(widen(x[i]) + widen(residual[i])), r);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = rounded(widen(x[i]), r);
}

#define KERNEL(T)                                                                                                  \
  MANY_TARGETS void round_##T(const T* x, const T* residual, int64_t count, const Rounding& r, uint8_t* out) {     \
    run_round(x, residual, count, r, out);                                                                         \
  }
KERNEL(float)
KERNEL(bf16)
#undef KERNEL

template <typename T, auto kernel>
void round_all(const T* x, const T* residual, uint8_t* out, int64_t count, const Rounding& r) {
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < count; start += kRun)
    kernel(x + start, residual != nullptr ? residual + start : nullptr, std::min(kRun, count - start), r, out + start);
}

}  // namespace

extern "C" {

// x, residual (or null), out: count values.
void hqtvae_round_map_fp32(const float* x, const float* residual, uint8_t* out, int64_t count, float inverse,
                           int zero) {
  round_all<float, round_float>(x, residual, out, count, Rounding{inverse, zero});
}
void hqtvae_round_map_bf16(const bf16* x, const bf16* residual, uint8_t* out, int64_t count, float inverse,
                           int zero) {
  round_all<bf16, round_bf16>(x, residual, out, count, Rounding{inverse, zero});
}

}  // extern "C"
