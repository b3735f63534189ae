// The kernels as operators hqtvae_fast_cuda::*, through torch's stable ABI: checks what it gets and exports, no more.
//
// The operators are implemented for every device, so that a tensor in the wrong place is refused by our own words. What a
// tensor holds is never looked at: that would wait for the device.

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "head_table.h"
#include "launchers.h"
#include "schedule.h"

namespace hqtvae {
namespace {

Dtype dtype_of(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::fp32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::fp16;
    default: refuse(name, ": expected fp32, bf16 or fp16; got ", name_of(x.scalar_type()));
  }
}

// logits [B, G, K], a row's values next to each other; out int64 [B, G], any strides; invalid bool []; seeds int64 [B];
// step and position int64 [B], any stride; temperature and top_p fp32 [], top_k int64 [].
void sample_logits(Tensor logits, Tensor out, Tensor invalid, Tensor seeds, Tensor step, Tensor position,
                   Tensor temperature, Tensor top_k, Tensor top_p) {
  const Dtype dtype = dtype_of("logits", logits);
  expect_shape("logits", logits, {kAny, kAny, kAny});
  const int64_t B = logits.size(0), G = logits.size(1);
  int codes = expect_int("logits.shape[2]", logits.size(2), 1, 32768);
  if (logits.stride(2) != 1) refuse("logits: expected rows of neighbouring values; got stride ", logits.stride(2));
  expect_dtype("out", out, ScalarType::Long);
  expect_shape("out", out, {B, G});
  expect_dense("invalid", invalid, ScalarType::Bool, {});
  expect_dense("seeds", seeds, ScalarType::Long, {B});
  for (const auto& [name, x] : {Named{"step", step}, Named{"position", position}}) {
    expect_dtype(name, x, ScalarType::Long);
    expect_shape(name, x, {B});
  }
  expect_dense("temperature", temperature, ScalarType::Float, {});
  expect_dense("top_k", top_k, ScalarType::Long, {});
  expect_dense("top_p", top_p, ScalarType::Float, {});
  const int rows = expect_int("B * G", B * G, 0, 0x7FFFFFFF);
  const OnDevice here(expect_one_device({{"logits", logits},
                                         {"out", out},
                                         {"invalid", invalid},
                                         {"seeds", seeds},
                                         {"step", step},
                                         {"position", position},
                                         {"temperature", temperature},
                                         {"top_k", top_k},
                                         {"top_p", top_p}}));
  if (rows == 0) return;
  void* pointers[] = {logits.data_ptr(), out.data_ptr(),         invalid.data_ptr(), seeds.data_ptr(), step.data_ptr(),
                      position.data_ptr(), temperature.data_ptr(), top_k.data_ptr(),   top_p.data_ptr()};
  int groups = static_cast<int>(G);
  int64_t strides[] = {logits.stride(0), logits.stride(1), out.stride(0), out.stride(1)};
  int step_strides[] = {static_cast<int>(step.stride(0)), static_cast<int>(position.stride(0))};
  void* arguments[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &pointers[4],     &pointers[5],
                       &pointers[6], &pointers[7], &pointers[8], &groups,      &codes,           &strides[0],
                       &strides[1],  &strides[2],  &strides[3],  &step_strides[0], &step_strides[1]};
  expect_launched("sample_logits", launch_sample_logits(dtype, rows, codes, arguments, here.stream()));
}

// table int64 [n], see head_table.h, checked by what made it; h bf16 [B, D]; codes int64 [B, 5], neighbours in a row; invalid
// bool []; seeds int64 [B]; step int64 []; temperature and top_p fp32 [2], top_k int64 [2], one a level.
void prediction_head(Tensor table, Tensor h, Tensor codes, Tensor invalid, Tensor seeds, Tensor step, Tensor temperature,
                     Tensor top_k, Tensor top_p, bool draw_top, int64_t blocks, int64_t slots, bool dependent) {
  expect_dense("table", table, ScalarType::Long, {kAny}, 8);
  expect_dense("h", h, ScalarType::BFloat16, {kAny, kAny}, 16);
  int images = expect_int("h.shape[0]", h.size(0), 1, kMostImages);
  expect_dtype("codes", codes, ScalarType::Long);
  expect_shape("codes", codes, {images, 1 + kBottoms});
  if (codes.stride(1) != 1) refuse("codes: expected neighbours in a row; got stride ", codes.stride(1));
  expect_dense("invalid", invalid, ScalarType::Bool, {});
  expect_dense("seeds", seeds, ScalarType::Long, {images});
  expect_dense("step", step, ScalarType::Long, {});
  expect_dense("temperature", temperature, ScalarType::Float, {2});
  expect_dense("top_k", top_k, ScalarType::Long, {2});
  expect_dense("top_p", top_p, ScalarType::Float, {2});
  int slot_count = expect_int("slots", slots, kTileOuts, 1024), top = draw_top;
  const int grid = expect_int("blocks", blocks, 1, 65535);
  const OnDevice here(expect_one_device({{"h", h},
                                         {"table", table},
                                         {"codes", codes},
                                         {"invalid", invalid},
                                         {"seeds", seeds},
                                         {"step", step},
                                         {"temperature", temperature},
                                         {"top_k", top_k},
                                         {"top_p", top_p}}));
  void* pointers[] = {table.data_ptr(), h.data_ptr(),           codes.data_ptr(), invalid.data_ptr(), seeds.data_ptr(),
                      step.data_ptr(),  temperature.data_ptr(), top_k.data_ptr(), top_p.data_ptr()};
  int64_t stride = codes.stride(0);
  void* arguments[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &pointers[4], &pointers[5], &pointers[6],
                       &pointers[7], &pointers[8], &stride,      &images,      &top,         &slot_count};
  expect_launched("prediction_head",
                  launch_prediction_head(images, grid, slot_count, dependent, arguments, here.stream()));
}

}  // namespace
}  // namespace hqtvae

STABLE_TORCH_LIBRARY(hqtvae_fast_cuda, m) {
  m.def(
      "sample_logits(Tensor logits, Tensor(a!) out, Tensor(b!) invalid, Tensor seeds, Tensor step, Tensor position, "
      "Tensor temperature, Tensor top_k, Tensor top_p) -> ()");
  m.def(
      "prediction_head(Tensor table, Tensor h, Tensor(a!) codes, Tensor(b!) invalid, Tensor seeds, Tensor step, "
      "Tensor temperature, Tensor top_k, Tensor top_p, bool draw_top, int blocks, int slots, bool dependent) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hqtvae_fast_cuda, CompositeExplicitAutograd, m) {
  m.impl("sample_logits", TORCH_BOX(&hqtvae::sample_logits));
  m.impl("prediction_head", TORCH_BOX(&hqtvae::prediction_head));
}
