"""The checker checked: each kind of mistake, planted into a kernel that is right, is caught as what it is."""

import pytest
import torch

from tools.gpucheck.ptx import Divergence, Fault, Launch, Misaligned, MissingWait, OutOfBounds, Race, Unwritten

from .snippets import LAST_ARRIVING, PIPELINE, PRODUCT, elementwise, kernel


def planted(text: str, right: str, wrong: str) -> str:
    assert text.count(right) == 1, right
    return text.replace(right, wrong)


PIPELINE_BUGS = {
    "wait short by one": ("wait_group 1", "wait_group 2", MissingWait),
    "no wait": ("cp.async.wait_group 1;", "", MissingWait),
    "no barrier before the tile is read": ("bar.sync 0;  // the tile is there", "", Race),
    "refill too early": ("bar.sync 0;  // the stage is free", "", Race),
    "one tile too many": ("%r6, 4;  // tiles", "%r6, 5;  // tiles", OutOfBounds),
    "copies still in flight at the end": (
        "setp.ge.u32 %p0, %r6, 4;",
        "setp.ge.u32 %p0, %r6, 4; @%p0 ret;",
        MissingWait,
    ),
    "nothing copied": ("@!%p0 cp.async.ca.shared.global [%r8], [%rd4], 4;", "", Unwritten),
    "misaligned": ("ld.shared.b32 %r11, [%r10];", "ld.shared.b32 %r11, [%r10+2];", Misaligned),
    "past shared memory": ("ld.shared.b32 %r11, [%r10];", "ld.shared.b32 %r11, [%r10+4096];", OutOfBounds),
    "register not written": ("mov.u32 %r3, 63;", "", Unwritten),
    "all stages in one place": ("and.b32 %r7, %r6, 1;", "mov.u32 %r7, 0;", MissingWait),
}


@pytest.mark.parametrize("bug", PIPELINE_BUGS)
def test_pipeline(bug):
    right, wrong, fault = PIPELINE_BUGS[bug]
    launch = Launch(planted(PIPELINE, right, wrong), "k")
    y = torch.zeros(4, 64)
    with pytest.raises(fault, match=r"^k, line \d+, "):
        launch.run((1,), 64, [torch.randn(4, 64), y], unwritten=[y])


ARRIVAL_BUGS = {
    "no barrier before the ticket": "bar.sync 0;  // partials written",
    "no fence before the ticket": "membar.gl;  // publish",
    "no fence behind the ticket": "membar.gl;  // acquire",
    "no barrier behind the ticket": "bar.sync 0;  // who is last",
}


@pytest.mark.parametrize("together", [4096, 64])
@pytest.mark.parametrize("bug", ARRIVAL_BUGS)
def test_last_arriving_cta(bug, together, monkeypatch):
    monkeypatch.setattr("tools.gpucheck.ptx.launch.LANES", together)
    launch = Launch(planted(LAST_ARRIVING, ARRIVAL_BUGS[bug], ""), "k")
    partial, counter, out = torch.zeros(3, 64), torch.zeros(1, dtype=torch.int32), torch.zeros(64)
    with pytest.raises(Race, match="in no order with thread"):
        launch.run((3,), 64, [torch.randn(3, 64), partial, counter, out])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("{%r20, %r21, %r22, %r23}, {%r24, %r25}, {%f0", "{%r20, %r22, %r21, %r23}, {%r24, %r25}, {%f0"),
        ("{%r24, %r25}, {%f0", "{%r25, %r24}, {%f0"),
        (".x2.trans", ".x2"),
        ("{%f1, %f2};", "{%f2, %f1};"),
    ],
)
def test_swapped_operand(right, wrong):
    """Not a fault, but a wrong result: registers mean what the hardware takes them for."""
    a, b, d = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16(), torch.zeros(16, 8)
    Launch(planted(PRODUCT, right, wrong), "k").run((1,), 32, [a, b, d])
    assert (d - a.float() @ b.float()).abs().max() > 0.1


def test_no_warp_sync():
    a, b, d = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16(), torch.zeros(16, 8)
    with pytest.raises(Race):
        Launch(planted(PRODUCT, "bar.warp.sync 0xffffffff;", ""), "k").run((1,), 32, [a, b, d])


COPY = elementwise("mov.b32 $0, $1;", 4, 4)


def test_a_slice_has_neighbours():
    """Reading past a slice is within its buffer; writing past it is not, nor is reading past the buffer."""
    buffer, out = torch.randn(2, 40), torch.zeros(2, 40)
    Launch(COPY, "k").run((1,), 40, [buffer[0, :32], out[0]])
    with pytest.raises(OutOfBounds, match="must not be written"):
        Launch(COPY, "k").run((1,), 40, [buffer[0], out[0, :32]])
    with pytest.raises(OutOfBounds, match="must not be read"):
        Launch(COPY, "k").run((1,), 41, [buffer[1], out.view(-1)])


def test_unwritten_global_memory():
    x, y = torch.randn(32), torch.zeros(32)
    with pytest.raises(Unwritten, match="allocation 0"):
        Launch(COPY, "k").run((1,), 32, [x, y], unwritten=[x[3:5]])


def test_ctas_must_not_share_what_one_writes():
    """CTA n writes y[n] and reads x[n + 1]; with x and y one tensor, another CTA's element."""
    text = kernel("""
	mov.u32 %r0, %ctaid.x; ld.param.u64 %rd0, [k_param_0]; ld.param.u64 %rd1, [k_param_1];
	mad.wide.u32 %rd0, %r0, 4, %rd0; mad.wide.u32 %rd1, %r0, 4, %rd1;
	ld.global.b32 %r1, [%rd0+4]; st.global.b32 [%rd1], %r1; ret;
""")
    x = torch.randn(5)
    Launch(text, "k").run((4,), 1, [x, torch.zeros(4)])
    with pytest.raises(Race, match="global"):
        Launch(text, "k").run((4,), 1, [x, x])
    with pytest.raises(Race, match="global"):
        Launch(text, "k").run((4,), 1, [x, x], order=[3, 2, 1, 0])


def test_stores_to_one_place():
    text = elementwise("mov.b32 $0, $1; mov.u32 %r1, tile; st.shared.b32 [%r1], $1;", 4, 4)
    y = torch.zeros(32)
    Launch(text, "k").run((1,), 32, [torch.ones(32), y])  # one value: no matter who is last
    with pytest.raises(Race, match="different values"):
        Launch(text, "k").run((1,), 32, [torch.randn(32), y])


def test_part_of_a_warp_at_a_barrier():
    text = elementwise("setp.lt.u32 %p1, %r0, 16;\n@%p1 bra past;\nbar.sync 0;\npast: mov.b32 $0, $1;", 4, 4)
    with pytest.raises(Divergence):
        Launch(text, "k").run((1,), 32, [torch.ones(32), torch.zeros(32)])


def test_endless_loop(monkeypatch):
    monkeypatch.setattr("tools.gpucheck.ptx.wave.STEPS", 1000)
    with pytest.raises(Fault, match="no end after"):
        Launch(kernel("mov.u32 %r1, 0;\nagain: bar.sync 0;\nbra again;"), "k").run((1,), 32, [None, None])


def test_lanes_without_a_value():
    """May shuffle it along, as Triton's reductions do; may not store it."""
    code = """
	setp.lt.u32 %p1, %r0, 16;
	@%p1 mov.b32 %r1, $1;
	shfl.sync.idx.b32 %r2, %r1, SOURCE, 31, -1;
	mov.b32 $0, %r2;"""
    text = elementwise(code, 4, 4)
    x, y = torch.randn(32), torch.zeros(32)
    Launch(text.replace("SOURCE", "3"), "k").run((1,), 32, [x, y])
    assert torch.equal(y, x[3].expand(32))
    with pytest.raises(Unwritten, match="nothing in register"):
        Launch(text.replace("SOURCE", "20"), "k").run((1,), 32, [x, y])
