"""Whole launches: memory, pipelines, CTAs in any order, branches, parameters."""

import struct

import pytest
import torch

from tools.gpucheck.ptx import Launch, Struct, Unsupported

from .snippets import LAST_ARRIVING, PIPELINE, elementwise, kernel


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


def test_pipeline():
    x, y = torch.randn(4, 64), torch.zeros(4, 64)
    counts = Launch(PIPELINE, "k").run((1,), 64, [x, y], unwritten=[y])
    assert torch.equal(y, x.flip(1))
    assert (counts.read(x), counts.written(x), counts.read(y), counts.written(y)) == (1024, 0, 0, 1024)
    assert counts.instructions["ld"] == 2 * (2 + 4)  # two warps: two parameters, four tiles


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("together", [4096, 64])
def test_last_arriving_cta(order, together, monkeypatch):
    monkeypatch.setattr("tools.gpucheck.ptx.launch.LANES", together)  # all CTAs at once, or one after another
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


def test_scalars():
    text = kernel("ld.param.u64 %rd0, [k_param_0]; ld.param.f32 %f0, [k_param_1]; st.global.f32 [%rd0], %f0; ret;")
    out = torch.zeros(1)
    Launch(text.replace(".u64 k_param_1", ".f32 k_param_1"), "k").run((1,), 1, [out, 0.1])
    assert out.item() == struct.unpack("f", struct.pack("f", 0.1))[0]


@pytest.mark.parametrize(
    ("access", "step", "expected"),  # of a thread's place; wavefronts for two warps, and without conflicts
    [
        ("ld.shared.b32 %r5, [%r4]", 4, (2, 2)),
        ("ld.shared.b32 %r5, [%r4]", 0, (2, 2)),  # one word for all
        ("ld.shared.b32 %r5, [%r4]", 8, (4, 2)),
        ("ld.shared.u8 %rs0, [%r4]", 1, (2, 2)),
        ("ld.shared.v2.b32 {%r5, %r6}, [%r4]", 8, (4, 4)),
        ("ld.shared.v2.b32 {%r5, %r6}, [%r4]", 16, (8, 4)),
        ("st.shared.v4.b32 [%r4], {%r0, %r0, %r0, %r0}", 16, (8, 8)),
        ("st.shared.v4.b32 [%r4], {%r0, %r0, %r0, %r0}", 32, (16, 8)),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4]", 16, (8, 8)),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4]", 48, (8, 8)),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4]", 64, (32, 8)),
    ],
)
def test_conflicts_of_banks(access, step, expected):
    text = kernel(f"""
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, tile;
	mov.u32 %r2, 64;
	mad.lo.u32 %r3, %r0, 16, %r1;
fill:
	st.shared.v4.b32 [%r3], {{%r0, %r0, %r0, %r0}};
	add.u32 %r3, %r3, 1024;
	sub.u32 %r2, %r2, 16;
	setp.ne.u32 %p0, %r2, 0;
	@%p0 bra fill;
	bar.sync 0;
	mad.lo.u32 %r4, %r0, {step}, %r1;
	{access};
	ret;
""")
    counts = Launch(text, "k").run((1,), 64, [None, None], banks=True)
    assert counts.wavefronts[max(counts.wavefronts)] == expected
