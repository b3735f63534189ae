// What bindings.cpp asks of every tensor before its address goes to a kernel. Host code.
//
// Each refusal names the argument and says what was expected and what came. The device is looked at last, so that the
// rest can be tested where there is no GPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cuda_runtime.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace hqtvae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "fp32";
    case ScalarType::Double: return "fp64";
    case ScalarType::BFloat16: return "bf16";
    case ScalarType::Half: return "fp16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Char: return "int8";
    case ScalarType::Bool: return "bool";
    default: return "dtype " + std::to_string(static_cast<int>(type));
  }
}

constexpr int64_t kAny = -1;  // of a size

template <class Sizes>
std::string shape_of(const Sizes& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + (size == kAny ? "*" : std::to_string(size));
  return text + "]";
}

inline void expect_shape(const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
  bool same = x.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < x.dim(); ++d) same = shape.begin()[d] == kAny || shape.begin()[d] == x.size(d);
  if (!same) refuse(name, ": expected ", shape_of(shape), "; got ", shape_of(x.sizes()));
}

inline void expect_dtype(const char* name, const Tensor& x, ScalarType type) {
  if (x.scalar_type() != type) refuse(name, ": expected ", name_of(type), "; got ", name_of(x.scalar_type()));
}

// Dense, row by row, from an address that `alignment` divides.
inline void expect_dense(const char* name, const Tensor& x, ScalarType type, std::initializer_list<int64_t> shape,
                         size_t alignment = 1) {
  expect_dtype(name, x, type);
  expect_shape(name, x, shape);
  if (!x.is_contiguous()) refuse(name, ": expected contiguous values; got strides ", shape_of(x.strides()));
  const auto address = reinterpret_cast<uintptr_t>(x.data_ptr());
  if (address % alignment != 0)
    refuse(name, ": expected an address divisible by ", alignment, "; got one that leaves ", address % alignment);
}

struct Named {
  const char* name;
  const Tensor& tensor;
};

// All on one CUDA device, which is returned.
inline int32_t expect_one_device(std::initializer_list<Named> tensors) {
  const int32_t device = tensors.begin()->tensor.get_device_index();
  for (const auto& [name, x] : tensors) {
    if (!x.is_cuda()) refuse(name, ": expected a tensor on a CUDA device; got one that is not");
    if (x.get_device_index() != device)
      refuse(name, ": expected device ", device, ", as ", tensors.begin()->name, "; got ", x.get_device_index());
  }
  return device;
}

inline int expect_int(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) refuse(name, ": expected ", least, " to ", most, "; got ", value);
  return static_cast<int>(value);
}

inline void expect_launched(const char* name, cudaError_t error) {
  if (error == cudaErrorNotSupported)  // launch.h
    refuse(name, ": dependent: expected a device and code of compute capability 9.0 or above; got older ones");
  if (error != cudaSuccess) refuse(name, ": the launch failed: ", cudaGetErrorString(error));
}

}  // namespace hqtvae

// torch's CUDA build has this function. Its CPU build does not: there the library still loads, so that registration and
// checks are tested, and nothing gets as far as a launch.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) __attribute__((weak));

namespace hqtvae {

// Makes a device the current one while it lives; its current stream in torch.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) : guard_(device) {
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream == nullptr || aoti_torch_get_current_cuda_stream(device, &stream) != 0)
      refuse("expected a CUDA build of torch; got one without streams");
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace hqtvae
