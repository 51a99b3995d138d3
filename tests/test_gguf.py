"""GGUF headers: equal to what the format's own library reads, and an error at once for whatever is torn."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import tiny_gguf
from tiny import llama, made

from zifio.config import ConfigError
from zifio.gguf import is_gguf, read_gguf_header
from zifio.models.gguf import read_gguf

WRONG = {
    "empty": (b"", "torn"),
    "another format": (b"PK\3\4" * 9, "begins with b'PK"),
    "half a name": (b"GG", "begins with b'GG'"),
    "nothing but the name": (b"GGUF", "torn"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "wanted 2 or 3 .*came 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "fields without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "torn"),
    "tensors without end": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "torn"),
    "a text without end": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + b"x" * 50, "torn"),
    "no UTF-8": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xff" + bytes(12), "torn"),
    "unknown type": (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 77), "type 77"),
    "numbers without end": (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**60), "torn"),
    "texts without end": (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**60), "torn"),
    "arrays of arrays": (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1) + bytes(99), "type 9"),
    "too many axes": (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 99), "99 axes"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = llama(vocab_size=640)
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", config, made(config))


def test_every_type_of_field_and_every_tensor_is_where_the_library_finds_it(tmp_path: Path):
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"uint8": 255, "int8": -1, "uint16": 65535, "int16": -2, "uint32": 7, "int32": -3}.items():
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_uint64("a.uint64", 2**63)
    writer.add_int64("a.int64", -(2**62))
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "鯨 🐋")
    writer.add_array("a.texts", ["", "x", "鯨"])
    writer.add_array("a.integers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_custom_alignment(64)
    for name, shape in (("one", (5,)), ("two", (3, 7)), ("three", (2, 3, 4))):
        writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    ours, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    wanted = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.fields == wanted
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.shape, found.offset) == (tuple(tensor.shape.tolist()[::-1]), tensor.data_offset)
        assert found.kind == tensor.tensor_type


@pytest.mark.parametrize("case", WRONG)
def test_a_torn_header_is_an_error_at_once(case: str, tmp_path: Path):
    content, wanted = WRONG[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=wanted):
        read_gguf_header(path)
    assert time.perf_counter() - began < 1


def test_a_file_cut_anywhere_is_an_error(file: Path, tmp_path: Path):
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    n_header = min(tensor.offset for tensor in read_gguf_header(file).tensors.values())
    for length in [
        *range(0, 300, 3),
        *range(300, n_header, 2999),
        *range(n_header, len(whole), 19999),
        len(whole) - 100,
    ]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"torn|begins with"):
            read_gguf(cut)


def test_a_part_of_a_model_is_refused(tmp_path: Path):
    config = llama(vocab_size=640)
    path = tiny_gguf(tmp_path / "part.gguf", config, made(config), changes={"split.count": 2})
    with pytest.raises(ConfigError, match="llama-gguf-split --merge"):
        read_gguf_header(path)


def test_missing_files_and_fields_are_named(file: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.gguf: no such file"):
        read_gguf_header(tmp_path / "nowhere.gguf")
    assert read_gguf_header(file).need("llama.block_count") == 2
    with pytest.raises(ConfigError, match=r"llama\.depth"):
        read_gguf_header(file).need("llama.depth")


def test_a_folder_is_no_gguf_file_whatever_its_name(file: Path, tmp_path: Path):
    (tmp_path / "folder.gguf").mkdir()
    assert is_gguf(file) and is_gguf("not there.gguf")
    assert not is_gguf(tmp_path / "folder.gguf") and not is_gguf(tmp_path)
