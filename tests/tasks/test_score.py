"""`zifio score`: a line out for every line in, in order, whatever the lines are; and on it goes after a stop."""

import json
from pathlib import Path

import pytest

from zifio import cli

LINES = [
    '{"id": "q1", "gold": "\\\\frac12", "response": "\\\\boxed{0.5}"}',
    '{"answer": 18, "output": "#### 18"}',
    '{"gold": "18", "prediction": "17"}',
    '{"task": "chain_sum", "prompt": "6+1-1+9", "gold": "15", "response": "<think></think><answer>15</answer>"}',
    '{"task": {"name": "chain_mod"}, "problem": "chain_mod/train/1/0", "completion": "<answer>77</answer>"}',
    "not json",
    "",
    "[1, 2]",
    '{"gold": "18"}',
    '{"response": "18"}',
    '{"gold": "\\\\oint", "response": "18"}',
    '{"task": "chain_som", "prompt": "1+1", "gold": "2", "response": "2"}',
    '{"task": "chain_sum", "response": "2"}',
    '{"gold": ["18"], "response": "18"}',
    '{"id": 7, "gold": "1", "response": "\\ud800 1"}',
    "[" * 100_000,
    '{"gold": "5", "response": "5"}',
]
VERDICTS = ["right", "right", "wrong", "right", "wrong", *["error"] * 9, "wrong", "error", "right"]


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, out = tmp_path / "outputs.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text("\n".join(LINES) + "\n")
    assert cli.main(["score", str(file), "--verifier", "maths", "--out", str(out), "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    records = written(out)
    assert [record["line"] for record in records] == list(range(1, len(LINES) + 1))
    assert [record["verdict"] for record in records] == VERDICTS
    assert records[0]["id"] == "q1" and records[14]["id"] == 7 and "id" not in records[1]
    assert all({"reward", "parts", "reason", "seconds"} <= set(record) for record in records)
    reasons = [record["reason"] for record in records]
    assert (
        "line 6" in reasons[5] and "empty" in reasons[6] and "response, output" in reasons[8] and "gold" in reasons[9]
    )
    assert "chain_sum" in reasons[11] and "'18'" in reasons[13]
    assert (summary["right"], summary["wrong"], summary["error"], summary["lines"]) == (4, 3, 10, len(LINES))
    assert summary["accuracy"] == pytest.approx(4 / 7)


def test_it_goes_on_where_it_stopped_and_not_with_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "outputs.jsonl"
    file.write_text("".join(json.dumps({"gold": str(n % 3), "response": "1"}) + "\n" for n in range(300)))
    assert cli.main(["score", str(file)]) == 0
    out = tmp_path / "outputs.verdicts.jsonl"
    whole = [{**record, "seconds": 0} for record in written(out)]
    assert len(whole) == 300 and sum(record["verdict"] == "right" for record in whole) == 100
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:120]) + lines[120][:20])
    assert cli.main(["score", str(file)]) == 0
    assert out.read_bytes().splitlines(keepends=True)[:120] == lines[:120]
    assert [{**record, "seconds": 0} for record in written(out)] == whole
    for changed in (["--unordered"], []):
        if not changed:
            file.write_text(file.read_text() + '{"gold": "1", "response": "1"}\n')
        capsys.readouterr()
        assert cli.main(["score", str(file), *changed]) == 2
        assert "--fresh" in capsys.readouterr().err
    assert cli.main(["score", str(file), "--fresh"]) == 0 and len(written(out)) == 301


def test_mistakes_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["score", str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl: wanted a file" in capsys.readouterr().err
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    assert cli.main(["score", str(file), "--out", str(file)]) == 2
    assert file.read_text() == "{}\n"


def test_options_reach_the_verifier(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"gold": "1, 2", "response": "\\\\boxed{2, 1}"}\n')
    for option, wanted in (([], "wrong"), (["--unordered"], "right")):
        assert cli.main(["score", str(file), "--fresh", *option]) == 0
        assert written(tmp_path / "a.verdicts.jsonl")[0]["verdict"] == wanted
