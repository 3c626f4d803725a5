"""Instructions on registers against Python's integers and PyTorch."""

import math

import numpy as np
import pytest
import torch

from .snippets import THREADS, evaluate


def integers(bits: int, seed: int = 0) -> torch.Tensor:
    """Random, with the extremes, in the signed type of this width."""
    limits = np.iinfo(f"int{bits}")
    values = np.random.default_rng(seed).integers(limits.min, limits.max, THREADS, f"int{bits}", endpoint=True)
    values[:6] = [limits.min, limits.max, 0, -1, 1, 2]
    return torch.from_numpy(np.roll(values, seed))


def floats(seed: int = 0) -> torch.Tensor:
    values = torch.randn(THREADS, generator=torch.Generator().manual_seed(seed)) * 3
    values[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0])
    return values.roll(seed)


def signed(value: int, bits: int) -> int:
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


U = (1 << 32) - 1
INTEGER = {  # of Python's integers; operands and results are 32 bits, signed, unless the code says otherwise
    "add.s32 $0, $1, $2;": lambda a, b: a + b,
    "sub.u32 $0, $1, $2;": lambda a, b: a - b,
    "mul.lo.s32 $0, $1, $2;": lambda a, b: a * b,
    "mul.hi.s32 $0, $1, $2;": lambda a, b: a * b >> 32,
    "mul.hi.u32 $0, $1, $2;": lambda a, b: (a & U) * (b & U) >> 32,
    "mad.lo.s32 $0, $1, $2, $1;": lambda a, b: a * b + a,
    "mad.hi.u32 $0, $1, $2, $1;": lambda a, b: ((a & U) * (b & U) >> 32) + a,
    "min.s32 $0, $1, $2;": min,
    "max.u32 $0, $1, $2;": lambda a, b: max(a & U, b & U),
    "and.b32 $0, $1, $2;": lambda a, b: a & b,
    "xor.b32 $0, $1, $2;": lambda a, b: a ^ b,
    "not.b32 $0, $1;": lambda a, b: ~a,
    "neg.s32 $0, $1;": lambda a, b: -a,
    "abs.s32 $0, $1;": lambda a, b: abs(a),
    "shl.b32 $0, $1, 5;": lambda a, b: a << 5,
    "shl.b32 $0, $1, 40;": lambda a, b: 0,
    "shr.s32 $0, $1, 5;": lambda a, b: a >> 5,
    "shr.s32 $0, $1, 40;": lambda a, b: a >> 31,
    "shr.u32 $0, $1, 5;": lambda a, b: (a & U) >> 5,
    "shr.u32 $0, $1, 32;": lambda a, b: 0,
    "shf.l.wrap.b32 $0, $1, $2, 37;": lambda a, b: ((a & U) | (b & U) << 32) << 5 >> 32,
    "shf.r.clamp.b32 $0, $1, $2, 37;": lambda a, b: b,
    "bfe.u32 $0, $1, 4, 9;": lambda a, b: (a & U) >> 4 & 0x1FF,
    "bfe.s32 $0, $1, 4, 9;": lambda a, b: signed((a & U) >> 4 & 0x1FF, 9),
    "bfe.s32 $0, $1, 28, 9;": lambda a, b: a >> 28,
    "bfe.u32 $0, $1, 0, 32;": lambda a, b: a,
    "bfi.b32 $0, $1, $2, 7, 10;": lambda a, b: (b & U & ~(0x3FF << 7)) | (a & 0x3FF) << 7,
    "lop3.b32 $0, $1, $2, 0x0f0f, 0xca;": lambda a, b: (a & b) | (~a & 0x0F0F),
    "lop3.b32 $0, $1, $2, $1, 0x96;": lambda a, b: b,
    "prmt.b32 $0, $1, $2, 0x5410;": lambda a, b: (a & 0xFFFF) | (b & 0xFFFF) << 16,
    "prmt.b32 $0, $1, $2, 0x0123;": lambda a, b: int.from_bytes((a & U).to_bytes(4, "big"), "little"),
    "prmt.b32 $0, $1, $2, 0x88ff;": lambda a, b: (-(b >> 31 & 1) & 0xFFFF) | (-(a >> 7 & 1) & 0xFFFF) << 16,
    "popc.b32 $0, $1;": lambda a, b: (a & U).bit_count(),
    "clz.b32 $0, $1;": lambda a, b: 32 - (a & U).bit_length(),
    "brev.b32 $0, $1;": lambda a, b: int(f"{a & U:032b}"[::-1], 2),
    "setp.lt.s32 %p1, $1, $2; selp.b32 $0, $1, $2, %p1;": min,
    "setp.hs.u32 %p1|%p2, $1, $2; selp.b32 $0, 3, 4, %p2;": lambda a, b: 4 if (a & U) >= (b & U) else 3,
    "setp.eq.s32 %p1, $1, 1; setp.ne.or.s32 %p2, $2, 0, !%p1; selp.b32 $0, 1, 0, %p2;": lambda a, b: b != 0 or a != 1,
    "mov.b32 {%rs1, %rs2}, $1; mov.b32 $0, {%rs2, %rs1};": lambda a, b: (a & U) >> 16 | a << 16,
    "cvt.s32.s8 $0, $1;": lambda a, b: signed(a, 8),
    "cvt.u32.u16 $0, $1;": lambda a, b: a & 0xFFFF,
    "cvt.sat.u32.s32 $0, $1;": lambda a, b: max(a, 0),
    "mul.wide.s32 %rd5, $1, $2; shr.s64 %rd5, %rd5, 16; cvt.u32.u64 $0, %rd5;": lambda a, b: a * b >> 16,
    "{ .reg .b32 t; mov.b32 t, $2; { .reg .b32 t; mov.b32 t, $1; } add.s32 $0, t, $1; }": lambda a, b: a + b,
}


@pytest.mark.parametrize("code", INTEGER)
def test_integers(code):
    a, b = integers(32), integers(32, 3)
    exact = [signed(int(INTEGER[code](x, y)), 32) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert evaluate(code, [a, b], torch.int32).tolist() == exact


WIDE = {
    "add.s64 $0, $1, $2;": lambda a, b: a + b,
    "mul.lo.s64 $0, $1, $2;": lambda a, b: a * b,
    "mul.hi.u64 $0, $1, $2;": lambda a, b: (a % (1 << 64)) * (b % (1 << 64)) >> 64,
    "mul.hi.s64 $0, $1, $2;": lambda a, b: a * b >> 64,
    "shr.u64 $0, $1, 30;": lambda a, b: (a % (1 << 64)) >> 30,
    "xor.b64 $0, $1, $2;": lambda a, b: a ^ b,
    "max.s64 $0, $1, $2;": max,
    "mov.b64 {%r1, %r2}, $1; mov.b64 $0, {%r2, %r1};": lambda a, b: (a % (1 << 64)) >> 32 | (a & U) << 32,
    "cvt.u32.u64 %r1, $1; cvt.s64.s32 $0, %r1;": lambda a, b: signed(a, 32),
}


@pytest.mark.parametrize("code", WIDE)
def test_integers_of_64_bits(code):
    a, b = integers(64), integers(64, 3)
    exact = [signed(int(WIDE[code](x, y)), 64) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert evaluate(code, [a, b], torch.int64).tolist() == exact


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_division(kind):
    a, b = integers(32), integers(32, 3)
    a[b == 0], b[b == 0] = 7, 3
    a[0] = 5  # the smallest by -1 overflows
    for code, function in (("div", quotient), ("rem", lambda x, y: x - quotient(x, y) * y)):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        exact = [signed(function(x & U, y & U) if kind == "u32" else function(x, y), 32) for x, y in pairs]
        assert evaluate(f"{code}.{kind} $0, $1, $2;", [a, b], torch.int32).tolist() == exact


FLOAT = {
    "add.f32 $0, $1, $2;": torch.add,
    "mul.rn.f32 $0, $1, $2;": torch.mul,
    "div.rn.f32 $0, $1, $2;": torch.div,
    "fma.rn.f32 $0, $1, $2, $1;": lambda a, b: torch.addcmul(a.double(), a.double(), b.double()).float(),
    "max.f32 $0, $1, $2;": torch.fmax,
    "max.NaN.f32 $0, $1, $2;": torch.maximum,
    "min.f32 $0, $1, $2;": torch.fmin,
    "neg.f32 $0, $1;": lambda a, b: -a,
    "abs.f32 $0, $1;": lambda a, b: a.abs(),
    "sqrt.rn.f32 $0, $1;": lambda a, b: a.sqrt(),
    "rsqrt.approx.ftz.f32 $0, $1;": lambda a, b: a.rsqrt(),
    "ex2.approx.f32 $0, $1;": lambda a, b: a.exp2(),
    "mov.f32 $0, 0f3FC00000;": lambda a, b: torch.full_like(a, 1.5),
    "setp.lt.f32 %p1, $1, $2; selp.f32 $0, $1, 0f00000000, %p1;": lambda a, b: torch.where(a < b, a, 0),
    "setp.ltu.f32 %p1, $1, $2; selp.f32 $0, 0f3F800000, 0f00000000, %p1;": lambda a, b: (~(a >= b)).float(),
    "setp.nan.f32 %p1, $1, $2; selp.f32 $0, 0f3F800000, 0f00000000, %p1;": lambda a, b: (a.isnan() | b.isnan()).float(),
    "cvt.rzi.s32.f32 %r1, $1; cvt.rn.f32.s32 $0, %r1;": lambda a, b: a.nan_to_num(0, 2**31, -(2**31)).trunc(),
    "cvt.rni.f32.f32 $0, $1;": lambda a, b: a.round(),
    "cvt.sat.f32.f32 $0, $1;": lambda a, b: a.clamp(0, 1).nan_to_num(0),
    "add.ftz.f32 $0, $1, 0f00000001;": lambda a, b: a,  # the smallest subnormal
}


@pytest.mark.parametrize("code", FLOAT)
def test_floats(code):
    a, b = floats(), floats(3)
    torch.testing.assert_close(
        evaluate(code, [a, b], torch.float32), FLOAT[code](a, b), rtol=2e-7, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_floats_of_16_bits(kind, dtype):
    a, b = floats(), floats(3)
    a[6], a[7], a[8] = 1 + 2**-8, 1 + 3 * 2**-8, 65519.9  # ties, and the largest float16 before infinity

    def same(got, exact):
        assert torch.equal(got.isnan(), exact.isnan())
        assert torch.equal(got.nan_to_num(0), exact.nan_to_num(0))

    same(evaluate(f"cvt.rn.{kind}.f32 $0, $1;", [a], dtype), a.to(dtype))
    pair = evaluate(f"cvt.rn.relu.{kind}x2.f32 $0, $2, $1;", [a, b], torch.int32).view(dtype).reshape(-1, 2)
    same(pair, torch.stack([a, b], 1).relu().to(dtype))
    same(evaluate(f"cvt.f32.{kind} $0, $1;", [a.to(dtype)], torch.float32), a.to(dtype).float())
    toward_zero = evaluate(f"cvt.rz.{kind}.f32 $0, $1;", [a], dtype).float()
    finite = a.isfinite()
    assert (toward_zero.abs() <= a.abs())[finite].all()
    x, y = (torch.stack([t, t.flip(0)], 1).to(dtype) for t in (a, b))
    for code, function in (
        ("fma.rn", lambda p, q: (p.double() * q.double() + p).to(dtype)),
        ("max.NaN", torch.maximum),
    ):
        third = ", $1" if code == "fma.rn" else ""
        got = evaluate(
            f"{code}.{kind}x2 $0, $1, $2{third};",
            [x.view(torch.int32).view(-1), y.view(torch.int32).view(-1)],
            torch.int32,
        )
        same(got.view(dtype).reshape(-1, 2), function(x, y))


def test_comparison_of_halves():
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [math.nan, 1.0], [0.0, 0.0]]).repeat(16, 1).half()
    y = torch.ones(64, 2).half()
    code = "setp.le.f16x2 %p1|%p2, $1, $2; selp.b32 %r1, 1, 0, %p1; selp.b32 %r2, 2, 0, %p2; or.b32 $0, %r1, %r2;"
    got = evaluate(code, [x.view(torch.int32).view(-1), y.view(torch.int32).view(-1)], torch.int32)
    assert got.tolist() == [1, 2, 2, 3] * 16


def test_tf32():
    a = torch.tensor([1 + 2**-11, 1 + 2**-11 + 2**-20, 1 + 3 * 2**-11, -1 - 2**-11]).repeat(16)
    away = evaluate("cvt.rna.tf32.f32 $0, $1;", [a], torch.float32)[:4].tolist()
    assert away == [1 + 2**-10, 1 + 2**-10, 1 + 2**-9, -1 - 2**-10]
    assert evaluate("cvt.rn.tf32.f32 $0, $1;", [a], torch.float32)[:3].tolist() == [1, 1 + 2**-10, 1 + 2**-9]
