// Random words of the sampler: Philox4x32-10 (Salmon et al., 2011), the same bits as ops/kernels/sample_logits/noise.py.
//
// The word for (seed, step, position, index) is lane index % 4 of the block with counter (index / 4, position, step, 0)
// and key (seed low, seed high). Blocks do not depend on each other: 16 at a time, in vectors where the processor has
// them (the loop over lanes is plain C++, and the compiler's to vectorise), instead of one pass over memory for each of
// the 90 integer operations of a block.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_TARGETS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MANY_TARGETS
#endif

namespace {

constexpr int kLanes = 16;

}  // namespace

extern "C" {

// words [rows, count] of 64 bits each, below 2^32. seeds, steps, positions: [rows].
MANY_TARGETS
void hqtvae_philox_words(const int64_t* seeds, const int64_t* steps, const int64_t* positions, int64_t* words,
                         int64_t rows, int64_t count) {
  const int64_t blocks = (count + 3) / 4, chunks = (blocks + kLanes - 1) / kLanes;
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < rows * chunks; ++item) {
    const int64_t row = item / chunks, first = item % chunks * kLanes;
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      c0[lane] = static_cast<uint32_t>(first + lane);
      c1[lane] = static_cast<uint32_t>(positions[row]);
      c2[lane] = static_cast<uint32_t>(steps[row]);
      c3[lane] = 0;
    }
    uint32_t k0 = static_cast<uint32_t>(seeds[row]), k1 = static_cast<uint32_t>(seeds[row] >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0[lane], p1 = uint64_t{0xCD9E8D57u} * c2[lane];
        c0[lane] = static_cast<uint32_t>(p1 >> 32) ^ c1[lane] ^ k0;
        c2[lane] = static_cast<uint32_t>(p0 >> 32) ^ c3[lane] ^ k1;
        c1[lane] = static_cast<uint32_t>(p1);
        c3[lane] = static_cast<uint32_t>(p0);
      }
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t block[4] = {c0[lane], c1[lane], c2[lane], c3[lane]};
      for (int64_t word = 0, index = 4 * (first + lane); word < 4 && index + word < count; ++word)
        words[row * count + index + word] = block[word];
    }
  }
}

}  // extern "C"
