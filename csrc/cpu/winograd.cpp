// 3x3 convolutions, and 2x2 ones of a folded upsampling, of channels-last fp32 maps with fewer multiplications.
//
// A tile of 6x6 input pixels gives 4x4 outputs of a 3x3 convolution, or 5x5 of a 2x2 one, from 36 products a pair of
// channels (Toom-Cook, Winograd 1980): 2.25 an output instead of 9, or 1.44 instead of 4. Both evaluate polynomials at
// the points 0, +-5/8, +-3/2 and infinity, so they share the transformation of the input. With the usual points (0, +-1,
// +-2) the error is four times as large; 5/8 * 3/2 is near 1, and all constants but two powers are exact in fp32.
//
// Schedule. A block of tiles is transformed to V [36, tiles, C]; then, for a few dozen output channels at a time, the 36
// products with U [36, C, channels] are taken and transformed to outputs with the bias, before the next channels:
//
//   - 36 tiles and 64 channels: V is 0.7 MB at 128 channels, what comes of it 0.3 MB, so they stay in the second-level
//     cache, or nearly; U (2.4 MB at 128x128, 38 MB at 512x512) is read once a block, 18 FLOP for each of its bytes.
//   - The sums of 6 rows and 2 vectors of channels stay in 12 registers; U lies in panels of 16 channels, one forward
//     stream.
//   - V's 36 planes are 64 bytes more than a block apart: else all lie in the same sets of the first-level cache.
//
// Each output is summed in one order, whatever the batch and the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))  // into each of the targets

namespace {

constexpr int64_t kTile = 6, kPoints = kTile * kTile;
constexpr int64_t kTiles = 36;  // of a block; a multiple of kRows
constexpr int64_t kRows = 6;    // of a product
constexpr int64_t kPanel = 16;
constexpr int64_t kDepth = 128;  // products of one sum; these are added up
constexpr int64_t kApart = 16;  // floats between planes
constexpr float a1 = 0.625f, a2 = a1 * a1, a3 = a2 * a1, a4 = a2 * a2;
constexpr float b1 = 1.5f, b2 = b1 * b1, b3 = b2 * b1, b4 = b2 * b2;

struct Shape {
  int64_t B, H, W, C;  // the input
  int64_t N;           // channels of the output
  bool doubled;        // 2x2 convolutions, one for each parity of the output's row and column
  int64_t phases() const { return doubled ? 4 : 1; }
  int64_t side() const { return doubled ? 5 : 4; }  // outputs of a tile along an axis
  int64_t down() const { return (H + (doubled ? 1 : 0) + side() - 1) / side(); }  // tiles
  int64_t across() const { return (W + (doubled ? 1 : 0) + side() - 1) / side(); }
  int64_t tiles() const { return B * down() * across(); }
  int64_t blocks() const { return (tiles() + kTiles - 1) / kTiles; }
  int64_t step() const { return N % 64 == 0 ? 64 : 32; }  // channels at a time
  int64_t v_plane() const { return kTiles * C + kApart; }
  int64_t m_plane() const { return kTiles * step() + kApart; }
};

template <typename V>
constexpr int64_t kWidth = sizeof(V) / sizeof(float);
template <typename V>
INLINE V load(const float* at) {
  V v;
  std::memcpy(&v, at, sizeof(V));
  return v;
}
template <typename V>
INLINE void store(float* at, V v) {
  std::memcpy(at, &v, sizeof(V));
}

// Six values `apart` to six, in place: at a point p the product of (x - q) over all other points q, its coefficients
// times the values.
template <typename V>
INLINE void transform_input(V* d, int64_t apart) {
  const V d0 = d[0], d1 = d[apart], d2 = d[2 * apart], d3 = d[3 * apart], d4 = d[4 * apart], d5 = d[5 * apart];
  const V even_a = d4 - b2 * d2, odd_a = a1 * (d3 - b2 * d1);
  const V even_b = d4 - a2 * d2, odd_b = b1 * (d3 - a2 * d1);
  d[0] = d4 - (a2 + b2) * d2 + (a2 * b2) * d0;
  d[apart] = even_a + odd_a;
  d[2 * apart] = even_a - odd_a;
  d[3 * apart] = even_b + odd_b;
  d[4 * apart] = even_b - odd_b;
  d[5 * apart] = d5 - (a2 + b2) * d3 + (a2 * b2) * d1;
}

// Six values to `side` outputs, in place: output i is the sum of p^i times the value at p; infinity has the last alone.
template <typename V, int side>
INLINE void transform_output(V* p, int64_t apart) {
  const V first = p[0], last = p[5 * apart];
  const V sum_a = p[apart] + p[2 * apart], off_a = p[apart] - p[2 * apart];
  const V sum_b = p[3 * apart] + p[4 * apart], off_b = p[3 * apart] - p[4 * apart];
  p[0] = first + sum_a + sum_b;
  p[apart] = a1 * off_a + b1 * off_b;
  p[2 * apart] = a2 * sum_a + b2 * sum_b;
  if (side == 4) {
    p[3 * apart] = a3 * off_a + b3 * off_b + last;
  } else {
    p[3 * apart] = a3 * off_a + b3 * off_b;
    p[4 * apart] = a4 * sum_a + b4 * sum_b + last;
  }
}

template <typename V>
INLINE void tile_input(const float* const* pixels, int64_t C, float* v, int64_t plane) {
  for (int64_t c = 0; c < C; c += kWidth<V>) {
    V d[kPoints];
    for (int i = 0; i < kPoints; ++i) d[i] = load<V>(pixels[i] + c);
    for (int i = 0; i < kTile; ++i) transform_input(d + i, kTile);
    for (int i = 0; i < kTile; ++i) transform_input(d + kTile * i, 1);
    for (int i = 0; i < kPoints; ++i) store(v + i * plane + c, d[i]);
  }
}

// `pixels`: where the outputs belong, null beyond the border.
template <typename V, int side>
INLINE void tile_output(const float* m, int64_t plane, const float* bias, float* const* pixels, int64_t channels) {
  for (int64_t n = 0; n < channels; n += kWidth<V>) {
    V d[kPoints];
    for (int i = 0; i < kPoints; ++i) d[i] = load<V>(m + i * plane + n);
    for (int i = 0; i < kTile; ++i) transform_output<V, side>(d + i, kTile);
    for (int i = 0; i < side; ++i) transform_output<V, side>(d + kTile * i, 1);
    const V b = load<V>(bias + n);
    for (int i = 0; i < side; ++i)
      for (int j = 0; j < side; ++j)
        if (pixels[i * side + j] != nullptr) store(pixels[i * side + j] + n, d[kTile * i + j] + b);
  }
}

// 6 rows of V times 2 vectors of U's channels. A sum of kDepth products is rounded less than one of all C.
template <typename V>
INLINE void multiply(const float* v, const float* u, float* m, int64_t C, int64_t step) {
  const float* beside = kWidth<V> < kPanel ? u + kWidth<V> : u + C * kPanel;
  for (int64_t begin = 0; begin < C; begin += kDepth) {
    V sums[kRows][2] = {};
    for (int64_t c = begin; c < std::min(begin + kDepth, C); ++c) {
      const V left = load<V>(u + c * kPanel), right = load<V>(beside + c * kPanel);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] += v[r * C + c] * left;
        sums[r][1] += v[r * C + c] * right;
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      for (int half = 0; half < 2; ++half) {
        float* at = m + r * step + half * kWidth<V>;
        store(at, begin == 0 ? sums[r][half] : load<V>(at) + sums[r][half]);
      }
  }
}

template <typename V>
INLINE void block_input(const Shape& s, const float* x, const float* zeros, int64_t first, int64_t count, float* v) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = first + t, b = tile / (s.down() * s.across());
    const int64_t top = tile / s.across() % s.down() * s.side() - 1, left = tile % s.across() * s.side() - 1;
    const float* pixels[kPoints];
    for (int64_t i = 0; i < kPoints; ++i) {
      const int64_t row = top + i / kTile, column = left + i % kTile;
      const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
      pixels[i] = inside ? x + ((b * s.H + row) * s.W + column) * s.C : zeros;
    }
    tile_input<V>(pixels, s.C, v + t * s.C, s.v_plane());
  }
}

// Channels `n` to n + step of one phase, for all tiles of a block.
template <typename V, int side>
INLINE void block_output(const Shape& s, const float* m, const float* bias, int64_t first, int64_t count, int64_t phase,
                         int64_t n, float* y) {
  const int64_t scale = s.doubled ? 2 : 1, below = phase / 2, beside = phase % 2;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = first + t, b = tile / (s.down() * s.across());
    const int64_t top = tile / s.across() % s.down() * side - below, left = tile % s.across() * side - beside;
    float* pixels[side * side];
    for (int64_t i = 0; i < side * side; ++i) {
      const int64_t row = top + i / side, column = left + i % side;
      const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
      const int64_t at = ((b * s.H + row) * scale + below) * s.W * scale + column * scale + beside;
      pixels[i] = inside ? y + at * s.N + n : nullptr;
    }
    tile_output<V, side>(m + t * s.step(), s.m_plane(), bias + n, pixels, s.step());
  }
}

// Steps of channels from `begin` to `end` for the tiles of a block. scratch: V, then what it is multiplied to.
template <typename V>
INLINE void block(const Shape& s, const float* x, const float* u, const float* bias, const float* zeros, int64_t first,
                  int64_t begin, int64_t end, float* scratch, float* y) {
  const int64_t count = std::min(kTiles, s.tiles() - first), rows = (count + kRows - 1) / kRows * kRows;
  float *v = scratch, *m = scratch + kPoints * s.v_plane();
  block_input<V>(s, x, zeros, first, count, v);
  for (int64_t n = begin * s.step(); n < end * s.step(); n += s.step()) {
    for (int64_t point = 0; point < kPoints; ++point)
      for (int64_t j = n; j < n + s.step(); j += 2 * kWidth<V>) {
        const float* panel = u + (point * s.phases() * s.N + j / kPanel * kPanel) * s.C + j % kPanel;
        for (int64_t r = 0; r < rows; r += kRows)
          multiply<V>(v + point * s.v_plane() + r * s.C, panel, m + point * s.m_plane() + r * s.step() + j - n, s.C,
                      s.step());
      }
    if (s.doubled)
      block_output<V, 5>(s, m, bias, first, count, n / s.N, n % s.N, y);
    else
      block_output<V, 4>(s, m, bias, first, count, 0, n, y);
  }
}

// For each kind of processor by hand: the vectors' width is part of the schedule.
#define BLOCK(name, bytes, attributes)                                                                                 \
  typedef float name##_vector __attribute__((vector_size(bytes)));                                                     \
  attributes void name(const Shape& s, const float* x, const float* u, const float* bias, const float* zeros,          \
                       int64_t first, int64_t begin, int64_t end, float* scratch, float* y) {                          \
    block<name##_vector>(s, x, u, bias, zeros, first, begin, end, scratch, y);                                         \
  }
BLOCK(block_plain, 16, )
#if defined(__x86_64__) && defined(__GNUC__)
BLOCK(block_avx2, 32, __attribute__((target("avx2,fma"))))
BLOCK(block_avx512, 64, __attribute__((target("avx512f,avx2,fma"))))
#endif
#undef BLOCK

decltype(&block_plain) pick_block() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return block_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return block_avx2;
#endif
  return block_plain;
}

}  // namespace

extern "C" {

// Floats of scratch for one thread.
int64_t hqtvae_winograd_scratch(int64_t C, int64_t N) {
  const Shape s{1, 1, 1, C, N, false};
  return kPoints * (s.v_plane() + s.m_plane());
}

// x [B, H, W, C]; u [36, phases * N / 16, C, 16]; bias [N]; zeros: C of them; y [B, H, W, N], or [B, 2H, 2W, N] if
// doubled (4 phases, row by row). C a multiple of 16, N of 32. scratch: for `threads` threads.
void hqtvae_winograd(const float* x, const float* u, const float* bias, const float* zeros, float* scratch, float* y,
                     int64_t B, int64_t H, int64_t W, int64_t C, int64_t N, int64_t threads, int doubled) {
  const Shape s{B, H, W, C, N, doubled != 0};
  const int64_t steps = s.phases() * N / s.step(), own = hqtvae_winograd_scratch(C, N);
  // Too few blocks for all threads: several take the same tiles and other channels.
  const int64_t splits = std::max<int64_t>(1, std::min(threads / s.blocks(), steps));
  const auto run = pick_block();
#pragma omp parallel for schedule(static, 1)
  for (int64_t thread = 0; thread < threads; ++thread)
    for (int64_t item = thread; item < s.blocks() * splits; item += threads) {
      const int64_t split = item % splits;
      run(s, x, u, bias, zeros, item / splits * kTiles, steps * split / splits, steps * (split + 1) / splits,
          scratch + thread * own, y);
    }
}

}  // extern "C"
