// The kernels' device functions as plain C++, for ctypes. Nothing here computes: it calls what the kernels call.

#include "sample_row.h"

#include <vector>

using namespace hqtvae;

extern "C" {

void words(int64_t seed, int64_t step, int64_t position, int count, uint32_t* out) {
  for (int i = 0; i < count; ++i) out[i] = random_words(seed, step, position, i / 4).lane[i % 4];
}

void gumbels(const uint32_t* words, int count, float* exact, float* rough) {
  for (int i = 0; i < count; ++i) exact[i] = gumbel(words[i]), rough[i] = rough_gumbel(words[i]);
}

float near_limit(float best) { return near(best); }

void narrow(const float* x, int count, uint16_t* bf16) {
  for (int i = 0; i < count; ++i) bf16[i] = to_bf16(x[i]);
}

void widen(const uint16_t* bits, int count, float* bf16, float* fp16) {
  for (int i = 0; i < count; ++i) bf16[i] = from_bf16(bits[i]), fp16[i] = from_fp16(bits[i]);
}

void masses(const float* x, int count, uint64_t* out) {
  for (int i = 0; i < count; ++i) out[i] = fixed_exp(x[i]);
}

// keys == nullptr: those of x.
uint32_t edge_of(const float* x, const uint32_t* keys, const uint64_t* weights, int count, uint64_t target,
                uint64_t* above) {
  SelectionScratch scratch;
  const auto key = [&](int i) { return keys == nullptr ? ordered(x[i]) : keys[i]; };
  const Edge edge = radix_select(Team{}, scratch, count, key, [&](int i) { return weights[i]; }, target);
  *above = edge.above;
  return edge.key;
}

// logits [rows, codes]; returns whether any was NaN.
bool draw(const float* logits, int rows, int codes, float temperature, int64_t top_k, float top_p, const int64_t* seeds,
          int64_t step, int64_t position, int64_t* out) {
  std::vector<float> row((codes + 3) / 4 * 4);
  RowScratch scratch;
  bool invalid = false;
  for (int r = 0; r < rows; ++r) {
    const auto load = [&](int i) { return logits[static_cast<int64_t>(r) * codes + i]; };
    const Draw how{temperature, top_k, top_p, seeds[r], step, position};
    out[r] = draw_from_row(Team{}, scratch, row.data(), codes, load, how, &invalid);
  }
  return invalid;
}

}  // extern "C"
