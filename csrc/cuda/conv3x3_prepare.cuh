// What goes before the main loop of conv3x3_main_loop.cuh: weights packed in the order in which the loop reads them, of
// all layers of a block's forward in one launch; in backward, in one launch for each layer, also BatchNorm's affine
// form and the gradient d.
//
// Packing anew in every call accepts any layout of the weight and pads its channels with zeros. d is made once because
// the input gradient and the weight gradient both read it, and its rows then lie on 16 bytes.
#pragma once

#include "common.cuh"

namespace densenet_fast::cuda::conv3x3 {

// packed [column blocks][chunks][warps_n][taps][2][8 * tiles_n] pieces of kVector inputs. Column 2t + e of tile j of a
// group of n tiles stands for output 2nt + 2j + e of the group: what a thread accumulates is neighbouring channels.
struct PackParams {
  Weight weight;  // [outputs, inputs, 3, 3]
  int outputs, inputs;
  int tiles_n, group_tiles, warps_n, chunks;
  int64_t pieces;
  void* packed;
};

void pack(const PackParams* weights, int64_t count, const Launch& where);

struct PrepareParams {
  PackParams weight;

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

}  // namespace densenet_fast::cuda::conv3x3
