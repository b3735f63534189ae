// The launchers that bindings.cpp calls once it has checked everything, each defined at the end of its kernel's .cu.
// `arguments`: addresses of the kernel's arguments, in its order.
#pragma once

#include <cuda_runtime.h>

namespace hqtvae {

enum class Dtype { fp32, bf16, fp16 };
enum class Stored { bf16, int8, fp8 };  // how a weight is

cudaError_t launch_sample_logits(Dtype dtype, int rows, int codes, void** arguments, cudaStream_t stream);
cudaError_t launch_prediction_head(Stored stored, int images, int blocks, int slots, bool dependent, void** arguments,
                                   cudaStream_t stream);
cudaError_t launch_score_codes(bool split, int rows, int codes, void** arguments, cudaStream_t stream);
cudaError_t launch_settle_codes(int rows, void** arguments, cudaStream_t stream);

}  // namespace hqtvae
