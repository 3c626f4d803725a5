"""The interpreter's instructions against Python's integers, PyTorch and the PTX manual's tables."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from . import Divergence, Launch, Struct, Unsupported
from .numerics import tensor_core_sum, to_tf32
from .snippets import LAST_ARRIVING, PIPELINE, PRODUCT, elementwise, kernel

THREADS = 64


def evaluate(code: str, inputs: list[torch.Tensor], output: torch.dtype) -> torch.Tensor:
    out = torch.zeros(THREADS, dtype=output)
    text = elementwise(code, *(t.element_size() for t in inputs), out.element_size())
    Launch(text, "k").run((1,), THREADS, [*inputs, out], unwritten=[out])
    return out


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


def test_vectors_of_memory():
    text = kernel("""
	mov.u32 %r0, %tid.x;
	ld.param.u64 %rd0, [k_param_0];
	ld.param.u64 %rd1, [k_param_1];
	mad.wide.u32 %rd0, %r0, 16, %rd0;
	mad.wide.u32 %rd1, %r0, 16, %rd1;
	ld.global.v2.b64 {%rd2, %rd3}, [%rd0];
	ld.global.v4.u16 {%rs0, %rs1, %rs2, %rs3}, [%rd0+8];
	st.global.v2.b64 [%rd1], {%rd3, %rd2};
	st.global.v4.u16 [%rd1+8], {%rs3, %rs2, %rs1, %rs0};
	ret;
""")
    x, y = torch.arange(32 * 8, dtype=torch.int16).view(32, 8), torch.zeros(32, 8, dtype=torch.int16)
    Launch(text, "k").run((1,), 32, [x, y])
    assert torch.equal(y, torch.cat([x[:, 4:], x[:, 4:].flip(1)], 1))


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;", lambda i: i ^ 5),
        ("shfl.sync.down.b32 %r2, %r1, 3, 31, -1;", lambda i: min(i + 3, i) if i + 3 > 31 else i + 3),
        ("shfl.sync.up.b32 %r2, %r1, 3, 0, -1;", lambda i: i - 3 if i >= 3 else i),
        ("shfl.sync.idx.b32 %r2, %r1, 9, 31, -1;", lambda i: 9),
        ("shfl.sync.idx.b32 %r2, %r1, 1, 0x181f, -1;", lambda i: i // 8 * 8 + 1),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 0x1c1f, -1;", lambda i: i ^ 1),
    ],
)
def test_shuffles(code, source):
    text = elementwise(f"mov.b32 %r1, $1; {code} mov.b32 $0, %r2;", 4, 4)
    x, y = torch.randint(0, 1 << 30, (64,), dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    Launch(text, "k").run((1,), 64, [x, y])
    assert y.tolist() == [x[i // 32 * 32 + source(i % 32)] for i in range(64)]


def test_votes_and_reductions():
    x = torch.randint(-100, 100, (64,), dtype=torch.int32)
    warps = x.view(2, 32)

    def run(code):
        return evaluate(f"setp.gt.s32 %p1, $1, 0; {code}", [x], torch.int32).view(2, 32)

    assert torch.equal(run("redux.sync.add.s32 $0, $1, -1;"), warps.sum(1, keepdim=True).expand(2, 32).int())
    assert torch.equal(run("redux.sync.max.s32 $0, $1, -1;"), warps.amax(1, keepdim=True).expand(2, 32))
    ballot = [sum(1 << i for i in range(32) if w[i] > 0) for w in warps.tolist()]
    assert [v % (1 << 32) for v in run("vote.sync.ballot.b32 $0, %p1, -1;")[:, 0].tolist()] == ballot
    assert run("vote.sync.any.pred %p2, %p1, -1; selp.b32 $0, 1, 0, %p2;").all()


def test_mma_registers():
    """m16n8k16 and m16n8k8, operand by operand, as the PTX manual places them."""
    for kind, depth in (("bf16", 16), ("tf32", 8)):
        a, b, c = torch.randint(-4, 5, (16, depth)), torch.randint(-4, 5, (depth, 8)), torch.randint(-4, 5, (16, 8))
        count = 4
        place_a, place_b, place_c = [], [], []
        for lane in range(32):
            g, q = lane // 4, lane % 4
            if kind == "tf32":
                place_a.append([[a[g + 8 * (i % 2), q + 4 * (i // 2)]] for i in range(count)])
                place_b.append([[b[q + 4 * i, g]] for i in range(2)])
            else:
                place_a.append([[a[g + 8 * (i % 2), 2 * q + 8 * (i // 2) + j] for j in range(2)] for i in range(count)])
                place_b.append([[b[2 * q + 8 * i + j, g] for j in range(2)] for i in range(2)])
            place_c.append([c[g + 8 * (i // 2), 2 * q + i % 2] for i in range(4)])
        dtype = torch.float32 if kind == "tf32" else torch.bfloat16
        tensors = [torch.tensor(p).to(dtype).reshape(32, -1).contiguous() for p in (place_a, place_b)]
        tensors += [torch.tensor(place_c).float(), torch.zeros(32, 4)]
        loads = "".join(f"ld.param.u64 %rd{i}, [k_param_{i}];" for i in range(4))
        shape = "m16n8k8.row.col.f32.tf32.tf32" if kind == "tf32" else "m16n8k16.row.col.f32.bf16.bf16"
        text = kernel(
            f"""{loads} mov.u32 %r0, %tid.x;
	mad.wide.u32 %rd0, %r0, 16, %rd0; mad.wide.u32 %rd1, %r0, 8, %rd1;
	mad.wide.u32 %rd2, %r0, 16, %rd2; mad.wide.u32 %rd3, %r0, 16, %rd3;
	ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd0]; ld.global.v2.b32 {{%r5, %r6}}, [%rd1];
	ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd2];
	mma.sync.aligned.{shape}.f32 {{%f1, %f2, %f3, %f4}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f1, %f2, %f3, %f4}};
	st.global.v4.f32 [%rd3], {{%f1, %f2, %f3, %f4}}; ret;""",
            4,
        )
        Launch(text, "k").run((1,), 32, tensors)
        exact = a @ b + c
        for lane in range(32):
            g, q = lane // 4, lane % 4
            assert tensors[3][lane].tolist() == [exact[g + 8 * (i // 2), 2 * q + i % 2] for i in range(4)]


def test_tf32_products_are_added_as_on_an_a100():
    """Term by term in exact integers, four products at a time; and a sum of which a rounded addition keeps all."""

    def cut(x: Fraction, bit: Fraction) -> Fraction:
        return int(x / bit) * bit

    def add(c: float, products: list[Fraction]) -> Fraction:
        terms = [Fraction(c), *products]
        last = Fraction(2) ** (math.frexp(max(map(abs, terms)))[1] - 1 - 24)  # one bit below float32's
        total = sum(cut(term, last) for term in terms)
        return cut(total, Fraction(2) ** (math.frexp(abs(total))[1] - 24)) if total else total

    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 16, 8), (3, 8, 8), (3, 16, 8)))
    a, b = (to_tf32(x.view(np.uint32), "rna").view(np.float32) for x in (a, b))
    c *= np.exp(5 * c)
    got = tensor_core_sum(c, a, b)
    for n, i, j in np.ndindex(c.shape):
        products = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[n, i], b[n, :, j], strict=True)]
        assert got[n, i, j] == add(add(float(c[n, i, j]), products[:4]), products[4:])
    ones = np.ones((1, 8, 8), np.float32)
    assert (tensor_core_sum(np.ones((1, 16, 8), np.float32), np.full((1, 16, 8), 2**-25, np.float32), ones) == 1).all()


def test_product_through_shared_memory():
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    d = torch.full((16, 8), math.nan)
    Launch(PRODUCT, "k").run((1,), 32, [a, b, d], unwritten=[d])
    torch.testing.assert_close(d, a.float() @ b.float(), rtol=1e-6, atol=1e-6)


def test_pipeline():
    x, y = torch.randn(4, 64), torch.zeros(4, 64)
    counts = Launch(PIPELINE, "k").run((1,), 64, [x, y], unwritten=[y])
    assert torch.equal(y, x.flip(1))
    assert (counts.read(x), counts.written(x), counts.read(y), counts.written(y)) == (1024, 0, 0, 1024)
    assert counts.instructions["ld"] == 2 * (2 + 4)  # two warps: two parameters, four tiles


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("together", [4096, 64])
def test_last_arriving_cta(order, together, monkeypatch):
    monkeypatch.setattr("tests.ptx.launch.LANES", together)  # all CTAs at once, or one after another
    x, partial, counter, out = (
        torch.randn(3, 64),
        torch.zeros(3, 64),
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(64),
    )
    launch = Launch(LAST_ARRIVING, "k")
    for _ in range(2):  # the counter is back at zero
        launch.run((3,), 64, [x, partial, counter, out], order=order, unwritten=[partial, out])
        assert torch.equal(out, 2 * x[0] + 2 * x[1] + 2 * x[2])


def test_divergence_comes_together():
    """Threads loop as often as their number says, then meet in a warp-wide instruction."""
    text = elementwise(
        """mov.b32 %r1, $1; mov.u32 %r2, 0;
again:
	add.u32 %r2, %r2, %r1; sub.u32 %r1, %r1, 1; setp.gt.s32 %p1, %r1, 0; @%p1 bra again;
	shfl.sync.bfly.b32 $0, %r2, 1, 31, -1;""",
        4,
        4,
    )
    x, y = torch.randint(1, 20, (64,), dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    Launch(text, "k").run((1,), 64, [x, y])
    total = x * (x + 1) // 2
    assert torch.equal(y, total.view(-1, 2).flip(1).reshape(-1))


def test_table_of_branches():
    """Each thread takes the branch of its number."""
    text = elementwise(
        """and.b32 %r1, %r0, 3; mov.b32 %r2, $1;
table: .branchtargets zero, one, two, one;
	brx.idx %r1, table;
zero:
	add.s32 %r2, %r2, 100;
one:
	add.s32 %r2, %r2, 10;
two:
	mov.b32 $0, %r2;""",
        4,
        4,
    )
    y = torch.zeros(64, dtype=torch.int32)
    Launch(text, "k").run((1,), 64, [torch.zeros(64, dtype=torch.int32), y])
    assert y.tolist() == [110, 10, 0, 10] * 16


def test_structures_slices_and_grids():
    """A structure with two tensors of one storage; CTAs and threads in three dimensions."""
    text = """.version 8.0
.target sm_80
.visible .entry k(.param .align 8 .b8 k_param_0[24], .param .f32 k_param_1)
.reqntid 4, 2, 1
{ .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<3>;
	ld.param.v2.u64 {%rd1, %rd2}, [k_param_0]; mov.b64 %rd3, k_param_0; ld.param.u32 %r1, [%rd3+16];
	ld.param.f32 %f1, [k_param_1];
	mov.u32 %r2, %tid.x; mov.u32 %r3, %tid.y; mov.u32 %r4, %ctaid.z; mov.u32 %r5, %ntid.y;
	mad.lo.u32 %r6, %r4, %r5, %r3; mad.lo.u32 %r7, %r6, %r1, %r2;
	mad.wide.u32 %rd4, %r7, 4, %rd1; mad.wide.u32 %rd5, %r7, 4, %rd2;
	ld.global.f32 %f2, [%rd4]; mul.f32 %f2, %f2, %f1; st.global.f32 [%rd5], %f2; ret;
}
"""
    buffer = torch.randn(6, 10)
    before = buffer.clone()
    arguments = [Struct("<QQi", buffer[:, :4], buffer[:, 4:8], buffer.stride(0)), 2.0]
    Launch(text, "k").run((1, 1, 3), (4, 2), arguments)
    assert torch.equal(buffer[:, 4:8], 2 * before[:, :4])
    assert torch.equal(buffer[:, 8:], before[:, 8:])
    with pytest.raises(ValueError, match="got 4 threads, expected 8"):
        Launch(text, "k").run((1,), 4, arguments)


@pytest.mark.parametrize(
    "code", ["wgmma.fence.sync.aligned;", "add.rz.f32 %f1, %f2, %f3;", "atom.global.add.f32 %f1, [%rd1], %f2;"]
)
def test_unknown_instructions_are_named(code):
    with pytest.raises(Unsupported, match=code.split()[0].rstrip(";").rsplit(".", 1)[0]):
        Launch(kernel(f"{code} ret;"), "k")


def test_divergent_shuffle():
    text = elementwise("setp.gt.s32 %p1, $1, 3; mov.b32 $0, $1; @%p1 shfl.sync.bfly.b32 $0, $1, 1, 31, -1;", 4, 4)
    with pytest.raises(Divergence):
        Launch(text, "k").run((1,), 32, [torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)])


def test_scalars():
    text = kernel("ld.param.u64 %rd0, [k_param_0]; ld.param.f32 %f0, [k_param_1]; st.global.f32 [%rd0], %f0; ret;")
    out = torch.zeros(1)
    Launch(text.replace(".u64 k_param_1", ".f32 k_param_1"), "k").run((1,), 1, [out, 0.1])
    assert out.item() == struct.unpack("f", struct.pack("f", 0.1))[0]
