"""Instructions of a whole warp: shuffles, votes, products, as the PTX manual's tables place their registers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tools.gpucheck.ptx import Divergence, Launch
from tools.gpucheck.ptx.numerics import tensor_core_sum, to_tf32

from .snippets import PRODUCT, elementwise, evaluate, kernel


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


def test_divergent_shuffle():
    text = elementwise("setp.gt.s32 %p1, $1, 3; mov.b32 $0, $1; @%p1 shfl.sync.bfly.b32 $0, $1, 1, 31, -1;", 4, 4)
    with pytest.raises(Divergence):
        Launch(text, "k").run((1,), 32, [torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)])
