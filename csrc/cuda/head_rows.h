// What the prediction head multiplies: rows as they are stored, or through a LayerNorm; how a pass's first rows are
// made; and its attention.
#pragma once

#include "head_table.h"
#include "weight_stream.h"

namespace hqtvae {

// A product's activations, rows of bf16 `stride` apart, and the LayerNorm that they go through first if there is one
// (weight not null): every block makes it again as it loads the rows. Each row's mean and scale are in shared memory,
// two floats at `statistics`.
struct Activations {
  const uint16_t* x;
  int stride;
  const uint16_t *weight = nullptr, *bias = nullptr;
  uint32_t statistics = 0;

  struct Norm {
    uint4 weight, bias;
  };
  DEVICE Norm norm(int input) const {
    if (weight == nullptr) return {};
    return {load_16_bytes(weight + input), load_16_bytes(bias + input)};
  }
  DEVICE uint4 load(int row, int input) const { return load_16_bytes(x + row * stride + input); }
  DEVICE uint4 ready(uint4 v, const Norm& norm, int row) const {
    if (weight == nullptr) return v;
    const auto [m, s] = load_shared_floats(statistics + 8 * row);
    const uint4 &w = norm.weight, &b = norm.bias;
    return {normal(v.x, w.x, b.x, m, s), normal(v.y, w.y, b.y, m, s), normal(v.z, w.z, b.z, m, s),
            normal(v.w, w.w, b.w, m, s)};
  }

 private:
  DEVICE static uint32_t normal(uint32_t x, uint32_t w, uint32_t b, float mean, float scale) {
    const float low = mul(add(low_bf16(x), -mean), scale), high = mul(add(high_bf16(x), -mean), scale);
    return pack_bf16(fma(low, low_bf16(w), low_bf16(b)), fma(high, high_bf16(w), high_bf16(b)));
  }
};

// What a pass begins with: to [width] = a + b, rounded to bf16 (h + p_0, E(code) + p_k).
DEVICE void write_sum(Team team, uint16_t* to, const uint16_t* a, const uint16_t* b, int width) {
  for (int i = 2 * team.thread; i < width; i += 2 * Team::kThreads) {
    const uint32_t x = load_4_bytes(a + i), y = load_4_bytes(b + i);
    *reinterpret_cast<uint32_t*>(to + i) = pack_bf16(low_bf16(x) + low_bf16(y), high_bf16(x) + high_bf16(y));
  }
}

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// Mean and 1 / standard deviation of each row, a warp a row, in one pass: a lane sums its values less the first of
// them, and their squares, then lanes join their means and squared deviations pair by pair (Chan et al., 1979). So a
// mean far from zero costs no digits, and no value is kept.
DEVICE void row_statistics(Team team, float2* statistics, const uint16_t* x, int rows, int width, float epsilon) {
  const int thread = opaque(team.thread), warp = thread / 32, lane = thread % 32;
#pragma unroll 1
  for (int row = warp; row < rows; row += kWarps) {
    const uint16_t* values = x + row * width + 8 * lane;
    const float pivot = from_bf16(load_2_bytes(values));
    float sum = 0.0f, squares = 0.0f, count = static_cast<float>(width / 32);
    const auto take = [&](float value) {
      const float apart = add(value, -pivot);
      sum = add(sum, apart), squares = fma(apart, apart, squares);
    };
#pragma unroll 3  // so many on their way at once; all six of S would spill
    for (int i = 0; i < width; i += 32 * 8) {
      const uint4 v = load_16_bytes(values + i);
      const uint32_t pairs[] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (const uint32_t pair : pairs) take(low_bf16(pair)), take(high_bf16(pair));
    }
    float mean = add(pivot, __fdividef(sum, count)), deviations = add(squares, -__fdividef(mul(sum, sum), count));
#pragma unroll
    for (int other = 16; other > 0; other /= 2, count *= 2.0f) {
      const float theirs = __shfl_xor_sync(~0u, mean, other), apart = add(theirs, -mean);
      const float joined = add(deviations, __shfl_xor_sync(~0u, deviations, other));
      deviations = fma(mul(apart, apart), 0.5f * count, joined);
      mean = mul(0.5f, add(mean, theirs));
    }
    if (lane == 0) statistics[row] = {mean, rsqrtf(add(__fdividef(deviations, count), epsilon))};
  }
  team.sync();
}

DEVICE float gelu(float x, bool sigmoid) {
  if (sigmoid) return __fdividef(x, add(1.0f, __expf(mul(-1.702f, x))));
  return mul(mul(0.5f, x), add(1.0f, erff(mul(x, 0.70710678f))));
}

// Four queries of one image and attention head against five keys, a warp each; a lane has two of the 64 values.
DEVICE void attend(Team team, const HeadTable& model, int layer, int images) {
  const int thread = opaque(team.thread), lane = thread % 32;
  const int D = static_cast<int>(model.dim), heads = static_cast<int>(model.heads);
  for (int task = blockIdx.x * kWarps + thread / 32; task < images * heads; task += gridDim.x * kWarps) {
    const int image = task / heads, column = task % heads * kHeadWidth + 2 * lane;
    const uint16_t* first = model.first + (int64_t{layer} * kMostImages + image) * 2 * D + column;
    const uint16_t* rest = model.qkv + int64_t{image} * kBottoms * 3 * D + column;
    uint32_t q[kBottoms], k[kBottoms + 1], v[kBottoms + 1];
    k[0] = load_4_bytes(first), v[0] = load_4_bytes(first + D);
#pragma unroll
    for (int i = 0; i < kBottoms; ++i) {
      const uint16_t* row = rest + i * 3 * D;
      q[i] = load_4_bytes(row), k[i + 1] = load_4_bytes(row + D), v[i + 1] = load_4_bytes(row + 2 * D);
    }
#pragma unroll
    for (int i = 0; i < kBottoms; ++i) {
      float score[kBottoms + 1], top = -infinity(), sum = 0.0f, low = 0.0f, high = 0.0f;
#pragma unroll
      for (int j = 0; j <= kBottoms; ++j) {
        const float dot = fma(low_bf16(q[i]), low_bf16(k[j]), mul(high_bf16(q[i]), high_bf16(k[j])));
        score[j] = mul(warp_sum(dot), 0.125f);  // 64^-1/2
        top = fmaxf(top, score[j]);
      }
#pragma unroll
      for (int j = 0; j <= kBottoms; ++j) {
        const float weight = __expf(add(score[j], -top));
        sum = add(sum, weight), low = fma(weight, low_bf16(v[j]), low), high = fma(weight, high_bf16(v[j]), high);
      }
      auto* out = model.attended + (int64_t{image} * kBottoms + i) * D + column;
      *reinterpret_cast<uint32_t*>(out) = pack_bf16(__fdividef(low, sum), __fdividef(high, sum));
    }
  }
}

}  // namespace hqtvae
