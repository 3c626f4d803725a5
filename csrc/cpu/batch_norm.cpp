// Channel statistics, and the correction of a BatchNorm's input gradient that is deferred until all sums are known.
// Contract: densenet_fast/contract/operations.py.
#include "schedule.h"
#include "statistics.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

void channel_stats(const ChannelStats& op, Workspace& workspace) {
  const RowBlocks blocks(op.M, 256, 1);
  const Division division(blocks.count);
  PartialStats partial(op.stats, blocks.count, op.C, workspace);
  share_tasks(division, workspace, [&](int64_t, int64_t i, bool) {
    partial.set(i, op.x.data + blocks.begin(i) * op.x.stride, op.x.stride, blocks.size(i));
  });
  partial.merge([&](int64_t i) { return blocks.size(i); });
}

void bn_bwd_apply(const BnBwdApply& op, Workspace&) {
  const Correction& correction = op.correction;
  parallel_ranges(op.M, 128, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
      const element *vr = op.v.data + r * op.v.stride, *xr = op.x.data + r * op.x.stride;
      element* out = op.dx.data + r * op.dx.stride;
      for_channels(op.C, [&](int64_t c, auto lanes) {
        const vec centred = load(xr + c, lanes) - load(correction.mean + c, lanes);
        store(out + c, load(vr + c, lanes) - load(correction.a + c, lanes) - load(correction.b + c, lanes) * centred,
              lanes);
      });
    }
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
