"""Files in and out: what was written is read, and a malformed line is named."""

import pytest

from zifio.config import ConfigError
from zifio.data.sources import read_jsonl, read_texts, write_jsonl

ROWS = [{"text": "6+1=7\n", "n": 1}, {"text": "鯨 \u2028 \u0085", "list": [1.5, None]}]


def test_rows_come_back(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, ROWS)
    assert read_jsonl(path) == ROWS
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.jsonl"]
    assert read_texts(path) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("bad", [float("nan"), object()])
def test_a_failed_write_leaves_the_old_file(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(path, [ROWS[0], {"x": bad}])
    assert read_jsonl(path) == ROWS
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": \n', ["line 2", '{"a": ']),
        (b'{"a": 1}\n\n[1]\n', ["line 3", "list"]),
        (b'{"a": 1}\n"x"\n', ["line 2", "str"]),
        (b'{"a": 1}\n\xff\n', ["line 2", "UTF-8"]),
    ],
    ids=["torn", "a list", "a string", "bytes"],
)
def test_a_malformed_line_is_named(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_jsonl(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_blank_lines_and_windows_ends_are_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b"")
    assert read_jsonl(path) == []


def test_texts_of_a_plain_file_are_its_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("6+1=7\n\n 2-5=-3\n", encoding="utf-8")
    assert read_texts(path) == ["6+1=7", " 2-5=-3"]


def test_an_object_without_text_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rows\.jsonl.*2.*text.*txt"):
        read_texts(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="folder"):
        read_jsonl(tmp_path)
