// Channel statistics and BatchNorm's deferred correction. Contract: densenet_fast/ops/batch_norm.py.
#include "work.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

void channel_stats(int64_t M, int64_t C, ConstMatrix x, Stats stats, Workspace& workspace) {
  const Blocks blocks(M, 256, 1);
  const Division division(blocks.count);
  PartialStats partial(stats, blocks.count, C, workspace);
  parallel(division.workers, [&](int64_t w) {
    for (int64_t i = division.begin(w); i < division.end(w); i++)
      partial.set(i, x.data + blocks.begin(i) * x.stride, x.stride, blocks.size(i));
  });
  partial.merge([&](int64_t i) { return blocks.size(i); });
}

void bn_bwd_apply(int64_t M, int64_t C, ConstMatrix v, ConstMatrix x, Correction correction, Matrix dx) {
  parallel_ranges(M, 128, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
      const float *vr = v.data + r * v.stride, *xr = x.data + r * x.stride;
      float* out = dx.data + r * dx.stride;
      for_channels(C, [&](int64_t c, auto part) {
        const vec centred = load(xr + c, part) - load(correction.mean + c, part);
        store(out + c, load(vr + c, part) - load(correction.a + c, part) - load(correction.b + c, part) * centred, part);
      });
    }
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
