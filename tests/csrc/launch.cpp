// csrc/cuda/launch.h over a CUDA runtime that only writes down what it is asked for, for ctypes.

#include "launch.h"

namespace {
int allowed, shared, blocks, cooperative, dependent, compiled_for;
}

extern "C" {

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) allowed = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->ptxVersion = compiled_for;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  shared = static_cast<int>(config->dynamicSmemBytes), blocks = static_cast<int>(config->gridDim.x);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const auto& [id, pad, value] = config->attrs[i];
    if (id == cudaLaunchAttributeCooperative) cooperative = value.cooperative;
    if (id == cudaLaunchAttributeProgrammaticStreamSerialization)
      dependent = value.programmaticStreamSerializationAllowed;
  }
  return cudaSuccess;
}

// 0 where it was launched as asked, -1 otherwise, or the error; what it was allowed, 0 where nothing was said. arch:
// what the kernel was compiled for.
int launched(int bytes, bool as_cooperative, bool as_dependent, int arch, int* allowed_bytes) {
  allowed = shared = blocks = cooperative = dependent = 0, compiled_for = arch;
  const hqtvae::Launch how{
      .blocks = 7, .threads = 256, .shared_bytes = bytes, .cooperative = as_cooperative, .dependent = as_dependent};
  const cudaError_t error = hqtvae::launch(nullptr, how, nullptr, nullptr);
  *allowed_bytes = allowed;
  if (error != cudaSuccess) return blocks == 0 ? error : -1;
  const bool as_asked =
      blocks == 7 && shared == bytes && cooperative == as_cooperative && dependent == as_dependent;
  return as_asked ? 0 : -1;
}

}  // extern "C"
