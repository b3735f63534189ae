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
//   - Without AVX512-VNNI, AVX2 widens weights to 16 bits (VPMADDUBSW, which takes bytes, saturates) and adds pairs of
//     products: 4 inputs of 4 outputs an instruction, an addition, and a sum of neighbours at a group's end. Panels are
//     of 8 outputs: with 4 rows, their sums and the weights take 11 of the 16 registers.
//   - More rows take a panel again, from the first- or second-level cache; the next one is prefetched evenly over all
//     passes through this one, so that memory works while the arithmetic does.
//
// Plain C interface, see linear_bf16.cpp.

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_INT8 1  // this compiler can make the kernels; whether the processor can run them is asked at run time
#define AVX2 __attribute__((target("avx2,fma")))
#define VNNI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

namespace {

enum Instructions { kNone = 0, kAvx2 = 1, kVnni = 2 };
constexpr int64_t kStep = 4;    // inputs that are multiplied at a time
constexpr int64_t kGroup = 64;  // inputs with a scale of their own; a multiple of kStep and of 8
constexpr int64_t kMostPanel = 16;
constexpr int64_t kPrefetchBytes = 8192;

constexpr int64_t panel_of(int instructions) { return instructions == kVnni ? kMostPanel : 8; }  // outputs

int64_t steps_of(int64_t in) { return (in + kStep - 1) / kStep; }
int64_t groups_of(int64_t in) { return (in + kGroup - 1) / kGroup; }
int64_t whole_panels(int64_t out) { return (out + kMostPanel - 1) / kMostPanel * kMostPanel; }

#ifdef HAS_INT8

using bf16 = uint16_t;

// ----------------------------------------------------------------------------------------------- eight numbers at a time

AVX2 inline __m256 load(const float* from) { return _mm256_loadu_ps(from); }
AVX2 inline __m256 load(const bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
AVX2 inline void store(__m256 values, float* to) { _mm256_storeu_ps(to, values); }
AVX2 inline void store(__m256 values, bf16* to) {  // to nearest, ties to even
  const __m256i bits = _mm256_castps_si256(values), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x10000)), nan);
  const __m256i halves = _mm256_srli_epi32(kept, 16), packed = _mm256_packus_epi32(halves, halves);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

// The last `count` numbers of a row, and zeros, which change neither its least and largest nor any sum.
template <class Number>
AVX2 inline __m256 load_part(const Number* from, int64_t count) {
  Number part[8] = {};
  std::memcpy(part, from, count * sizeof(Number));
  return load(part);
}

// Keeps a product and a sum apart that the compiler might round once.
AVX2 inline __m256 rounded(__m256 value) {
  asm("" : "+x"(value));
  return value;
}

// x Phi(x), to about 1e-6 of |x|; as in linear_bf16.cpp.
AVX2 inline __m256 gelu(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  const __m256 z = _mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(0.70710678f));
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, _mm256_set1_ps(0.3275911f), one));
  __m256 tail = _mm256_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    tail = _mm256_fmadd_ps(tail, t, _mm256_set1_ps(c));
  // exp(-z^2) = 2^n 2^f, n whole and |f| <= 1/2; held at 2^-126, below which nothing is left of it
  const __m256 v = _mm256_max_ps(_mm256_mul_ps(_mm256_mul_ps(z, z), _mm256_set1_ps(-1.44269504f)), _mm256_set1_ps(-126.0f));
  const __m256 n = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm256_sub_ps(v, n);
  __m256 power = _mm256_set1_ps(0.00133335581f);
  for (const float c : {0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1.0f})
    power = _mm256_fmadd_ps(power, f, _mm256_set1_ps(c));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  power = _mm256_mul_ps(power, _mm256_castsi256_ps(exponent));
  const __m256 below = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(tail, t), power), _mm256_set1_ps(0.5f));  // Phi(-|x|)
  return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, below), below, x));  // chosen by the sign of x
}

// --------------------------------------------------------------------------------------------------------- rows of x

struct Rounding {
  float scale;
  int32_t zero;
};

AVX2 inline float least(__m256 values) {
  __m128 half = _mm_min_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
  half = _mm_min_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_min_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// A group's inputs as numbers 0 to 255: of 8 bits for VNNI, of 16 for AVX2; up to a whole 8 of them, where weights are
// 0. The scale of a group that holds an infinity or NaN is NaN, and so is whatever it is added to.
template <class Number>
AVX2 Rounding round_group(const Number* x, int64_t count, bool bytes, void* out) {
  const auto eight = [&](int64_t i) AVX2 { return count - i < 8 ? load_part(x + i, count - i) : load(x + i); };
  __m256 low = _mm256_setzero_ps(), minus_high = low, strange = low;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 values = eight(i), nothing = _mm256_sub_ps(values, values);  // NaN of what is not finite
    low = _mm256_min_ps(low, values);
    minus_high = _mm256_min_ps(minus_high, _mm256_sub_ps(_mm256_setzero_ps(), values));
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(nothing, nothing, _CMP_UNORD_Q));
  }
  const float from = least(low), to = -least(minus_high);
  float scale = (to - from) / 255.0f;
  scale = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
  const float zero = __builtin_rintf(-from / scale);
  const __m256 scales = _mm256_set1_ps(scale), zeros = _mm256_set1_ps(zero);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 whole = _mm256_round_ps(_mm256_div_ps(eight(i), scales), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 moved = _mm256_max_ps(_mm256_add_ps(whole, zeros), _mm256_setzero_ps());
    const __m256i numbers = _mm256_cvtps_epi32(_mm256_min_ps(moved, _mm256_set1_ps(255.0f)));
    const __m128i words = _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(numbers, numbers), 0x08));
    if (bytes)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(static_cast<uint8_t*>(out) + i), _mm_packus_epi16(words, words));
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<int16_t*>(out) + i), words);
  }
  if (_mm256_movemask_ps(strange) != 0) return {__builtin_nanf(""), 0};
  return {scale, static_cast<int32_t>(zero)};
}

// ---------------------------------------------------------------------------------------- sums of rows x a panel's outputs

struct Pass {
  const int8_t* panel;
  const int16_t* totals;  // [groups, outputs]: of the weights of a group
  const void* x;          // numbers of the rows, `stride` apart
  int64_t stride;
  const Rounding* rounding;  // of their groups, `groups` a row
  int64_t groups, steps;
  const char* ahead;  // prefetched from, `advance` bytes further for each step; a prefetch never faults
  int64_t advance;
};

template <int rows>
AVX2 void sum_avx2(const Pass& pass, float* sums) {
  const int8_t* weights = pass.panel;
  const int16_t* x = static_cast<const int16_t*>(pass.x);
  const char* ahead = pass.ahead;
  const int64_t stride = pass.stride, advance = pass.advance;
  __m256 all[rows];
  for (int row = 0; row < rows; ++row) all[row] = _mm256_setzero_ps();

  for (int64_t group = 0, left = pass.steps; group < pass.groups; ++group, left -= kGroup / kStep) {
    const int64_t steps = left < kGroup / kStep ? left : kGroup / kStep;
    __m256i sum[rows][2];
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) sum[row][0] = sum[row][1] = _mm256_setzero_si256();
#pragma GCC unroll 4  // or GCC 12 copies each sum at each step
    for (int64_t step = 0; step < steps; ++step, weights += 8 * kStep, x += kStep, ahead += advance) {
      _mm_prefetch(ahead, _MM_HINT_T0);
      const __m256i left_half = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
      const __m256i right_half = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16)));
#pragma GCC unroll 4
      for (int row = 0; row < rows; ++row) {
        int64_t four;
        std::memcpy(&four, x + row * stride, sizeof four);
        const __m256i broadcast = _mm256_set1_epi64x(four);
        sum[row][0] = _mm256_add_epi32(sum[row][0], _mm256_madd_epi16(left_half, broadcast));
        sum[row][1] = _mm256_add_epi32(sum[row][1], _mm256_madd_epi16(right_half, broadcast));
      }
    }
    const __m256i totals = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pass.totals + 8 * group)));
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row) {  // neighbours are halves of one output's sum
      const Rounding own = pass.rounding[row * pass.groups + group];
      const __m256i joined = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[row][0], sum[row][1]), 0xD8);
      const __m256i whole = _mm256_sub_epi32(joined, _mm256_mullo_epi32(_mm256_set1_epi32(own.zero), totals));
      all[row] = _mm256_add_ps(all[row], rounded(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(own.scale))));
    }
  }
  for (int row = 0; row < rows; ++row) _mm256_storeu_ps(sums + row * 8, all[row]);
}

template <int rows>
VNNI void sum_vnni(const Pass& pass, float* sums) {
  const int8_t* weights = pass.panel;
  const uint8_t* x = static_cast<const uint8_t*>(pass.x);
  const char* ahead = pass.ahead;
  const int64_t stride = pass.stride, advance = pass.advance;
  constexpr int chains = rows < 4 ? 4 : 1;  // of sums for a row, where rows alone would wait for each other
  __m512 all[rows];
  for (int row = 0; row < rows; ++row) all[row] = _mm512_setzero_ps();

  for (int64_t group = 0, left = pass.steps; group < pass.groups; ++group, left -= kGroup / kStep) {
    const int64_t steps = left < kGroup / kStep ? left : kGroup / kStep;
    __m512i sum[rows][chains];
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; ++chain) sum[row][chain] = _mm512_setzero_si512();
    for (int64_t step = 0; step < steps; step += 4) {
#pragma GCC unroll 4
      for (int next = 0; next < 4; ++next, weights += 16 * kStep, x += kStep, ahead += advance) {
        if (step + next == steps) break;
        _mm_prefetch(ahead, _MM_HINT_T0);
        const __m512i line = _mm512_loadu_si512(weights);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
          int32_t four;
          std::memcpy(&four, x + row * stride, sizeof four);
          __m512i& own = sum[row][next % chains];
          own = _mm512_dpbusd_epi32(own, _mm512_set1_epi32(four), line);
        }
      }
    }
    const __m512i totals = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pass.totals + 16 * group)));
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const Rounding own = pass.rounding[row * pass.groups + group];
      __m512i joined = sum[row][0];
#pragma GCC unroll 4
      for (int chain = 1; chain < chains; ++chain) joined = _mm512_add_epi32(joined, sum[row][chain]);
      const __m512i whole = _mm512_sub_epi32(joined, _mm512_mullo_epi32(_mm512_set1_epi32(own.zero), totals));
      __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(own.scale));
      asm("" : "+v"(product));  // as `rounded`
      all[row] = _mm512_add_ps(all[row], product);
    }
  }
  for (int row = 0; row < rows; ++row) _mm512_storeu_ps(sums + row * 16, all[row]);
}

using Sum = void (*)(const Pass&, float*);
constexpr int64_t kAvx2Rows = 4, kVnniRows = 8;
constexpr Sum kAvx2Sums[kAvx2Rows] = {sum_avx2<1>, sum_avx2<2>, sum_avx2<3>, sum_avx2<4>};
constexpr Sum kVnniSums[kVnniRows] = {sum_vnni<1>, sum_vnni<2>, sum_vnni<3>, sum_vnni<4>,
                                      sum_vnni<5>, sum_vnni<6>, sum_vnni<7>, sum_vnni<8>};

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
void multiply(const int8_t* packed, const float* scale, const int16_t* totals, const Number* x, const Number* bias,
              Number* y, uint8_t* scratch, int64_t rows, int64_t out, int64_t in, bool with_gelu, bool vnni) {
  const int64_t steps = steps_of(in), groups = groups_of(in), stride = (in + 7) / 8 * 8;
  const int64_t most = vnni ? kVnniRows : kAvx2Rows, passes = (rows + most - 1) / most;
  const int64_t outputs = panel_of(vnni ? kVnni : kAvx2), line = outputs * kStep, advance = passes == 0 ? 0 : line / passes;
  Rounding* const rounding = reinterpret_cast<Rounding*>(scratch);
  uint8_t* const numbers = scratch + rows * groups * sizeof(Rounding);
  const int64_t number = vnni ? 1 : 2;  // bytes
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t which = 0; which < rows * groups; ++which) {
      const int64_t row = which / groups, first = which % groups * kGroup, count = in - first < kGroup ? in - first : kGroup;
      rounding[which] = round_group(x + row * in + first, count, vnni, numbers + (row * stride + first) * number);
    }
#pragma omp for schedule(static)
    for (int64_t output = 0; output < out; output += outputs) {
      const int8_t* const panel = packed + output * steps * kStep;
      const char* ahead = reinterpret_cast<const char*>(panel) + (passes == 1 ? kPrefetchBytes : steps * line);
      const int64_t count = out - output < outputs ? out - output : outputs;
      for (int64_t first = 0; first < rows; first += most, ahead += steps * advance) {
        const int64_t group = rows - first < most ? rows - first : most;
        const Pass pass = {panel, totals + output * groups, numbers + first * stride * number, stride,
                           rounding + first * groups, groups, steps, ahead, advance};
        float sums[kVnniRows * kMostPanel];
        (vnni ? kVnniSums : kAvx2Sums)[group - 1](pass, sums);
        for (int64_t row = 0; row < group; ++row)
          finish(sums + row * outputs, scale + output, bias == nullptr ? nullptr : bias + output,
                 y + (first + row) * out + output, count, with_gelu);
      }
    }
  }
}

#endif

}  // namespace

extern "C" {

// The best instructions that this build has kernels for and this processor runs: 2 for AVX512-VNNI, 1 for AVX2, or 0.
int hqtvae_int8_instructions() {
#ifdef HAS_INT8
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kNone;
  const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl");
  return vnni ? kVnni : kAvx2;
#else
  return kNone;
#endif
}

// Bytes that rows of so many inputs take while they are multiplied.
int64_t hqtvae_linear_int8_scratch_bytes(int64_t rows, int64_t in) {
  return rows * (groups_of(in) * static_cast<int64_t>(8) + (in + 7) / 8 * 16);
}

// weight [out, in], row-major -> packed [panels, ceil(in / 4), outputs of a panel, 4] and totals [panels, ceil(in / 64),
// outputs of a panel], the sums of each group's weights; panels up to a whole 16 outputs, zeros beyond the weight.
void hqtvae_linear_int8_pack(const int8_t* weight, int8_t* packed, int16_t* totals, int64_t out, int64_t in,
                             int instructions) {
  const int64_t outputs = panel_of(instructions), steps = steps_of(in), groups = groups_of(in);
#pragma omp parallel for
  for (int64_t first = 0; first < whole_panels(out); first += outputs) {
    std::memset(totals + first * groups, 0, outputs * groups * sizeof *totals);
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t output = first; output < first + outputs; ++output)
        for (int64_t input = step * kStep; input < (step + 1) * kStep; ++input) {
          const int8_t value = output < out && input < in ? weight[output * in + input] : 0;
          packed[(first * steps + step * outputs + output - first) * kStep + input % kStep] = value;
          totals[first * groups + input / kGroup * outputs + output - first] += value;
        }
  }
}

// x [rows, in], packed and totals as above; scale, up to a whole 16; bias [out] or null -> y [rows, out]. x, bias and y
// fp32, or bf16. `instructions`: those that it was packed for.
void hqtvae_linear_int8(const int8_t* packed, const float* scale, const int16_t* totals, const void* x, const void* bias,
                        void* y, uint8_t* scratch, int64_t rows, int64_t out, int64_t in, int is_bf16, int with_gelu,
                        int instructions) {
#ifdef HAS_INT8
  const bool vnni = instructions == kVnni;
  if (is_bf16)
    multiply(packed, scale, totals, static_cast<const bf16*>(x), static_cast<const bf16*>(bias), static_cast<bf16*>(y),
             scratch, rows, out, in, with_gelu != 0, vnni);
  else
    multiply(packed, scale, totals, static_cast<const float*>(x), static_cast<const float*>(bias), static_cast<float*>(y),
             scratch, rows, out, in, with_gelu != 0, vnni);
#endif
}

}  // extern "C"
