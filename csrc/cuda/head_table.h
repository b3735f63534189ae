// What the prediction head's kernel must know of a model and of its work space, in device memory: eight bytes a field,
// as hqtvae_fast/ops/kernels/prediction_head/table.py writes them. All addresses are multiples of 16; all values are bf16, but
// for the matrices: all of them bf16, all int8 or all fp8 (stored_weight.h), as the kernel's name says. Scales: fp32,
// one a row of a matrix of bytes; null with bf16.
#pragma once

#include "portable.h"

namespace hqtvae {

constexpr int kMostImages = 16;
constexpr int kBottoms = 4;  // codes of one step below a top code
constexpr int kMostRows = kMostImages * kBottoms;
constexpr int kMostCodes = 8192;  // of a level: a row of logits in fp32 must fit where sums meet
constexpr int kHeadWidth = 64;    // of attention: two values a lane
constexpr int kHeadSharedBytes = 37520;  // of shared memory, beside the ring

struct HeadMatrix {
  const unsigned char* weight;
  const float* scale;
  const uint16_t* bias;  // may be null
};

struct HeadLayer {
  const uint16_t *norm1_weight, *norm1_bias;
  HeadMatrix qkv;  // [3 D, D]: rows of queries, keys, values
  HeadMatrix out;  // [D, D]
  const uint16_t *norm2_weight, *norm2_bias;
  HeadMatrix up;    // [4 D, D]
  HeadMatrix down;  // [D, 4 D]
};

struct HeadLevel {
  const uint16_t *norm_weight, *norm_bias;
  const unsigned char* logits;  // [codes, D], no bias
  const float* logits_scale;
  int64_t codes;
};

struct HeadTable {
  int64_t dim, heads, layers;  // D = kHeadWidth heads, a multiple of a unit's chunk
  int64_t sigmoid_gelu;        // 1: x sigmoid(1.702 x); 0: x Phi(x)
  float epsilon, unused;       // of every LayerNorm
  const uint16_t* start;       // p_0 [D]
  const uint16_t* positions;   // p_1 .. p_4 [4, D]
  const uint16_t* codes;       // E_head of the top codes [K, D]
  // Work space, for kMostRows rows: the residual stream [., D], projections [., 3 D], keys and values of position 0
  // [layers, kMostImages, 2 D], attention's output [., D], the MLP's inside [., 4 D], logits [., K].
  uint16_t *stream, *qkv, *first, *attended, *hidden, *logits;
  uint32_t* barrier;  // two counters, zeros between launches
  HeadLevel levels[2];
  HeadLayer layer[1];  // `layers` of them
};

}  // namespace hqtvae
