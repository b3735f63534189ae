// Launching a kernel by its arguments' addresses: what the launchers at the end of each .cu share. Host code.
//
// No allocation, no synchronisation, the stream that is given: a launch can be captured in a graph.
#pragma once

#include <cuda_runtime.h>

namespace hqtvae {

struct Launch {
  int blocks, threads;
  int shared_bytes = 0;
  // All blocks are on the device at once, or the launch fails: what a grid-wide barrier needs.
  bool cooperative = false;
  // May start while the kernel before it still runs, and waits for it itself: only code for sm_90 has that instruction.
  bool dependent = false;
};

inline cudaError_t launch(const void* kernel, const Launch& how, void** arguments, cudaStream_t stream) {
  // Beyond 48 KB, with what a kernel has of its own (8 KB at most, csrc/check.py sees to it), it has to be allowed.
  if (how.shared_bytes > 40 * 1024) {
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  if (how.dependent) {  // code of compute_80 runs on later devices too, and would not wait
    cudaFuncAttributes found;
    const auto error = cudaFuncGetAttributes(&found, kernel);
    if (error != cudaSuccess) return error;
    if (found.ptxVersion < 90) return cudaErrorNotSupported;
  }
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (how.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (how.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.blocks;
  config.blockDim = how.threads;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace hqtvae
