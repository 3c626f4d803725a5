"""Small kernels, written by hand, for the interpreter's own tests."""

import torch

from tools.gpucheck.ptx import Launch

THREADS = 64

REGISTERS = """
	.reg .pred %p<16>;
	.reg .b16 %rs<16>;
	.reg .b32 %r<64>;
	.reg .f32 %f<64>;
	.reg .b64 %rd<32>;
	.shared .align 16 .b8 tile[4096];
"""


def kernel(body: str, parameters: int = 2) -> str:
    """A kernel `k` of so many pointers k_param_0, ...; registers %p, %rs, %r, %f, %rd; shared memory `tile`."""
    names = ", ".join(f".param .u64 k_param_{i}" for i in range(parameters))
    return f".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k({names})\n{{{REGISTERS}{body}\n}}\n"


def elementwise(code: str, *widths: int) -> str:
    """out[thread] = f(in[thread], ...): `code` computes $0 of $1, $2, ...; `widths` of the inputs, then the output."""
    count, lines = len(widths), []
    for i, width in enumerate(widths):
        name = f"${(i + 1) % count}"
        where = f"ld.param.u64 %rd1, [k_param_{i}]; mad.wide.u32 %rd1, %r0, {width}, %rd1;"
        lines += [f".reg .b{8 * max(width, 2)} v{name[1:]};", where]
        lines.append(
            f"ld.global.b{8 * width} {name}, [%rd1];"
            if i < count - 1
            else f"{code}\nst.global.b{8 * width} [%rd1], $0;"
        )
    body = "mov.u32 %r0, %tid.x;\n" + "\n".join(lines) + "\nret;"
    for i in reversed(range(count)):
        body = body.replace(f"${i}", f"v{i}")
    return kernel(body, count)


# A pipeline of two stages: threads copy tiles of 64 floats asynchronously; each stores what another one copied.
# out[tile * 64 + t] = in[tile * 64 + 63 - t]
PIPELINE = kernel("""
	mov.u32 %r0, %tid.x;
	ld.param.u64 %rd0, [k_param_0];
	ld.param.u64 %rd1, [k_param_1];
	mov.u32 %r1, tile;
	mad.wide.u32 %rd2, %r0, 4, %rd0;
	mad.wide.u32 %rd3, %r0, 4, %rd1;
	mad.lo.u32 %r2, %r0, 4, %r1;
	mov.u32 %r3, 63;
	sub.u32 %r3, %r3, %r0;
	mad.lo.u32 %r4, %r3, 4, %r1;
	cp.async.ca.shared.global [%r2], [%rd2], 4;
	cp.async.commit_group;
	mov.u32 %r5, 0;
loop:
	add.u32 %r6, %r5, 1;
	setp.ge.u32 %p0, %r6, 4;  // tiles
	and.b32 %r7, %r6, 1;
	mad.lo.u32 %r8, %r7, 256, %r2;
	mad.wide.u32 %rd4, %r6, 256, %rd2;
	@!%p0 cp.async.ca.shared.global [%r8], [%rd4], 4;
	cp.async.commit_group;
	cp.async.wait_group 1;
	bar.sync 0;  // the tile is there
	and.b32 %r9, %r5, 1;
	mad.lo.u32 %r10, %r9, 256, %r4;
	ld.shared.b32 %r11, [%r10];
	mad.wide.u32 %rd5, %r5, 256, %rd3;
	st.global.b32 [%rd5], %r11;
	bar.sync 0;  // the stage is free
	mov.u32 %r5, %r6;
	@!%p0 bra loop;
	ret;
""")

# Every CTA leaves a partial sum of 32 values; the last to arrive adds them in order.  (in, partial, counter, out)
LAST_ARRIVING = kernel(
    """
	mov.u32 %r0, %tid.x;
	mov.u32 %r1, %ctaid.x;
	ld.param.u64 %rd0, [k_param_0];
	ld.param.u64 %rd1, [k_param_1];
	ld.param.u64 %rd2, [k_param_2];
	ld.param.u64 %rd3, [k_param_3];
	mad.lo.u32 %r2, %r1, 64, %r0;
	mad.wide.u32 %rd4, %r2, 4, %rd0;
	mad.wide.u32 %rd5, %r2, 4, %rd1;
	ld.global.f32 %f0, [%rd4];
	add.f32 %f0, %f0, %f0;
	st.global.f32 [%rd5], %f0;
	bar.sync 0;  // partials written
	setp.ne.u32 %p0, %r0, 0;
	@%p0 bra joined;
	membar.gl;  // publish
	mov.u32 %r3, %nctaid.x;
	sub.u32 %r3, %r3, 1;
	atom.global.inc.u32 %r4, [%rd2], %r3;
	setp.eq.u32 %p1, %r4, %r3;
	selp.u32 %r5, 1, 0, %p1;
	membar.gl;  // acquire
	st.shared.u32 [tile], %r5;
joined:
	bar.sync 0;  // who is last
	ld.shared.u32 %r6, [tile];
	setp.eq.u32 %p2, %r6, 0;
	@%p2 ret;
	mov.f32 %f1, 0f00000000;
	mov.u32 %r7, 0;
	mov.u32 %r8, %nctaid.x;
merge:
	mad.lo.u32 %r9, %r7, 64, %r0;
	mad.wide.u32 %rd6, %r9, 4, %rd1;
	ld.global.cg.f32 %f2, [%rd6];
	add.f32 %f1, %f1, %f2;
	add.u32 %r7, %r7, 1;
	setp.lt.u32 %p3, %r7, %r8;
	@%p3 bra merge;
	mad.wide.u32 %rd7, %r0, 4, %rd3;
	st.global.f32 [%rd7], %f1;
	ret;
""",
    4,
)

# d[16, 8] = a[16, 16] b[16, 8] of bfloat16, both with rows of 16 bytes' multiples, through shared memory.  (a, b, d)
PRODUCT = kernel(
    """
	mov.u32 %r0, %tid.x;
	ld.param.u64 %rd0, [k_param_0];
	ld.param.u64 %rd1, [k_param_1];
	ld.param.u64 %rd2, [k_param_2];
	mov.u32 %r1, tile;
	mad.wide.u32 %rd3, %r0, 16, %rd0;  // a: 32 pieces of 16 bytes, at 16 * thread
	ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd3];
	mad.lo.u32 %r6, %r0, 16, %r1;
	st.shared.v4.b32 [%r6], {%r2, %r3, %r4, %r5};
	mad.wide.u32 %rd4, %r0, 8, %rd1;  // b: 32 pieces of 8 bytes, behind it
	ld.global.v2.b32 {%r7, %r8}, [%rd4];
	mad.lo.u32 %r9, %r0, 8, %r1;
	st.shared.v2.b32 [%r9+512], {%r7, %r8};
	bar.warp.sync 0xffffffff;
	and.b32 %r10, %r0, 15;
	shr.u32 %r11, %r0, 4;
	mad.lo.u32 %r12, %r10, 32, %r1;
	mad.lo.u32 %r12, %r11, 16, %r12;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r12];
	mad.lo.u32 %r13, %r10, 16, %r1;
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r24, %r25}, [%r13+512];
	mov.f32 %f0, 0f00000000;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
		{%f1, %f2, %f3, %f4}, {%r20, %r21, %r22, %r23}, {%r24, %r25}, {%f0, %f0, %f0, %f0};
	shr.u32 %r14, %r0, 2;  // d: rows g and g + 8, columns 2q and 2q + 1
	and.b32 %r15, %r0, 3;
	mad.wide.u32 %rd5, %r14, 32, %rd2;
	mad.wide.u32 %rd5, %r15, 8, %rd5;
	st.global.v2.f32 [%rd5], {%f1, %f2};
	st.global.v2.f32 [%rd5+256], {%f3, %f4};
	ret;
""",
    3,
)


def evaluate(code: str, inputs: list[torch.Tensor], output: torch.dtype) -> torch.Tensor:
    """What an instruction computes of each element of `inputs`: $1, $2, ..."""
    out = torch.zeros(THREADS, dtype=output)
    text = elementwise(code, *(t.element_size() for t in inputs), out.element_size())
    Launch(text, "k").run((1,), THREADS, [*inputs, out], unwritten=[out])
    return out
