"""Machine code that lets the tensor cores wait: ptxas's own messages, and the scan of loops."""

import pytest

pytest.importorskip("triton")

from tools.gpucheck import ptxas
from tools.gpucheck.triton import sass

# Two products of one group; what stands between them may not touch their accumulators.
PTX = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 .ptr .global out, .param .u64 a, .param .u64 b) {{
	.reg .f32 %f<4>;
	.reg .b64 %rd<3>;
	.reg .pred %p;
	ld.param.u64 %rd0, [out];
	ld.param.u64 %rd1, [a];
	ld.param.u64 %rd2, [b];
	setp.ne.b32 %p, 1, 0;
	mov.f32 %f0, 0f00000000;
	mov.f32 %f1, %f0;
	mov.f32 %f2, %f0;
	mov.f32 %f3, %f0;
	wgmma.fence.sync.aligned;
	wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %rd1, %rd2, %p, 1, 1, 0, 0;
	{between}
	wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, %rd1, %rd2, %p, 1, 1, 0, 0;
	wgmma.commit_group.sync.aligned;
	wgmma.wait_group.sync.aligned 0;
	st.global.v4.f32 [%rd0], {{%f0, %f1, %f2, %f3}};
	ret;
}}
"""


@pytest.mark.parametrize(
    ("between", "codes"),
    [
        ("", []),
        ("st.global.f32 [%rd0 + 64], %f0;", ["C7514"]),  # read: all products of the kernel are serialised
        ("add.f32 %f0, %f0, 0f3f800000;", ["C7519", "C7517"]),  # written: a wait between the two
    ],
)
def test_what_ptxas_says_of_products(between, codes):
    found = ptxas.serialised(sass.assembled(PTX.format(between=between)))
    assert [why.split()[0] for why in found] == codes
    assert all("around line" not in why and "function" not in why for why in found)


PRODUCTS = ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24", "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"]
COPIES = ["LDGSTS.E.BYPASS.128 [R3], desc[UR6][R4.64]", "LDGDEPBAR"]
DONE, ONE_LEFT = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def wait(groups):
    return f"DEPBAR.LE SB0, {groups:#x}"


def loop(*body):
    """A listing of a kernel whose only loop this is."""
    lines = ["MOV R1, R2", ".L_x_1:", *body, "@!P0 BRA `(.L_x_1)", "EXIT"]
    return "\n".join(line if line.endswith(":") else f"    /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([wait(0), *PRODUCTS, DONE, *COPIES], [wait(0)]),  # copied behind the last product, and waited for
        ([wait(1), *PRODUCTS, DONE, *COPIES], []),  # one iteration later
        ([wait(1), *PRODUCTS, DONE, *COPIES, *COPIES], [wait(1)]),  # two groups: one of them at once
        ([wait(2), *PRODUCTS, DONE, *COPIES, *COPIES], []),
        ([wait(0), *COPIES, *PRODUCTS, DONE], []),  # products run while the copies do
        ([wait(0), *PRODUCTS, ONE_LEFT, *COPIES], []),
        ([*COPIES, wait(0), *PRODUCTS, DONE], [wait(0)]),
        ([wait(0), "HMMA.16816.F32.BF16 R4, R8, R12, R4", *COPIES], [wait(0)]),  # nothing of mma.sync is in flight
        (["LDG.E.128 R4, desc[UR6][R8.64]", *PRODUCTS, DONE], ["LDG.E.128 R4, desc[UR6][R8.64]"]),
        (["@P1 LDG.E.128 R4, desc[UR6][R8.64]", "FADD R1, R4, R5"], []),  # no loop of products
        ([*PRODUCTS, DONE], []),
    ],
)
def test_loops_that_wait_for_their_loads(body, found):
    assert sass.exposed(loop(*body)) == found
