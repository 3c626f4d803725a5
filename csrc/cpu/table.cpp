// The kernels of one instruction set as a table of functions: csrc/dispatch.cpp chooses a table and calls through it,
// so nothing else of csrc/cpu is visible outside it.
#include "element.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

void channel_stats(const ChannelStats& op, Workspace& workspace);
void bn_bwd_apply(const BnBwdApply& op, Workspace& workspace);
void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, Workspace& workspace);
void bn_relu_conv1x1_bwd(const Conv1x1Bwd& op, Workspace& workspace);
void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, Workspace& workspace);
void bn_relu_conv3x3_bwd(const Conv3x3Bwd& op, Workspace& workspace);
void transition_fwd(const TransitionFwd& op, Workspace& workspace);
void transition_bwd(const TransitionBwd& op, Workspace& workspace);
void stem_fwd(const StemFwd& op, Workspace& workspace);
void stem_bwd(const StemBwd& op, Workspace& workspace);
void head_fwd(const HeadFwd& op, Workspace& workspace);
void head_bwd(const HeadBwd& op, Workspace& workspace);

#define DENSENET_FAST_STRING_(x) #x
#define DENSENET_FAST_STRING(x) DENSENET_FAST_STRING_(x)

extern const Kernels kernels;
const Kernels kernels = {
    DENSENET_FAST_STRING(DENSENET_FAST_ISA),
    channel_stats,
    bn_bwd_apply,
    bn_relu_conv1x1_fwd,
    bn_relu_conv1x1_bwd,
    bn_relu_conv3x3_fwd,
    bn_relu_conv3x3_bwd,
    transition_fwd,
    transition_bwd,
    stem_fwd,
    stem_bwd,
    head_fwd,
    head_bwd,
};

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
