// What one launch prepares before the main loop of conv3x3_main_loop.cuh: the weight packed in the order in which the
// loop reads it, BatchNorm's affine form, and in backward the gradient d.
//
// Packing anew in every call accepts any layout of the weight and pads its channels with zeros. d is made once because
// the input gradient and the weight gradient both read it, and its rows then lie on 16 bytes.
#pragma once

#include "common.cuh"

namespace densenet_fast::cuda::conv3x3 {

struct PrepareParams {
  // packed [column blocks][chunks][warps_n][taps][2][8 * tiles_n] pieces of kVector inputs. Column 2t + e of tile j of
  // a group of n tiles stands for output 2nt + 2j + e of the group: what a thread accumulates is neighbouring channels.
  Weight weight;  // [outputs, inputs, 3, 3]
  int outputs, inputs;
  int tiles_n, group_tiles, warps_n, chunks;
  int64_t weight_pieces;
  void* packed;

  Norm norm;  // [C]
  int C, affine_count;
  float2* affine;  // [affine_count], zero past C

  // d [M, d_stride] = mask * (dy - a - b * (y - mean)), zero past G.
  int64_t M;
  int G, d_stride, dy_granule, y_granule;
  ConstMatrix dy, y;
  Correction correction_y;
  Dropout dropout;
  void* d;
};

void prepare(const PrepareParams& p, const Launch& where);

// Has the launch write `norm`'s affine form, padded with zeros to a multiple of channels.
inline void make_affine(const Norm& norm, int64_t C, int64_t multiple, PrepareParams& prepare, const Launch& where) {
  prepare.norm = norm, prepare.C = static_cast<int>(C);
  prepare.affine_count = static_cast<int>(ceil_div(C, multiple) * multiple);
  prepare.affine = static_cast<float2*>(where.workspace->bytes(prepare.affine_count * sizeof(float2)));
}

}  // namespace densenet_fast::cuda::conv3x3
