// Faults planted on purpose, one for each of compute-sanitizer's tools: it must find them all, and none in "nothing".
// A check that has not been seen to fail proves nothing about the kernels that pass it.
//
//   nvcc -o faults faults.cu && compute-sanitizer --tool memcheck --error-exitcode 9 ./faults memcheck

#include <cstdio>
#include <cstring>

constexpr int kThreads = 64;

// Each thread writes one element; the last one's lies behind the allocation.
__global__ void out_of_bounds(int *out) { out[threadIdx.x + 1] = 1; }

// Threads of two warps read what their neighbours write, with no barrier in between.
__global__ void race(int *out) {
  __shared__ int row[kThreads];
  row[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = row[(threadIdx.x + 32) % kThreads];
}

// The input was allocated, and never written.
__global__ void uninitialised(const int *in, int *out) { out[threadIdx.x] = in[threadIdx.x] + 1; }

// Half of a warp waits at a barrier that the other half never reaches.
__global__ void divergent_barrier(int *out) {
  if (threadIdx.x % 32 < 16) __syncthreads();
  out[threadIdx.x] = threadIdx.x;
}

__global__ void nothing_wrong(const int *in, int *out) {
  __shared__ int row[kThreads];
  row[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = row[(threadIdx.x + 32) % kThreads];
}

int main(int argc, char **argv) {
  const char *fault = argc == 2 ? argv[1] : "";
  const size_t bytes = kThreads * sizeof(int);
  int *in = nullptr, *out = nullptr;
  if (cudaMalloc(&in, bytes) != cudaSuccess || cudaMalloc(&out, bytes) != cudaSuccess) {
    std::fprintf(stderr, "no device memory: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 2;
  }
  if (!std::strcmp(fault, "memcheck")) {
    out_of_bounds<<<1, kThreads>>>(out);
  } else if (!std::strcmp(fault, "racecheck")) {
    race<<<1, kThreads>>>(out);
  } else if (!std::strcmp(fault, "initcheck")) {
    uninitialised<<<1, kThreads>>>(in, out);
  } else if (!std::strcmp(fault, "synccheck")) {
    divergent_barrier<<<1, kThreads>>>(out);
  } else if (!std::strcmp(fault, "nothing")) {
    cudaMemset(in, 0, bytes);
    nothing_wrong<<<1, kThreads>>>(in, out);
  } else {
    std::fprintf(stderr, "expected memcheck, racecheck, initcheck, synccheck or nothing; got '%s'\n", fault);
    return 2;
  }
  // The sanitizer's exit code tells, not this program's: some faults leave no error behind, others an expected one.
  cudaDeviceSynchronize();
  cudaFree(in);
  cudaFree(out);
  return 0;
}
