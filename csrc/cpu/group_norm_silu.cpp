// GroupNorm and x*sigmoid(x) of channels-last maps [B, HW, C], fp32 or bf16, forward and backward.
//
// A map of 256x256x128 in fp32 is 34 MB: it passes the caches, so passes over memory are what counts. Two a direction:
// forward one for the statistics (with the sum of two maps, where that is wanted) and one for the result, where a
// normalisation, an activation and an addition take four; backward one for the sums and one for the gradient.
//
// An image is cut into `splits` runs of rows, whatever the number of threads: results depend on neither it nor the
// batch. A run is taken in blocks that stay in the first-level cache, each with its own means, and squares are of
// differences from them; runs and blocks are joined as Chan et al. (1979) do. (Sums of squares less the squared mean,
// as torch's own channels-last normalisation has them, lose all digits where the mean is a few hundred deviations.)
//
// Plain C++, loops over channels innermost: the compiler's to vectorise, for each kind of processor.

#include <algorithm>
#include <cmath>

#include "maps.h"

namespace {

constexpr int64_t kChannels = 2048;    // at most
constexpr int64_t kBlockValues = 4096;  // 16 KB of fp32

// e^v: 2^n 2^f, n whole and |f| <= 1/2, 2^f by its series to f^7: relative error below 2e-7 for v in [-87, 88], held
// there beyond. No library call: the compiler vectorises none.
INLINE float exponential(float v) {
  v = v < -87.0f ? -87.0f : v;
  v = v > 88.0f ? 88.0f : v;
  const float scaled = v * 1.44269504f;
  const float whole = (scaled + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: what is left of it is a whole number
  // ln 2 in two parts, so that the product with a whole number up to 127 is exact in the first
  const float rest = (v - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.98412698e-4f;
  power = power * rest + 1.38888889e-3f;
  power = power * rest + 8.33333333e-3f;
  power = power * rest + 4.16666667e-2f;
  power = power * rest + 1.66666667e-1f;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return power * scale;
}

// NaN reaches v itself in the caller, so that min and max above may swallow it.
INLINE float sigmoid(float v) { return 1.0f / (1.0f + exponential(-v)); }

struct Shape {
  int64_t B, HW, C, G, splits;
  int64_t first(int64_t split) const { return HW * split / splits; }
  int64_t rows(int64_t split) const { return first(split + 1) - first(split); }
  int64_t block() const { return std::max<int64_t>(1, kBlockValues / C); }
};

// Mean and summed squared differences of each channel of `count` rows, joined to those of `before` rows.
template <typename T>
INLINE void join_block(const T* x, int64_t count, int64_t before, int64_t C, float* mean, float* m2) {
  float block_mean[kChannels], block_m2[kChannels];
  for (int64_t c = 0; c < C; ++c) block_mean[c] = block_m2[c] = 0.0f;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t c = 0; c < C; ++c) block_mean[c] += widen(x[row * C + c]) - widen(x[c]);
  const float share = 1.0f / static_cast<float>(count);
  for (int64_t c = 0; c < C; ++c) block_mean[c] = block_mean[c] * share + widen(x[c]);
  for (int64_t row = 0; row < count; ++row)
    for (int64_t c = 0; c < C; ++c) {
      const float off = widen(x[row * C + c]) - block_mean[c];
      block_m2[c] += off * off;
    }
  const float part = static_cast<float>(count) / static_cast<float>(before + count);
  for (int64_t c = 0; c < C; ++c) {
    const float off = block_mean[c] - mean[c];
    mean[c] += off * part;
    m2[c] += block_m2[c] + off * off * part * static_cast<float>(before);
  }
}

// One run's means and summed squares a group, [2, G] in double: there are few, and what is joined next costs nothing.
template <typename T>
INLINE void run_statistics(const T* x, const T* residual, T* total, int64_t rows, const Shape& s, double* out) {
  float mean[kChannels], m2[kChannels];
  for (int64_t c = 0; c < s.C; ++c) mean[c] = m2[c] = 0.0f;
  for (int64_t row = 0; row < rows; row += s.block()) {
    const int64_t count = std::min(s.block(), rows - row), at = row * s.C;
    if (residual != nullptr)
      for (int64_t i = at; i < at + count * s.C; ++i) narrow(widen(x[i]) + widen(residual[i]), total + i);
    join_block(residual != nullptr ? total + at : x + at, count, row, s.C, mean, m2);
  }
  const int64_t size = s.C / s.G;
  for (int64_t g = 0; g < s.G; ++g) {
    double sum = 0.0, squares = 0.0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += mean[c];
    const double middle = sum / static_cast<double>(size);
    for (int64_t c = g * size; c < (g + 1) * size; ++c)
      squares += m2[c] + static_cast<double>(rows) * (mean[c] - middle) * (mean[c] - middle);
    out[g] = middle;
    out[s.G + g] = squares;
  }
}

// All runs of an image, [splits, 2, G], to a mean and 1 / deviation a group.
void join_runs(const double* runs, const Shape& s, float eps, float* mean, float* rstd) {
  for (int64_t g = 0; g < s.G; ++g) {
    double middle = 0.0, squares = 0.0;
    for (int64_t k = 0; k < s.splits; ++k) middle += runs[2 * k * s.G + g] * static_cast<double>(s.rows(k));
    middle /= static_cast<double>(s.HW);
    for (int64_t k = 0; k < s.splits; ++k) {
      const double off = runs[2 * k * s.G + g] - middle;
      squares += runs[(2 * k + 1) * s.G + g] + static_cast<double>(s.rows(k) * (s.C / s.G)) * off * off;
    }
    mean[g] = static_cast<float>(middle);
    rstd[g] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(s.HW * (s.C / s.G)) + eps));
  }
}

// What a result becomes: a value of T, or the 8-bit number of it.
template <typename T>
INLINE void put(float value, const Rounding&, T* out) { narrow(value, out); }
template <typename T>
INLINE void put(float value, const Rounding& r, uint8_t* out) { *out = rounded(stored<T>(value), r); }

template <typename T, typename Out>
INLINE void run_normalise(const T* x, const float* weight, const float* bias, const float* mean, const float* rstd,
                          Out* y, int64_t rows, const Shape& s, bool silu, const Rounding& r) {
  float middle[kChannels], scale[kChannels];
  const int64_t size = s.C / s.G;
  for (int64_t c = 0; c < s.C; ++c) {
    middle[c] = mean[c / size];
    scale[c] = rstd[c / size] * weight[c];
  }
  for (int64_t row = 0; row < rows; ++row, x += s.C, y += s.C)
    if (silu)
      for (int64_t c = 0; c < s.C; ++c) {
        const float n = (widen(x[c]) - middle[c]) * scale[c] + bias[c];
        put<T>(n * sigmoid(n), r, y + c);
      }
    else
      for (int64_t c = 0; c < s.C; ++c) put<T>((widen(x[c]) - middle[c]) * scale[c] + bias[c], r, y + c);
}

// Gradient of n = normalised * weight + bias, from that of silu(n) or of n itself.
template <bool silu>
INLINE float before_activation(float grad, float n) {
  if (!silu) return grad;
  const float gate = sigmoid(n);
  return grad * gate * (1.0f + n * (1.0f - gate));
}

template <bool silu, typename T>
INLINE void run_sums(const T* dy, const T* x, const float* weight, const float* bias, const float* mean,
                     const float* rstd, int64_t rows, const Shape& s, float* out) {
  float sum[kChannels], dot[kChannels], middle[kChannels], scale[kChannels];
  for (int64_t c = 0; c < s.C; ++c) {
    sum[c] = dot[c] = 0.0f;
    middle[c] = mean[c / (s.C / s.G)];
    scale[c] = rstd[c / (s.C / s.G)];
  }
  for (int64_t row = 0; row < rows; ++row, x += s.C, dy += s.C)
    for (int64_t c = 0; c < s.C; ++c) {
      const float unit = (widen(x[c]) - middle[c]) * scale[c];
      const float grad = before_activation<silu>(widen(dy[c]), unit * weight[c] + bias[c]);
      sum[c] += grad;
      dot[c] += grad * unit;
    }
  for (int64_t c = 0; c < s.C; ++c) {
    out[c] = sum[c];
    out[s.C + c] = dot[c];
  }
}

// sums [2, C] of one image, joined over its runs: of the gradient before the activation, and of it times (x - mean) /
// deviation.
template <bool silu, typename T>
INLINE void run_gradient(const T* dy, const T* x, const float* weight, const float* bias, const float* mean,
                         const float* rstd, const float* sums, T* dx, int64_t rows, const Shape& s) {
  float middle[kChannels], scale[kChannels], sum[kChannels], dot[kChannels];
  const int64_t size = s.C / s.G;
  for (int64_t g = 0; g < s.G; ++g) {
    double all = 0.0, along = 0.0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      all += static_cast<double>(sums[c]) * weight[c];
      along += static_cast<double>(sums[s.C + c]) * weight[c];
    }
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      middle[c] = mean[g];
      scale[c] = rstd[g];
      sum[c] = static_cast<float>(all / static_cast<double>(s.HW * size));
      dot[c] = static_cast<float>(along / static_cast<double>(s.HW * size));
    }
  }
  for (int64_t row = 0; row < rows; ++row, x += s.C, dy += s.C, dx += s.C)
    for (int64_t c = 0; c < s.C; ++c) {
      const float unit = (widen(x[c]) - middle[c]) * scale[c];
      const float grad = before_activation<silu>(widen(dy[c]), unit * weight[c] + bias[c]);
      narrow((grad * weight[c] - sum[c] - unit * dot[c]) * scale[c], dx + c);
    }
}

// The functions above for each kind of processor, one run at a time: what stands inside an OpenMP region is compiled
// for the plainest one alone, so the regions are outside.
#define KERNELS(T)                                                                                                     \
  MANY_TARGETS void statistics_##T(const T* x, const T* residual, T* total, int64_t rows, const Shape& s,              \
                                   double* out) {                                                                      \
    run_statistics(x, residual, total, rows, s, out);                                                                  \
  }                                                                                                                    \
  MANY_TARGETS void normalise_##T(const T* x, const float* weight, const float* bias, const float* mean,               \
                                  const float* rstd, T* y, int64_t rows, const Shape& s, bool silu,                    \
                                  const Rounding& r) {                                                                 \
    run_normalise(x, weight, bias, mean, rstd, y, rows, s, silu, r);                                                   \
  }                                                                                                                    \
  MANY_TARGETS void normalise_rounded_##T(const T* x, const float* weight, const float* bias, const float* mean,       \
                                          const float* rstd, uint8_t* y, int64_t rows, const Shape& s, bool silu,      \
                                          const Rounding& r) {                                                         \
    run_normalise(x, weight, bias, mean, rstd, y, rows, s, silu, r);                                                   \
  }                                                                                                                    \
  MANY_TARGETS void sums_##T(const T* dy, const T* x, const float* weight, const float* bias, const float* mean,       \
                             const float* rstd, int64_t rows, const Shape& s, bool silu, float* out) {                 \
    if (silu) run_sums<true>(dy, x, weight, bias, mean, rstd, rows, s, out);                                           \
    else run_sums<false>(dy, x, weight, bias, mean, rstd, rows, s, out);                                               \
  }                                                                                                                    \
  MANY_TARGETS void gradient_##T(const T* dy, const T* x, const float* weight, const float* bias, const float* mean,   \
                                 const float* rstd, const float* sums, T* dx, int64_t rows, const Shape& s,            \
                                 bool silu) {                                                                          \
    if (silu) run_gradient<true>(dy, x, weight, bias, mean, rstd, sums, dx, rows, s);                                  \
    else run_gradient<false>(dy, x, weight, bias, mean, rstd, sums, dx, rows, s);                                      \
  }
KERNELS(float)
KERNELS(bf16)
#undef KERNELS

// total = x + residual if there is a residual; y = silu(norm(total or x)), as T or in 8 bits.
template <typename T, typename Out, auto statistics, auto apply>
void forward(const T* x, const T* residual, T* total, const float* weight, const float* bias, Out* y, float* mean,
                    float* rstd, double* runs, const Shape& s, float eps, bool silu, const Rounding& r) {
  const T* source = residual != nullptr ? total : x;
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < s.B * s.splits; ++item) {
    const int64_t split = item % s.splits, at = (item / s.splits * s.HW + s.first(split)) * s.C;
    if (residual != nullptr)
      statistics(x + at, residual + at, total + at, s.rows(split), s, runs + item * 2 * s.G);
    else
      statistics(x + at, nullptr, nullptr, s.rows(split), s, runs + item * 2 * s.G);
  }
  for (int64_t b = 0; b < s.B; ++b) join_runs(runs + b * s.splits * 2 * s.G, s, eps, mean + b * s.G, rstd + b * s.G);
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < s.B * s.splits; ++item) {
    const int64_t b = item / s.splits, split = item % s.splits, at = (b * s.HW + s.first(split)) * s.C;
    apply(source + at, weight, bias, mean + b * s.G, rstd + b * s.G, y + at, s.rows(split), s, silu, r);
  }
}

template <typename T, auto collect, auto apply>
void backward(const T* dy, const T* x, const float* weight, const float* bias, const float* mean,
                     const float* rstd, T* dx, float* runs, float* sums, const Shape& s, bool silu) {
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < s.B * s.splits; ++item) {
    const int64_t b = item / s.splits, split = item % s.splits, at = (b * s.HW + s.first(split)) * s.C;
    collect(dy + at, x + at, weight, bias, mean + b * s.G, rstd + b * s.G, s.rows(split), s, silu,
            runs + item * 2 * s.C);
  }
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t c = 0; c < 2 * s.C; ++c) {
      double all = 0.0;
      for (int64_t split = 0; split < s.splits; ++split) all += runs[(b * s.splits + split) * 2 * s.C + c];
      sums[b * 2 * s.C + c] = static_cast<float>(all);
    }
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < s.B * s.splits; ++item) {
    const int64_t b = item / s.splits, split = item % s.splits, at = (b * s.HW + s.first(split)) * s.C;
    apply(dy + at, x + at, weight, bias, mean + b * s.G, rstd + b * s.G, sums + b * 2 * s.C, dx + at, s.rows(split), s,
          silu);
  }
}

}  // namespace

extern "C" {

// x, residual, total, y [B, HW, C]; residual and total both null where there is nothing to add. weight, bias [C]. Out:
// mean, rstd [B, G]. runs: room for [B, splits, 2, G]. C at most 2048, a multiple of G; splits at most HW.
#define FORWARD(name, T)                                                                                               \
  void name(const T* x, const T* residual, T* total, const float* weight, const float* bias, T* y, float* mean,        \
            float* rstd, double* runs, int64_t B, int64_t HW, int64_t C, int64_t G, int64_t splits, float eps,         \
            int silu) {                                                                                                \
    forward<T, T, statistics_##T, normalise_##T>(x, residual, total, weight, bias, y, mean, rstd, runs,                \
                                                 Shape{B, HW, C, G, splits}, eps, silu != 0, Rounding{});              \
  }

// The same with y in uint8: round(y * inverse) + zero, of y as T would hold it.
#define ROUNDED(name, T)                                                                                               \
  void name(const T* x, const T* residual, T* total, const float* weight, const float* bias, uint8_t* y, float* mean,  \
            float* rstd, double* runs, int64_t B, int64_t HW, int64_t C, int64_t G, int64_t splits, float eps,         \
            int silu, float inverse, int zero) {                                                                       \
    forward<T, uint8_t, statistics_##T, normalise_rounded_##T>(x, residual, total, weight, bias, y, mean, rstd, runs,  \
                                                               Shape{B, HW, C, G, splits}, eps, silu != 0,             \
                                                               Rounding{inverse, zero});                               \
  }

// dx [B, HW, C] and sums [B, 2, C]: an image's share of the gradients of bias and weight. runs: room for
// [B, splits, 2, C].
#define BACKWARD(name, T)                                                                                              \
  void name(const T* dy, const T* x, const float* weight, const float* bias, const float* mean, const float* rstd,     \
            T* dx, float* runs, float* sums, int64_t B, int64_t HW, int64_t C, int64_t G, int64_t splits, int silu) {  \
    backward<T, sums_##T, gradient_##T>(dy, x, weight, bias, mean, rstd, dx, runs, sums, Shape{B, HW, C, G, splits},   \
                                        silu != 0);                                                                    \
  }

FORWARD(hqtvae_group_norm_silu_fp32, float)
FORWARD(hqtvae_group_norm_silu_bf16, bf16)
ROUNDED(hqtvae_group_norm_silu_rounded_fp32, float)
ROUNDED(hqtvae_group_norm_silu_rounded_bf16, bf16)
BACKWARD(hqtvae_group_norm_silu_backward_fp32, float)
BACKWARD(hqtvae_group_norm_silu_backward_bf16, bf16)

}  // extern "C"
