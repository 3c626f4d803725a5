// What the kernels of this directory are compiled for: once for each instruction set, DENSENET_FAST_ISA, and each type
// of the activations, DENSENET_FAST_ELEMENT, in a namespace of its own. They compute in fp32 whatever that type is:
// loads widen it, and each result is rounded to it once.
#pragma once

#include "kernels.h"

#define DENSENET_FAST_JOIN_(isa, element) isa##_##element
#define DENSENET_FAST_JOIN(isa, element) DENSENET_FAST_JOIN_(isa, element)
#define DENSENET_FAST_KERNELS DENSENET_FAST_JOIN(DENSENET_FAST_ISA, DENSENET_FAST_ELEMENT)

// Tiles take bfloat16 alone: of floats they multiply terms (terms.h).
#define DENSENET_FAST_IS_float 1
#if defined(DENSENET_FAST_TILES) && DENSENET_FAST_JOIN(DENSENET_FAST_IS, DENSENET_FAST_ELEMENT)
#define DENSENET_FAST_TERMS
#endif

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

using element = DENSENET_FAST_ELEMENT;  // of activations and convolutions' weights; vectors of norms are floats

// Whether fp32 results can be made in their place, without scratch.
inline constexpr bool kInPlace = sizeof(element) == sizeof(float);

using Cpu = cpu::Cpu<element>;
using ConstMatrix = Cpu::ConstMatrix;
using Matrix = Cpu::Matrix;
using Weight = Cpu::Weight;
using ChannelStats = Cpu::ChannelStats;
using BnBwdApply = Cpu::BnBwdApply;
using Conv1x1Fwd = Cpu::Conv1x1Fwd;
using Conv1x1Bwd = Cpu::Conv1x1Bwd;
using Conv3x3Fwd = Cpu::Conv3x3Fwd;
using Conv3x3Bwd = Cpu::Conv3x3Bwd;
using TransitionFwd = Cpu::TransitionFwd;
using TransitionBwd = Cpu::TransitionBwd;
using StemFwd = Cpu::StemFwd;
using StemBwd = Cpu::StemBwd;
using HeadFwd = Cpu::HeadFwd;
using HeadBwd = Cpu::HeadBwd;
using Kernels = Cpu::Kernels;

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
