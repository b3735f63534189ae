// Exact nearest-code search on tensor cores: the method, the bound and its proof are those of
// hqtvae_fast/ops/kernels/nearest_code/triton_kernels.py, with chunks of 64 channels; here is what that costs and how it is laid out.
//
// FLOP: 2 N K C a product; three products where inputs are fp32 or fp16, split into two bf16 parts (hi hi + hi lo + lo
// hi). N = 16,384, K = 8192, C = 256: 206 GFLOP, 0.66 ms on an A100 (312 TFLOP/s), 0.21 ms on an H100 (990). Bytes: a
// tile of 128 x 128 scores reads 2 x 128 rows of 4 C bytes for 6 x 128 x 128 x C FLOP, 96 FLOP a byte, from the
// second-level cache; 12 bytes a row and block of codes are written.
//
// score_codes: a block makes one tile, warp w rows 16 w .. 16 w + 15 of it for all 128 codes, so that a row's best and
// second best are found in the registers of four lanes. Operands come 64 channels at a time: rows of 128 bytes, in
// shared memory with their 16-byte pieces permuted by the row's number modulo 8. That is both conflict-free for
// ldmatrix and the 128-byte swizzle that wgmma reads, so one loader (cp.async) serves both:
//   sm_80    mma.sync m16n8k16: of each product, for 16 channels, a warp loads one operand of its rows and eight of the
//            codes for 16 instructions: 288 cycles of shared memory for 256 of the tensor cores, counted for 8 warps,
//            so at best 89 % of their rate; operands kept for the next product would take the registers that are left;
//   sm_90a   wgmma m64n128k16, a warpgroup's 64 rows; both operands from shared memory, no ldmatrix.
// Split, each chunk has an accumulator of its own, which the bound wants: 64 + 64 registers. 128 KB of shared memory
// hold two stages split, four otherwise: the next chunk arrives while this one is multiplied.
//
// settle_codes: a warp a row. It looks for another code within twice the bound of the best, and compares in float64 all
// codes of the blocks that come that near: a code a turn, lanes side by side along the channels. Rows that are not
// finite give 0.

#include "ptx.h"

namespace hqtvae {

constexpr int kRows = 128, kCodes = 128, kChannels = 64;  // of a tile and chunk
constexpr int kOperandBytes = kRows * 2 * kChannels;      // 16 KB
constexpr int kScoreBytes = 8 * kOperandBytes;            // all stages
constexpr int kScoreThreads = 256;
constexpr int kSums = kCodes / 2;  // a lane: two rows, 32 codes

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

// bf16 [rows, width], rows next to each other; width a multiple of 8.
struct Operand {
  const uint16_t* values;
  int rows, width;
};

// 128 rows from `first` on, one chunk of channels; what lies beyond either end becomes zero.
DEVICE void copy_operand(uint32_t to, const Operand& x, int64_t first, int channel) {
#pragma unroll
  for (int i = 0; i < kRows * 8 / kScoreThreads; ++i) {
    const int place = i * kScoreThreads + static_cast<int>(threadIdx.x), row = place / 8, piece = place % 8;
    const bool there = first + row < x.rows && channel + 8 * piece < x.width;
    const uint16_t* from = there ? x.values + (first + row) * x.width + channel + 8 * piece : x.values;
    copy_16_async(to + row * 128 + (piece ^ row % 8) * 16, from, there ? 16 : 0);
  }
}

#if HAS_WGMMA

// Where an operand of wgmma stands: rows of 128 bytes, swizzled, groups of eight rows 1024 bytes apart.
DEVICE uint64_t descriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | (address & 0x3FFFF) >> 4;
}

#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)

// d [64, 128] (+)= a [64, 16] b [128, 16]^T
DEVICE void wgmma_64_128_16(float (&d)[kSums], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0; }"
      : F16(0), F16(16), F16(32), F16(48)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// sums (+)= the products of one chunk: `pairs` of operands in shared memory, small terms first.
template <int pairs>
DEVICE void multiply_chunk(float (&sums)[kSums], const uint32_t (&rows)[pairs], const uint32_t (&codes)[pairs],
                           bool add) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int pair = 0; pair < pairs; ++pair)
#pragma unroll
    for (int step = 0; step < kChannels / 16; ++step) {
      const uint64_t a = descriptor(rows[pair] + group * 64 * 128 + 32 * step);
      wgmma_64_128_16(sums, a, descriptor(codes[pair] + 32 * step), add || pair > 0 || step > 0);
    }
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");  // not to be read before the wait
}

DEVICE void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else

DEVICE void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

template <int pairs>
DEVICE void multiply_chunk(float (&sums)[kSums], const uint32_t (&rows)[pairs], const uint32_t (&codes)[pairs],
                           bool add) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (!add)
    for (float& sum : sums) sum = 0.0f;
  const int row = 16 * warp + lane % 16, code = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int pair = 0; pair < pairs; ++pair)
#pragma unroll
    for (int step = 0; step < kChannels / 16; ++step) {
      uint32_t a[4], b[4];
      load_matrices(a, rows[pair] + row * 128 + ((2 * step + lane / 16) ^ row % 8) * 16);
#pragma unroll
      for (int two = 0; two < kCodes / 16; ++two) {
        load_matrices(b, codes[pair] + (16 * two + code) * 128 + ((2 * step + lane / 8 % 2) ^ code % 8) * 16);
        auto& low = reinterpret_cast<float(&)[4]>(sums[8 * two]);
        auto& high = reinterpret_cast<float(&)[4]>(sums[8 * two + 4]);
        mma_16_8_16(low, a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_16_8_16(high, a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
}

DEVICE void show_to_tensor_cores() {}

#endif

// A row's best score and code of a block, and the second best score.
struct Best {
  float best = infinity(), second = infinity();
  int code = 0;

  DEVICE void take(float score, int own) {  // codes in ascending order: the lowest of equal ones stays
    second = fminf(second, fmaxf(best, score));
    if (score < best) best = score, code = own;
  }
  DEVICE void join_lane(int other) {
    const float their_best = __shfl_xor_sync(~0u, best, other), their_second = __shfl_xor_sync(~0u, second, other);
    const int their_code = __shfl_xor_sync(~0u, code, other);
    second = fminf(fmaxf(best, their_best), fminf(second, their_second));
    if (their_best < best || (their_best == best && their_code < code)) best = their_best, code = their_code;
  }
};

template <bool split>
DEVICE void score_block(const Operand& high, const Operand& low, const Operand& code_high, const Operand& code_low,
                        const float* square, float* best, float* second, int* index) {
  constexpr int kOperands = split ? 4 : 2, kStages = kScoreBytes / (kOperands * kOperandBytes);
  extern __shared__ __align__(1024) unsigned char memory[];
  const int blocks = ceil_div(code_high.rows, kCodes), block = blockIdx.x % blocks;
  const int64_t first = int64_t{blockIdx.x / blocks} * kRows;
  const int chunks = ceil_div(high.width, kChannels), code = block * kCodes;
  const auto place = [&](int chunk, int operand) {
    return shared_address(memory) + (chunk % kStages * kOperands + operand) * kOperandBytes;
  };
  const auto copy = [&](int chunk) {
    if (chunk < chunks) {
      copy_operand(place(chunk, 0), high, first, chunk * kChannels);
      copy_operand(place(chunk, 1), code_high, code, chunk * kChannels);
      if (split) copy_operand(place(chunk, 2), low, first, chunk * kChannels);
      if (split) copy_operand(place(chunk, 3), code_low, code, chunk * kChannels);
    }
    commit_copies();
  };
  for (int chunk = 0; chunk < kStages - 1; ++chunk) copy(chunk);
  float sums[kSums] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_copies<kStages - 2>();
    show_to_tensor_cores();
    __syncthreads();  // this chunk is there, and nobody reads the last one any more
    copy(chunk + kStages - 1);
    if constexpr (split) {
      float own[kSums];
      multiply_chunk<3>(own, {place(chunk, 2), place(chunk, 0), place(chunk, 0)},
                        {place(chunk, 1), place(chunk, 3), place(chunk, 1)}, false);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += own[i];
    } else {
      multiply_chunk<1>(sums, {place(chunk, 0)}, {place(chunk, 1)}, true);
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Best found[2];
#pragma unroll
  for (int i = 0; i < kSums; ++i) {  // code 8 (i / 4) + 2 (lane % 4) + i % 2, row lane / 4 or 8 below it
    const int own = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const float length = code + own < code_high.rows ? square[code + own] : infinity();
    found[i / 2 % 2].take(length - 2.0f * sums[i], own);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    found[half].join_lane(1);
    found[half].join_lane(2);
    const int64_t row = first + 16 * warp + lane / 4 + 8 * half;
    if (lane % 4 != 0 || row >= high.rows) continue;
    const int64_t at = int64_t{block} * high.rows + row;
    best[at] = found[half].best, second[at] = found[half].second, index[at] = found[half].code;
  }
}

template <class Join>
DEVICE void join_lanes(Join join) {
#pragma unroll
  for (int other = 16; other > 0; other /= 2) join(other);
}

struct Bound {
  float relative, relative_square, tiny_length, tiny;
  // What a score may be off: see the head comment. Infinite where scores may have been.
  DEVICE double limit(float least, double length, double longest) const {
    length = length * 1.001 + tiny_length;
    const double off = relative * length * longest + relative_square * longest * longest +
                       tiny_length * (length + longest) + tiny;
    const bool overflows = !(2.0 * length * longest + longest * longest <= 8.5e37);  // 2^126
    return overflows ? static_cast<double>(infinity()) : least + 2.0 * off;
  }
};

DEVICE double distance(const float* z, const float* e, int channels, int lane) {
  double sum = 0.0;
  for (int c = lane; c < channels; c += 32) {
    const double apart = as_double(z[c]) - as_double(e[c]);
    sum += apart * apart;
  }
  join_lanes([&](int other) { sum += __shfl_xor_sync(~0u, sum, other); });
  return sum;
}

}  // namespace hqtvae

// z_high, z_low [N, width] and codes_high, codes_low [K, width]: bf16 parts (low unused where not split); square [K]:
// |e|^2, rounded once. best, second, index [blocks of 128 codes, N]. Grid: tiles of rows times blocks. Dynamic shared
// memory: 128 KB.
#define SCORE_CODES_KERNEL(name, split)                                                                              \
  extern "C" __global__ void __launch_bounds__(hqtvae::kScoreThreads, 1)                                             \
      name(const uint16_t* z_high, const uint16_t* z_low, const uint16_t* codes_high, const uint16_t* codes_low,     \
           const float* square, float* best, float* second, int* index, int rows, int codes, int width) {            \
    hqtvae::score_block<split>({z_high, rows, width}, {z_low, rows, width}, {codes_high, codes, width},              \
                               {codes_low, codes, width}, square, best, second, index);                              \
  }

SCORE_CODES_KERNEL(score_codes_split, true)
SCORE_CODES_KERNEL(score_codes_plain, false)

// z [N, C], book [K, C] fp32; length [N], longest [1]: Euclidean lengths, fp64. Writes found [N], and settled [N]: 1
// where float64 had to decide. Grid: a warp a row.
extern "C" __global__ void __launch_bounds__(256)
    settle_codes(const float* z, const float* book, const double* length, const double* longest, const float* best,
                 const float* second, const int* index, long long* found, signed char* settled, int rows, int codes,
                 int channels, float relative, float relative_square, float tiny_length, float tiny) {
  using namespace hqtvae;
  const int lane = threadIdx.x % 32, blocks = ceil_div(codes, kCodes);
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  float least = infinity();
  int nearest = 0;
  for (int block = lane; block < blocks; block += 32) {
    const float score = best[int64_t{block} * rows + row];
    if (score < least) least = score, nearest = block;
  }
  join_lanes([&](int other) {
    const float their = __shfl_xor_sync(~0u, least, other);
    const int block = __shfl_xor_sync(~0u, nearest, other);
    if (their < least || (their == least && block < nearest)) least = their, nearest = block;
  });
  const double limit = Bound{relative, relative_square, tiny_length, tiny}.limit(least, length[row], *longest);
  const bool unknown = !(limit < static_cast<double>(infinity()));
  int near = 0;
  for (int block = lane; block < blocks; block += 32) {
    const int64_t at = int64_t{block} * rows + row;
    near += (best[at] <= limit) + (second[at] <= limit);
  }
  join_lanes([&](int other) { near += __shfl_xor_sync(~0u, near, other); });
  int64_t code = int64_t{nearest} * kCodes + index[int64_t{nearest} * rows + row];
  if (unknown || near != 1) {
    double closest = static_cast<double>(infinity());
    code = 0;
    for (int block = 0; block < blocks; ++block) {
      if (!unknown && !(best[int64_t{block} * rows + row] <= limit)) continue;
      for (int own = block * kCodes; own < codes && own < (block + 1) * kCodes; ++own) {
        const double apart = distance(z + row * channels, book + int64_t{own} * channels, channels, lane);
        if (apart < closest) closest = apart, code = own;
      }
    }
  }
  if (lane == 0) found[row] = code, settled[row] = unknown || near != 1;
}

#if !defined(__CUDACC_RTC__)
#include "launch.h"
#include "launchers.h"

cudaError_t hqtvae::launch_score_codes(bool split, int rows, int codes, void** arguments, cudaStream_t stream) {
  const void* kernel = reinterpret_cast<void*>(split ? score_codes_split : score_codes_plain);
  const Launch how{.blocks = ceil_div(rows, kRows) * ceil_div(codes, kCodes),
                   .threads = kScoreThreads,
                   .shared_bytes = kScoreBytes};
  return launch(kernel, how, arguments, stream);
}

cudaError_t hqtvae::launch_settle_codes(int rows, void** arguments, cudaStream_t stream) {
  const Launch how{.blocks = ceil_div(rows, 8), .threads = 256};
  return launch(reinterpret_cast<void*>(settle_codes), how, arguments, stream);
}
#endif
