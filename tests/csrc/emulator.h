// Enough of a GPU to run a kernel of csrc/cuda on a CPU: its threads take turns, each on a stack of its own, and hand
// on where they would wait. Blocks, warps, shared memory, barriers, and the instructions of ptx.h, which this file
// replaces. It shows that indices, schedule and barriers are right, and finds a deadlock; it is no model of memory, and
// no fence is missed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDACC__ 1

struct uint4 {
  uint32_t x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

// ------------------------------------------------------------------------------------------------- threads, in turns

inline ucontext_t scheduler;
inline ucontext_t* running;
inline uint64_t events;  // that somebody may have waited for
inline uint64_t faults;  // accesses that a GPU would not make: misaligned, or beyond a block's shared memory

inline void expect(bool allowed) { faults += !allowed; }

inline void hand_on() { swapcontext(running, &scheduler); }

struct Meeting {
  int size, missing = size;
  uint32_t generation = 0;

  void arrive_and_wait() {
    const uint32_t own = generation;
    if (--missing == 0) missing = size, ++generation, ++events;
    while (generation == own) hand_on();
  }
};

struct EmulatedWarp {
  Meeting all{32};
  uint32_t lane[32][6];
};

struct EmulatedBlock {
  std::vector<unsigned char> shared;
  Meeting all, team{256};
  std::vector<EmulatedWarp> warps;

  EmulatedBlock(int threads, int bytes) : shared(bytes + 1024), all{threads}, warps(threads / 32) {}
  unsigned char* memory() { return shared.data() + (1024 - reinterpret_cast<uintptr_t>(shared.data()) % 1024); }
  unsigned char* at(uint32_t offset, size_t bytes) {  // of an access, a multiple of its size
    expect(offset % bytes == 0 && offset + bytes <= shared.size() - 1024);
    return memory() + offset;
  }
};
inline EmulatedBlock* emulated;

inline EmulatedWarp& own_warp() { return emulated->warps[threadIdx.x / 32]; }
inline void __syncthreads() { emulated->all.arrive_and_wait(); }
inline void __syncwarp() { own_warp().all.arrive_and_wait(); }
template <class T>
T __shfl_xor_sync(uint32_t, T x, int other) {
  auto& warp = own_warp();
  std::memcpy(warp.lane[threadIdx.x % 32], &x, sizeof x);
  warp.all.arrive_and_wait();
  std::memcpy(&x, warp.lane[threadIdx.x % 32 ^ other], sizeof x);
  warp.all.arrive_and_wait();
  return x;
}

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  EmulatedBlock* block;
  unsigned thread, index;
  bool done = false;
};
inline Fiber* starting;
inline void (*entry)();

inline void run_fiber() {
  Fiber* own = starting;
  entry();
  own->done = true;
  ++events;
  hand_on();
}

// False where nobody gets on any more, and after a fault.
inline bool run_grid(int blocks, int threads, int shared_bytes, void (*kernel)()) {
  constexpr size_t kStack = 1 << 17;
  gridDim.x = blocks, entry = kernel, faults = 0;
  std::vector<std::unique_ptr<EmulatedBlock>> grid;
  std::vector<Fiber> fibers(blocks * threads);
  for (int b = 0; b < blocks; ++b) grid.push_back(std::make_unique<EmulatedBlock>(threads, shared_bytes));
  for (int i = 0; i < blocks * threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.stack = std::make_unique<char[]>(kStack);
    fiber.block = grid[i / threads].get(), fiber.thread = i % threads, fiber.index = i / threads;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, run_fiber, 0);
  }
  uint64_t seen = 0;
  for (int idle = 0, left = 1; left > 0; idle = events == seen ? idle + 1 : 0) {
    if (idle > 100) return false;
    seen = events, left = 0;
    for (Fiber& fiber : fibers) {
      if (fiber.done) continue;
      ++left;
      emulated = fiber.block, threadIdx.x = fiber.thread, blockIdx.x = fiber.index;
      starting = &fiber, running = &fiber.context;
      swapcontext(&scheduler, running);
    }
  }
  return faults == 0;
}

// ------------------------------------------------------------------------------------------------ what CUDA C++ has

inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
template <class To, class From>
To same_bits(From x) {
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline uint32_t __float_as_uint(float x) { return same_bits<uint32_t>(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<uint32_t>(both >> (which >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return picked;
}
inline uint32_t atomicAdd(uint32_t* x, uint32_t value) { return (*x += value) - value; }

// --------------------------------------------------------------------------------------------------------- for ptx.h

namespace hqtvae {

#if !defined(HAS_BULK_COPIES)  // as the test wants it: what an A100 does or what an H100 does
#define HAS_BULK_COPIES 0
#endif
inline int opaque(int x) { return x; }
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - emulated->memory());
}
template <class T>
T load_bytes(const void* p) {
  expect(reinterpret_cast<uintptr_t>(p) % sizeof(T) == 0);
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline uint4 load_16_bytes(const void* p) { return load_bytes<uint4>(p); }
inline uint32_t load_4_bytes(const void* p) { return load_bytes<uint32_t>(p); }
inline uint16_t load_2_bytes(const void* p) { return load_bytes<uint16_t>(p); }
inline int64_t load_8_bytes(const void* p) { return load_bytes<int64_t>(p); }
inline uint4 load_shared_16(uint32_t at) { return load_bytes<uint4>(emulated->at(at, 16)); }
inline uint2 load_shared_8(uint32_t at) { return load_bytes<uint2>(emulated->at(at, 8)); }
inline float2 load_shared_floats(uint32_t at) { return load_bytes<float2>(emulated->at(at, 8)); }

uint16_t to_bf16(float x);
inline uint32_t pack_bf16(float low, float high) { return uint32_t{to_bf16(high)} << 16 | to_bf16(low); }

// As the tensor core's manual lays the operands out among 32 lanes.
inline void mma_16_8_16(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                        uint32_t b1) {
  auto& warp = own_warp();
  const int lane = threadIdx.x % 32;
  const uint32_t own[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(warp.lane[lane], own, sizeof own);
  warp.all.arrive_and_wait();
  const auto half = [](uint32_t pair, int k) { return same_bits<float>(k % 2 ? pair & 0xFFFF0000u : pair << 16); };
  const auto a = [&](int row, int k) { return half(warp.lane[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k); };
  const auto b = [&](int k, int column) { return half(warp.lane[column * 4 + k % 8 / 2][4 + k / 8], k); };
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) sums[i] += a(lane / 4 + i / 2 * 8, k) * b(k, lane % 4 * 2 + i % 2);
  warp.all.arrive_and_wait();
}

// As matrices of 8 x 8 pairs of bytes: a lane names a row of one of four, and gets two columns of a row of each.
inline void load_four_matrices(uint32_t (&r)[4], uint32_t address) {
  auto& warp = own_warp();
  const int lane = threadIdx.x % 32;
  emulated->at(address, 16);
  warp.lane[lane][0] = address;
  warp.all.arrive_and_wait();
  for (int m = 0; m < 4; ++m)
    std::memcpy(&r[m], emulated->memory() + warp.lane[8 * m + lane / 4][0] + 4 * (lane % 4), 4);
  warp.all.arrive_and_wait();
}

// A barrier in shared memory, eight bytes as a GPU's: how many must arrive, how many are missing, the parity of the
// phase under way, and the bytes that it still expects.
struct EmulatedBarrier {
  uint8_t arrivals, missing;
  uint16_t parity;
  int32_t bytes;

  void complete_if_due() {
    if (missing == 0 && bytes == 0) missing = arrivals, parity ^= 1, ++events;
  }
};
inline EmulatedBarrier& barrier_at(uint32_t at) { return *reinterpret_cast<EmulatedBarrier*>(emulated->at(at, 8)); }
inline void mbarrier_init(uint32_t at, int arrivals) {
  barrier_at(at) = {static_cast<uint8_t>(arrivals), static_cast<uint8_t>(arrivals), 0, 0};
}
inline void mbarrier_arrive(uint32_t at) {
  expect(barrier_at(at).missing > 0);
  --barrier_at(at).missing, barrier_at(at).complete_if_due();
}
inline void mbarrier_wait(uint32_t at, uint32_t parity) {
  while (barrier_at(at).parity == parity) hand_on();
}
inline void copy_16_async(uint32_t to, const void* from, int size = 16) {
  expect(reinterpret_cast<uintptr_t>(from) % 16 == 0);
  std::memset(emulated->at(to, 16), 0, 16);
  std::memcpy(emulated->at(to, 16), from, size);
}
inline void commit_copies() {}
template <int pending>
void wait_copies() {}
inline void arrive_and_expect(uint32_t at, int bytes) {
  barrier_at(at).bytes += bytes;
  mbarrier_arrive(at);
}
inline void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t at) {
  expect(reinterpret_cast<uintptr_t>(from) % 16 == 0 && bytes % 16 == 0);
  for (int i = 0; i < bytes; i += 16) copy_16_async(to + i, static_cast<const char*>(from) + i);
  barrier_at(at).bytes -= bytes, barrier_at(at).complete_if_due();
}
inline void arrive_after_copies(uint32_t at) { mbarrier_arrive(at); }
inline void fence_barrier_init() {}
inline void add_release(uint32_t* counter, uint32_t value) { *counter += value, ++events; }
inline uint32_t load_acquire(const uint32_t* counter) {
  hand_on();
  return *counter;
}
inline void wait_for_kernel_before() {}
inline void let_next_kernel_start() {}

}  // namespace hqtvae
