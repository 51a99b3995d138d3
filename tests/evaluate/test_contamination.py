"""Planted leaks are found, in every kind of file and across every seam; clean files are clean."""

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from zifio import cli
from zifio.config import ConfigError
from zifio.evaluate import texts
from zifio.evaluate.contamination import Index, Item, read_benchmark
from zifio.evaluate.texts import Located, read_located
from zifio.tasks.sums import ChainSum

RNG = random.Random(5)
VOCABULARY = ["".join(RNG.choices("abcdefgh", k=4)) for _ in range(400)]


def prose(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=n))


def clean(n: int, seed: int) -> str:
    """Prose that is in no problem."""
    return prose(n, 1_000_000 + seed)


ITEMS = [
    Item(f"q{i}", f"Question: {prose(30, i)}?", str(100 + i), f"Because {prose(25, 1000 + i)}.") for i in range(40)
]


def found(*texts_: str) -> dict[str, list]:
    hits = Index(ITEMS).search("f", [Located(f"line {i}", text) for i, text in enumerate(texts_, 1)])
    return {hit.item: [hit.kind, hit.part, hit.count] for hit in hits}


def test_thirteen_words_and_no_fewer():
    words = ITEMS[3].prompt.split()
    assert found(f"{prose(50, 'clean 77')} {' '.join(words[5:18])} {prose(50, 'clean 78')}") == {
        "q3": ["13-gram", "prompt", 1]
    }
    assert found(f"{prose(50, 'clean 77')} {' '.join(words[5:17])} {prose(50, 'clean 78')}") == {}


def test_case_punctuation_and_space_do_not_hide_a_leak():
    hidden = ITEMS[7].prompt.upper().replace(" ", ",\n ")
    assert found(hidden) == {"q7": ["13-gram", "prompt", 1]}
    wide = "".join(chr(ord(c) + 0xFEE0) if "A" <= c <= "Z" else c for c in hidden)  # full-width letters
    assert found(wide) == {"q7": ["13-gram", "prompt", 1]}


def test_solutions_leak_too_and_a_passage_is_counted_once():
    assert found(ITEMS[2].solution, ITEMS[2].solution + " " + ITEMS[2].solution) == {"q2": ["13-gram", "solution", 3]}
    assert found(clean(5000, 3)) == {}


def test_what_all_problems_share_is_no_leak():
    ask = "Work it out step by step, then give the final answer alone between the two tags, please."
    items = [Item(item.id, f"{item.prompt}\n{ask}") for item in ITEMS]
    index = Index(items)
    assert index.search("f", [Located("line 1", f"{prose(40, 'clean 8')} {ask}")]) == []
    assert [hit.item for hit in index.search("f", [Located("line 1", items[4].prompt)])] == ["q4"]


def test_short_problems_are_found_whole_with_their_answers():
    index = Index([Item("a", "6+1-1+9", "15"), Item("b", "(3+7+2)%10", "2"), Item("c", "1+1", "2")])
    assert index.n_searched == 2, "three signs are in any text"

    def search(text: str) -> dict[str, tuple[int, int]]:
        return {hit.item: (hit.count, hit.with_answer) for hit in index.search("f", [Located("line 1", text)])}

    assert search("so 6+1-1+9=15, and 6 + 1 - 1 + 9 is hard") == {"a": (2, 1)}
    assert search("6+1-1+9+3 and 4-6+1-1+9 and 6-1+1+9 and 16+1-1+9") == {}
    assert search("<User>(3+7+2)%10<Assistant>2") == {"b": (1, 1)}


def planted(folder: Path, kind: str) -> Path:
    """A file with one leaked question of three in it, in the middle."""
    lines = [clean(60, 100 + i) for i in range(600)]
    lines[311] = f"{prose(20, 'clean 1')} {ITEMS[9].prompt} {ITEMS[9].gold} {prose(20, 'clean 2')}"
    if kind == "parquet":
        rows = [{"messages": [{"role": "user", "content": text}], "n": 1} for text in lines]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet", row_group_size=100)
        return folder / "train.parquet"
    opener = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}.get(kind.partition(".")[2], open)
    path = folder / f"train.{kind}"
    with opener(path, "wb") as file:
        for text in lines:
            wrapped = (
                text.replace(" ", "\n", 5) if kind.startswith("txt") else json.dumps({"a": [{"text": text}], "b": 1})
            )
            file.write(wrapped.encode() + b"\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.xz", "txt", "txt.bz2", "parquet"])
def test_a_planted_leak_is_found_in_every_kind_of_file(tmp_path, capsys, kind):
    against = tmp_path / "benchmark.jsonl"
    rows = [{"id": item.id, "question": item.prompt, "answer": f"{item.solution}\n#### {item.gold}"} for item in ITEMS]
    against.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = planted(tmp_path, kind)
    assert cli.main(["contamination", str(path), "--against", str(against), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    [hit] = report["hits"]
    assert (hit["item"], hit["kind"], hit["count"], report["n_found"]) == ("q9", "13-gram", 1, 1)
    if not kind.startswith("txt"):
        assert hit["where"].endswith(" 312")
    assert " ".join(ITEMS[9].prompt.lower().split()[5:10]) in hit["excerpt"]


def test_clean_files_are_clean_and_tasks_can_be_held_against_them(tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    task = ChainSum(min_terms=5, max_terms=6)
    lines = [task.problem("train", i, 3) for i in range(300)]
    path.write_text("".join(json.dumps({"prompt": p.prompt, "gold": p.gold}) + "\n" for p in lines))
    words = ["contamination", str(path), "--against", "chain_sum:min_terms=5,max_terms=6", "--problems", "100"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == []
    leaked = task.problem("held-out", 42, 0)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": leaked.prompt, "gold": leaked.gold}) + "\n")
    assert cli.main([*words, "--json"]) == 1
    [hit] = json.loads(capsys.readouterr().out)["hits"]
    assert (hit["item"], hit["where"], hit["with_answer"]) == ("chain_sum/held-out/0/42", "line 301", 1)


def test_no_leak_is_lost_at_a_seam(tmp_path, monkeypatch):
    """The passage at many places around the end of a block, in plain text without a line's end and in a JSON string."""
    monkeypatch.setattr(texts, "_BLOCK", 2000)
    monkeypatch.setattr(texts, "_OVERLAP", 500)
    index = Index(ITEMS)
    for shift in range(0, 2200, 90):
        text = f"{prose(1500, 'clean 6')[:shift]} {ITEMS[5].prompt} {prose(800, 'clean 7')} é"
        for path, content in ((tmp_path / "a.txt", text), (tmp_path / "a.jsonl", json.dumps({"text": text}))):
            path.write_text(content)
            [hit] = index.search("f", read_located(path))
            assert (hit.item, hit.count) == ("q5", 1), shift


def test_memory_stays_bounded_over_a_big_file(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_BLOCK", 1 << 16)
    path, block = tmp_path / "big.txt", clean(10_000, 9)
    with path.open("w") as file:
        for _ in range(60):  # 3 MB without the end of a line
            file.write(block + " ")
    index = Index(ITEMS)
    tracemalloc.start()
    try:
        n = sum(1 for located in read_located(path) if index.search("f", [located]) is not None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n > 40
    assert peak < path.stat().st_size, "never the whole file at once"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": 1}\nno json\n', "line 2: wanted a JSON value"),
        ("a.parquet", b"PAR1 no", "wanted a file that can be read"),
        ("a.jsonl.gz", b"not gzip", "wanted a file that can be read"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "x"}' * 1000)[:40], "wanted a file that can be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_located(tmp_path / name))


def test_benchmarks_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"colour": "red"}\n')
    with pytest.raises(ConfigError, match="wanted problems under one of the keys"):
        read_benchmark(str(tmp_path / "b.jsonl"), None, 0)
    with pytest.raises(ConfigError, match="came no file"):
        read_benchmark(str(tmp_path / "absent.jsonl"), None, 0)
    with pytest.raises(ConfigError, match="at least 5 signs"):
        Index([Item("a", "1+1", "2")])
    with pytest.raises(ConfigError, match="wanted a file, came none"):
        list(read_located(tmp_path / "absent.jsonl"))
