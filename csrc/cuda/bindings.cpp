// The kernels as operators hqtvae_fast_cuda::*, through torch's stable ABI: checks what it gets and exports, no more.
//
// The operators are implemented for every device, so that a tensor in the wrong place is refused by our own words. What
// a tensor holds is never looked at: that would wait for the device.

#include <torch/csrc/stable/library.h>

#include <optional>

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
// step and position int64 [B], any stride; temperature and top_p fp32 [], top_k int64 []; guidance fp32 [B], any stride:
// then logits and out have 2 B rows.
void sample_logits(Tensor logits, Tensor out, Tensor invalid, Tensor seeds, Tensor step, Tensor position,
                   Tensor temperature, Tensor top_k, Tensor top_p, std::optional<Tensor> guidance) {
  const Dtype dtype = dtype_of("logits", logits);
  expect_shape("logits", logits, {kAny, kAny, kAny});
  const int64_t G = logits.size(1), branches = guidance.has_value() ? 2 : 1;
  if (logits.size(0) % branches != 0) refuse("logits: expected two rows of each image; got ", logits.size(0));
  const int64_t B = logits.size(0) / branches;
  int codes = expect_int("logits.shape[2]", logits.size(2), 1, 32768);
  if (logits.stride(2) != 1) refuse("logits: expected rows of neighbouring values; got stride ", logits.stride(2));
  expect_dtype("out", out, ScalarType::Long);
  expect_shape("out", out, {branches * B, G});
  expect_dense("invalid", invalid, ScalarType::Bool, {});
  expect_dense("seeds", seeds, ScalarType::Long, {B});
  for (const auto& [name, x] : {Named{"step", step}, Named{"position", position}}) {
    expect_dtype(name, x, ScalarType::Long);
    expect_shape(name, x, {B});
  }
  expect_dense("temperature", temperature, ScalarType::Float, {});
  expect_dense("top_k", top_k, ScalarType::Long, {});
  expect_dense("top_p", top_p, ScalarType::Float, {});
  const Tensor& scale = guidance.has_value() ? *guidance : temperature;
  if (guidance.has_value()) {
    expect_dtype("guidance", scale, ScalarType::Float);
    expect_shape("guidance", scale, {B});
  }
  const int rows = expect_int("B * G", B * G, 0, 0x7FFFFFFF);
  const OnDevice here(expect_one_device({{"logits", logits},
                                         {"out", out},
                                         {"invalid", invalid},
                                         {"seeds", seeds},
                                         {"step", step},
                                         {"position", position},
                                         {"temperature", temperature},
                                         {"top_k", top_k},
                                         {"top_p", top_p},
                                         {"guidance", scale}}));
  if (rows == 0) return;
  void* pointers[] = {logits.data_ptr(),
                      out.data_ptr(),
                      invalid.data_ptr(),
                      seeds.data_ptr(),
                      step.data_ptr(),
                      position.data_ptr(),
                      temperature.data_ptr(),
                      top_k.data_ptr(),
                      top_p.data_ptr(),
                      guidance.has_value() ? scale.data_ptr() : nullptr};
  int groups = static_cast<int>(G);
  int64_t strides[] = {logits.stride(0), logits.stride(1), out.stride(0), out.stride(1)};
  int of_images[] = {static_cast<int>(step.stride(0)), static_cast<int>(position.stride(0)),
                     guidance.has_value() ? static_cast<int>(scale.stride(0)) : 0};
  void* arguments[] = {&pointers[0],  &pointers[1],  &pointers[2], &pointers[3], &pointers[4], &pointers[5], &pointers[6],
                       &pointers[7],  &pointers[8],  &pointers[9], &groups,      &codes,       &strides[0],  &strides[1],
                       &strides[2],   &strides[3],   &of_images[0], &of_images[1], &of_images[2]};
  expect_launched("sample_logits", launch_sample_logits(dtype, rows, codes, arguments, here.stream()));
}

// table int64 [n], see head_table.h, checked by what made it; h bf16 [B, D]; codes int64 [B, 5], neighbours in a row;
// invalid bool []; seeds int64 [B]; step int64 []; temperature and top_p fp32 [2], top_k int64 [2], one a level;
// stored: how the matrices are, 0 bf16, 1 int8, 2 fp8.
void prediction_head(Tensor table, Tensor h, Tensor codes, Tensor invalid, Tensor seeds, Tensor step,
                     Tensor temperature, Tensor top_k, Tensor top_p, bool draw_top, int64_t stored, int64_t blocks,
                     int64_t slots, bool dependent) {
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
  const auto how = static_cast<Stored>(expect_int("stored", stored, 0, 2));
  // A warp waits for all units of its tiles before it gives one back: fewer slots would be a deadlock.
  int slot_count = expect_int("slots", slots, kMostTiles<1>, 1024), top = draw_top;
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
                  launch_prediction_head(how, images, grid, slot_count, dependent, arguments, here.stream()));
}

// bf16 parts of rows [N, P] and codes [K, P], P a multiple of 8; square fp32 [K]; best and second fp32, index int32,
// all [blocks of 128 codes, N]. See nearest_code.cu.
void score_codes(Tensor z_high, Tensor z_low, Tensor codes_high, Tensor codes_low, Tensor square, Tensor best,
                 Tensor second, Tensor index, bool split) {
  expect_dense("z_high", z_high, ScalarType::BFloat16, {kAny, kAny}, 16);
  int rows = expect_int("z_high.shape[0]", z_high.size(0), 0, 1 << 24);
  int width = expect_int("z_high.shape[1]", z_high.size(1), 1, 1 << 24);
  if (width % 8 != 0) refuse("z_high: expected a width divisible by 8; got ", width);
  expect_dense("z_low", z_low, ScalarType::BFloat16, {rows, width}, 16);
  expect_dense("codes_high", codes_high, ScalarType::BFloat16, {kAny, width}, 16);
  int codes = expect_int("codes_high.shape[0]", codes_high.size(0), 1, 1 << 24);
  expect_dense("codes_low", codes_low, ScalarType::BFloat16, {codes, width}, 16);
  expect_dense("square", square, ScalarType::Float, {codes});
  const int blocks = ceil_div(codes, 128);
  expect_dense("best", best, ScalarType::Float, {blocks, rows});
  expect_dense("second", second, ScalarType::Float, {blocks, rows});
  expect_dense("index", index, ScalarType::Int, {blocks, rows});
  expect_int("tiles", int64_t{ceil_div(rows, 128)} * blocks, 0, 0x7FFFFFFF);
  const OnDevice here(expect_one_device({{"z_high", z_high},
                                         {"z_low", z_low},
                                         {"codes_high", codes_high},
                                         {"codes_low", codes_low},
                                         {"square", square},
                                         {"best", best},
                                         {"second", second},
                                         {"index", index}}));
  if (rows == 0) return;
  void* pointers[] = {z_high.data_ptr(), z_low.data_ptr(), codes_high.data_ptr(), codes_low.data_ptr(),
                      square.data_ptr(), best.data_ptr(),  second.data_ptr(),     index.data_ptr()};
  void* arguments[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &pointers[4], &pointers[5],
                       &pointers[6], &pointers[7], &rows,        &codes,       &width};
  expect_launched("score_codes", launch_score_codes(split, rows, codes, arguments, here.stream()));
}

// z fp32 [N, C]; book fp32 [K, C]; length fp64 [N]; longest fp64 [1]; what score_codes wrote; found int64 [N]; settled
// int8 [N]; the bound's factors and absolute terms.
void settle_codes(Tensor z, Tensor book, Tensor length, Tensor longest, Tensor best, Tensor second, Tensor index,
                  Tensor found, Tensor settled, double relative, double relative_square, double tiny_length,
                  double tiny) {
  expect_dense("z", z, ScalarType::Float, {kAny, kAny});
  int rows = expect_int("z.shape[0]", z.size(0), 0, 1 << 24);
  int channels = expect_int("z.shape[1]", z.size(1), 1, 1 << 24);
  expect_dense("book", book, ScalarType::Float, {kAny, channels});
  int codes = expect_int("book.shape[0]", book.size(0), 1, 1 << 24);
  const int blocks = ceil_div(codes, 128);
  expect_dense("length", length, ScalarType::Double, {rows});
  expect_dense("longest", longest, ScalarType::Double, {1});
  expect_dense("best", best, ScalarType::Float, {blocks, rows});
  expect_dense("second", second, ScalarType::Float, {blocks, rows});
  expect_dense("index", index, ScalarType::Int, {blocks, rows});
  expect_dense("found", found, ScalarType::Long, {rows});
  expect_dense("settled", settled, ScalarType::Char, {rows});
  const OnDevice here(expect_one_device({{"z", z},
                                         {"book", book},
                                         {"length", length},
                                         {"longest", longest},
                                         {"best", best},
                                         {"second", second},
                                         {"index", index},
                                         {"found", found},
                                         {"settled", settled}}));
  if (rows == 0) return;
  void* pointers[] = {z.data_ptr(),      book.data_ptr(),  length.data_ptr(), longest.data_ptr(), best.data_ptr(),
                      second.data_ptr(), index.data_ptr(), found.data_ptr(),  settled.data_ptr()};
  float bound[] = {static_cast<float>(relative), static_cast<float>(relative_square), static_cast<float>(tiny_length),
                   static_cast<float>(tiny)};
  void* arguments[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &pointers[4], &pointers[5],
                       &pointers[6], &pointers[7], &pointers[8], &rows,        &codes,       &channels,
                       &bound[0],    &bound[1],    &bound[2],    &bound[3]};
  expect_launched("settle_codes", launch_settle_codes(rows, arguments, here.stream()));
}

}  // namespace
}  // namespace hqtvae

STABLE_TORCH_LIBRARY(hqtvae_fast_cuda, m) {
  m.def(
      "sample_logits(Tensor logits, Tensor(a!) out, Tensor(b!) invalid, Tensor seeds, Tensor step, Tensor position, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor? guidance=None) -> ()");
  m.def(
      "prediction_head(Tensor table, Tensor h, Tensor(a!) codes, Tensor(b!) invalid, Tensor seeds, Tensor step, "
      "Tensor temperature, Tensor top_k, Tensor top_p, bool draw_top, int stored, int blocks, int slots, "
      "bool dependent) -> ()");
  m.def(
      "score_codes(Tensor z_high, Tensor z_low, Tensor codes_high, Tensor codes_low, Tensor square, Tensor(a!) best, "
      "Tensor(b!) second, Tensor(c!) index, bool split) -> ()");
  m.def(
      "settle_codes(Tensor z, Tensor book, Tensor length, Tensor longest, Tensor best, Tensor second, Tensor index, "
      "Tensor(a!) found, Tensor(b!) settled, float relative, float relative_square, float tiny_length, float tiny) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hqtvae_fast_cuda, CompositeExplicitAutograd, m) {
  m.impl("sample_logits", TORCH_BOX(&hqtvae::sample_logits));
  m.impl("prediction_head", TORCH_BOX(&hqtvae::prediction_head));
  m.impl("score_codes", TORCH_BOX(&hqtvae::score_codes));
  m.impl("settle_codes", TORCH_BOX(&hqtvae::settle_codes));
}
