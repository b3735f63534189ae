// The launchers that bindings.cpp calls once it has checked everything, each defined at the end of its kernel's .cu.
// `arguments`: addresses of the kernel's arguments, in its order.
#pragma once

#include <cuda_runtime.h>

namespace hqtvae {

enum class Dtype { fp32, bf16, fp16 };

cudaError_t launch_sample_logits(Dtype dtype, int rows, int codes, void** arguments, cudaStream_t stream);
cudaError_t launch_prediction_head(int images, int blocks, int slots, bool dependent, void** arguments,
                                   cudaStream_t stream);

}  // namespace hqtvae
