"""What the compiled library calls of others is there when it is loaded: a weak symbol that nobody defines is a null
pointer, and a call of it the end of the process."""

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from densenet_fast import backends

pytestmark = pytest.mark.skipif(
    backends.why_unavailable("native", torch.device("cpu")) is not None, reason="the compiled library was not built"
)
# Of the compiler's own start-up code, which asks before it calls.
OPTIONAL = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


def undefined_symbols(library: Path) -> Iterator[str]:
    """Those of the dynamic symbol table of a 64-bit ELF file that other libraries must define."""
    content = library.read_bytes()
    (table,), (entry_size, count) = struct.unpack_from("<Q", content, 0x28), struct.unpack_from("<HH", content, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, table + i * entry_size) for i in range(count)]
    dynamic_symbols = 11
    _, _, _, _, start, size, strings, *_ = next(s for s in sections if s[1] == dynamic_symbols)
    for at in range(start, start + size, 24):
        name, _, _, section = struct.unpack_from("<IBBH", content, at)
        text = content[sections[strings][4] + name :]
        if name and section == 0:
            yield text[: text.index(b"\0")].decode()


def is_found(name: str, *scopes: ctypes.CDLL) -> bool:
    return any(hasattr(scope, name) for scope in scopes)


def test_every_symbol_that_the_library_calls_is_found_where_it_is_loaded():
    from densenet_fast import _C

    with_cuda = "nvcc" in _C.build_facts() and torch.version.cuda is not None
    # The dynamic linker's scope: the process, then the library with what it needs.
    scopes = ctypes.CDLL(None), ctypes.CDLL(_C.__file__)
    names = set(undefined_symbols(Path(_C.__file__)))
    assert len(names) > 50
    missing = {name for name in names - OPTIONAL if not is_found(name, *scopes)}
    assert missing <= (set() if with_cuda else {"aoti_torch_get_current_cuda_stream"})
    assert ("aoti_torch_get_current_cuda_stream" in names) == ("nvcc" in _C.build_facts())


def test_the_library_tells_whether_it_finds_the_stream():
    from densenet_fast import _C

    why = _C.why_not_cuda()
    if "nvcc" not in _C.build_facts():
        assert why == "the compiled library was built without CUDA kernels (setup.py says why)"
    elif torch.version.cuda is None:
        assert "aoti_torch_get_current_cuda_stream" in why
    else:
        assert why is None


def test_one_library_serves_every_python():
    """CPython's stable ABI: the name says so, the headers allow nothing else, no library of one Python is needed."""
    from densenet_fast import _C

    assert Path(_C.__file__).name == "_C.abi3.so"
    content = Path(_C.__file__).read_bytes()
    assert b"libtorch_python" not in content
    assert b"libpython" not in content
