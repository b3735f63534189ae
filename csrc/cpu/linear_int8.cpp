// y = x W^T + b, or GELU of it: weights in 8 bits with a scale an output, inputs rounded to 8 bits as they come.
//
// A sampling step multiplies a few rows by every weight, so its time is that of streaming the weights from memory, and
// those of 8 bits are a quarter of fp32's and half of bf16's. Each 64 inputs of a row become u = round(x / s) + z,
// unsigned, with s and z such that their least and largest values (and 0) are 0 and 255. A group then adds
// s (sum of u w - z sum of w) to an output: whole numbers, in whatever order, then one product and one addition a group
// in fp32, in order of the groups. So the bits depend neither on threads nor on other rows nor on the instructions.
//
//   - Weights lie in panels of 16 outputs, within a panel four inputs by four inputs: 64 bytes, one line of the caches
//     and one operand of VPDPBUSD, which multiplies 64 bytes of weights by 4 inputs of a row. A thread reads its panels
//     front to back. 8 rows take the line while it is in a register.
//   - Without AVX512-VNNI, AVX2 multiplies u - z by w in 16 bits (VPMADDUBSW, which takes bytes, saturates) and adds
//     pairs of products: 2 inputs of 8 outputs in two instructions, so at most twice what fp32's FMA multiplies. All
//     that is not these two is kept small: with 4 rows, their sums and the weights take 10 of the 16 registers, and of
//     several passes the first leaves its weights in 16 bits, kBlock inputs at a time, which stay in the first-level
//     cache (8 KB) while the others read them.
//   - More rows take a panel again, from the first- or second-level cache; what follows is prefetched evenly over all
//     passes, so that memory works while the arithmetic does.
//
// Plain C interface, see linear_bf16.cpp.

#include "int8_sums.h"

#include <type_traits>

namespace {

using namespace int8;

enum Instructions { kNone = 0, kAvx2 = 1, kVnni = 2 };
constexpr int64_t kPrefetchBytes = 8192;
constexpr int64_t kBlock = 4 * kGroup;  // inputs
constexpr int64_t kChunk = 64;          // rows whose sums are kept at a time

int64_t whole_inputs(int64_t in) { return (in + 3) / 4 * 4; }
int64_t groups_of(int64_t in) { return (in + kGroup - 1) / kGroup; }
int64_t whole_panels(int64_t out) { return (out + kPanel - 1) / kPanel * kPanel; }

#ifdef HAS_AVX2

// x Phi(x), to about 1e-6 of |x|; as in linear_bf16.cpp.
AVX2 inline __m256 gelu(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  const __m256 z = _mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(0.70710678f));
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, _mm256_set1_ps(0.3275911f), one));
  __m256 tail = _mm256_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    tail = _mm256_fmadd_ps(tail, t, _mm256_set1_ps(c));
  // exp(-z^2), held at 2^-126, below which nothing is left of it
  const __m256 v = _mm256_max_ps(_mm256_mul_ps(_mm256_mul_ps(z, z), _mm256_set1_ps(-1.44269504f)), _mm256_set1_ps(-126.0f));
  const __m256 power = exp2_ps(v);
  const __m256 below = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(tail, t), power), _mm256_set1_ps(0.5f));  // Phi(-|x|)
  return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, below), below, x));  // chosen by the sign of x
}

// ------------------------------------------------------------------------------------------------------------ results

// `count` outputs of a row: scale * sum + bias.
template <class Number>
AVX2 void finish(const float* sums, const float* scale, const Number* bias, Number* y, int64_t count, bool with_gelu) {
  for (int64_t first = 0; first < count; first += 8) {
    const int64_t left = count - first < 8 ? count - first : 8;
    __m256 value = rounded(_mm256_mul_ps(load(sums + first), load(scale + first)));
    if (bias != nullptr) value = _mm256_add_ps(value, load_part(bias + first, left));
    if (with_gelu) value = gelu(value);
    Number part[8];
    store(value, part);
    std::memcpy(y + first, part, left * sizeof(Number));
  }
}

template <class Number>
struct Product {
  const int8_t* packed;
  const float* scale;
  const int16_t* totals;
  const Number* bias;
  Number* y;
  const Rounding* rounding;
  const uint8_t* numbers;  // [blocks, rows, block]
  int64_t block;           // inputs that are taken through all rows before the next ones
  int64_t rows, out, in;
  bool with_gelu, vnni;
};

// All rows times the panel that `output` begins.
template <class Number>
void multiply_panel(const Product<Number>& of, int64_t output, int16_t* wide) {
  const int64_t inputs = whole_inputs(of.in), groups = groups_of(of.in), most = of.vnni ? kVnniRows : kAvx2Rows;
  const int64_t block = of.block, number = of.vnni ? 1 : 2;
  const int64_t count = of.out - output < kPanel ? of.out - output : kPanel;
  for (int64_t chunk = 0; chunk < of.rows; chunk += kChunk) {
    const int64_t rows = of.rows - chunk < kChunk ? of.rows - chunk : kChunk, passes = (rows + most - 1) / most;
    const int64_t advance = kPanel / passes;
    float sums[kChunk * kPanel];
    std::memset(sums, 0, rows * kPanel * sizeof *sums);
    for (int64_t input = 0; input < inputs; input += block) {
      const int64_t own = inputs - input < block ? inputs - input : block;
      const int8_t* const weights = of.packed + output * inputs + input * kPanel;
      const char* ahead = reinterpret_cast<const char*>(weights) + (passes == 1 ? kPrefetchBytes : own * kPanel);
      for (int64_t first = 0; first < rows; first += most, ahead += own * advance) {
        const int64_t row = chunk + first, some = rows - first < most ? rows - first : most, group = input / kGroup;
        const Weights kind = passes == 1 ? Weights::kNarrow : first == 0 ? Weights::kWiden : Weights::kWide;
        const Pass pass = {weights, wide, of.totals + output * groups + group * kPanel,
                           of.numbers + (input * of.rows + row * block) * number, block,
                           of.rounding + row * groups + group, groups, own, ahead, advance};
        (of.vnni ? kVnniSums : kAvx2Sums[static_cast<int>(kind)])[some - 1](pass, sums + first * kPanel);
      }
    }
    for (int64_t row = 0; row < rows; ++row)
      finish(sums + row * kPanel, of.scale + output, of.bias == nullptr ? nullptr : of.bias + output,
             of.y + (chunk + row) * of.out + output, count, of.with_gelu);
  }
}

template <class Number>
void multiply(Product<Number> of, const Number* x, uint8_t* scratch) {
  const int64_t groups = groups_of(of.in), number = of.vnni ? 1 : 2;  // bytes
  Rounding* const rounding = reinterpret_cast<Rounding*>(scratch);
  uint8_t* const numbers = scratch + of.rows * groups * sizeof(Rounding);
  of.rounding = rounding, of.numbers = numbers, of.block = of.vnni ? (of.in + 7) / 8 * 8 : kBlock;
#pragma omp parallel
  {
    alignas(32) int16_t wide[kBlock * kPanel];
#pragma omp for schedule(static)
    for (int64_t which = 0; which < of.rows * groups; ++which) {
      const int64_t row = which / groups, first = which % groups * kGroup;
      const int64_t count = of.in - first < kGroup ? of.in - first : kGroup;
      // Rows of a block lie side by side: rows of a power of two of bytes would share a few sets of the cache.
      const int64_t block = first / of.block, place = (block * of.rows + row) * of.block + first % of.block;
      rounding[which] = round_group(x + row * of.in + first, count, of.vnni, numbers + place * number);
    }
#pragma omp for schedule(static)
    for (int64_t output = 0; output < of.out; output += kPanel) multiply_panel(of, output, wide);
  }
}

#endif

}  // namespace

extern "C" {

// The best instructions that this build has kernels for and this processor runs: 2 for AVX512-VNNI, 1 for AVX2, or 0.
int hqtvae_int8_instructions() {
#ifdef HAS_AVX2
  if (!avx2::supported()) return kNone;
  const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl");
  return vnni ? kVnni : kAvx2;
#else
  return kNone;
#endif
}

// Bytes that rows of so many inputs take while they are multiplied.
int64_t hqtvae_linear_int8_scratch_bytes(int64_t rows, int64_t in) {
  return rows * (groups_of(in) * static_cast<int64_t>(8) + (in + kBlock - 1) / kBlock * kBlock * 2);
}

// weight [out, in], row-major -> packed [panels, ceil(in / 4), 16 outputs, 4], for AVX2 [panels, 2 ceil(in / 4), 16
// outputs, 2], and totals [panels, ceil(in / 64), 16 outputs], the sums of each group's weights; zeros beyond the weight.
void hqtvae_linear_int8_pack(const int8_t* weight, int8_t* packed, int16_t* totals, int64_t out, int64_t in,
                             int instructions) {
  const int64_t step = instructions == kVnni ? 4 : 2, inputs = whole_inputs(in), groups = groups_of(in);
#pragma omp parallel for
  for (int64_t first = 0; first < whole_panels(out); first += kPanel) {
    std::memset(totals + first * groups, 0, kPanel * groups * sizeof *totals);
    for (int64_t input = 0; input < inputs; ++input)
      for (int64_t output = first; output < first + kPanel; ++output) {
        const int8_t value = output < out && input < in ? weight[output * in + input] : 0;
        packed[first * inputs + (input / step * kPanel + output - first) * step + input % step] = value;
        totals[first * groups + input / kGroup * kPanel + output - first] += value;
      }
  }
}

// x [rows, in], packed and totals as above; scale, up to a whole 16; bias [out] or null -> y [rows, out]. x, bias and y
// fp32, or bf16. `instructions`: those that it was packed for.
void hqtvae_linear_int8(const int8_t* packed, const float* scale, const int16_t* totals, const void* x, const void* bias,
                        void* y, uint8_t* scratch, int64_t rows, int64_t out, int64_t in, int is_bf16, int with_gelu,
                        int instructions) {
#ifdef HAS_AVX2
  const auto of = [&](auto* x) {
    using Number = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    multiply<Number>({packed, scale, totals, static_cast<const Number*>(bias), static_cast<Number*>(y), nullptr, nullptr,
                      0, rows, out, in, with_gelu != 0, instructions == kVnni}, x, scratch);
  };
  is_bf16 ? of(static_cast<const bf16*>(x)) : of(static_cast<const float*>(x));
#endif
}

}  // extern "C"
