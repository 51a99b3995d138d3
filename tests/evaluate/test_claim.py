"""Claim cards: what is supported, what is refuted, when problems are too few, and what may not be compared."""

import json
import random
from pathlib import Path

import pytest

from zifio import cli
from zifio.config import ConfigError
from zifio.evaluate.claim import build_card, read_measured
from zifio.stats import mcnemar, paired_ratio


def evaluation(folder: Path, p: float, n_problems: int = 300, n: int = 2, seed: int = 1, level: int = 1) -> Path:
    """The folder of an evaluation whose model is right with probability p on problems of mixed hardness."""
    rng = random.Random(seed)
    hard = random.Random(99)
    folder.mkdir()
    rows = []
    for number in range(n_problems):
        share = min(1.0, p * (0.5 + hard.random()))
        for place in range(n):
            right = rng.random() < share
            rows.append(
                {
                    "problem": f"p/{number}", "place": place, "budget": None, "prompt": f"q {number}", "gold": "7",
                    "outcome": "right" if right else "wrong", "n_tokens": 10, "seconds": 0.5, "cost": 0.001,
                }
            )  # fmt: skip
    save(folder, rows)
    identity = {
        "subject": {"model": folder.name}, "task": {"name": "t", "level": level}, "task_digest": "abc",
        "verifier_digest": "def", "sampling": {"temperature": 1.0},
    }  # fmt: skip
    (folder / "exam.json").write_text(json.dumps(identity))
    return folder


def save(folder: Path, rows: list[dict]) -> None:
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_problem(folder: Path) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = {}
    for row in sorted(load(folder), key=lambda row: row["problem"]):
        right.setdefault(row["problem"], []).append(row["outcome"] == "right")
    return right


def load(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("a", "b", "n", "verdict", "code"),
    [(0.75, 0.7, 600, "supported", 0), (0.4, 0.7, 300, "refuted", 1), (0.7, 0.7, 100, "underpowered", 1)],
)
def test_verdicts_and_the_card(tmp_path, monkeypatch, capsys, a, b, n, verdict, code):
    monkeypatch.chdir(tmp_path)
    one, two = evaluation(tmp_path / "ours", a, n, seed=1), evaluation(tmp_path / "theirs", b, n, seed=2)
    assert cli.main(["claim", str(one), str(two), "--ratio", "0.95", "--json"]) == code
    card = json.loads(capsys.readouterr().out)
    folder = tmp_path / "runs" / "claim" / "ours-theirs"
    assert card == json.loads((folder / "claim.json").read_text())
    assert card["verdict"] == verdict and card["n_problems"] == n
    right = [by_problem(place) for place in (one, two)]
    shares = [[sum(pair) / 2 for pair in side.values()] for side in right]
    expected = paired_ratio(*shares, 0, "claim")
    assert (card["ratio"], tuple(card["interval"])) == expected
    assert (card["needed"] is not None) == (verdict == "underpowered")
    if verdict == "underpowered":
        assert card["needed"] > n and f"{card['needed']:,} problems" in card["reason"]
    assert card["a"]["cost_per_solved"] == pytest.approx(2 * n * 0.001 / sum(map(sum, right[0].values())))
    page = (folder / "claim.md").read_text()
    for words in (verdict, "cost per solved problem", card["prompts_digest"], "`abc`", "`def`", card["date"]):
        assert words in page
    assert (folder / "claim.png").read_bytes().startswith(b"\x89PNG")
    firsts = [[pair[0] for pair in side.values()] for side in right]
    assert card["mcnemar"] == mcnemar(*firsts)._asdict()


def test_twenty_problems_without_a_mistake_do_not_support_a_claim(tmp_path):
    one, two = (evaluation(tmp_path / name, 9.0, 20, n=1) for name in ("a", "b"))
    card = build_card(read_measured(one), read_measured(two), 0.95)
    assert card["ratio"] == 1.0 and card["verdict"] == "underpowered" and 50 < card["needed"] < 200


def test_broken_checks_leave_the_card_with_a_word(tmp_path):
    one, two = evaluation(tmp_path / "a", 0.7, 50), evaluation(tmp_path / "b", 0.7, 50)
    rows = load(one)
    for row in rows[:2] + rows[4:5]:  # both replies to p/0, one to p/2
        row["outcome"] = "error"
    save(one, rows)
    card = build_card(read_measured(one), read_measured(two), 0.5)
    assert (card["n_problems"], card["n_left_out"], card["a"]["n_errors"]) == (49, 1, 3)
    assert "3 replies of a are left out" in " ".join(card["warnings"])


def test_what_was_not_measured_alike_is_not_compared(tmp_path):
    one = read_measured(evaluation(tmp_path / "a", 0.7, 50))
    fewer = read_measured(evaluation(tmp_path / "b", 0.7, 48))
    with pytest.raises(ConfigError, match=r"b: wanted answers to the same problems as a, came none to p/48, p/49"):
        build_card(one, fewer, 0.9)
    other_task = read_measured(evaluation(tmp_path / "c", 0.7, 50, level=2))
    with pytest.raises(ConfigError, match=r"task.level: 2 -> 1"):
        build_card(one, other_task, 0.9)
    other_gold = evaluation(tmp_path / "d", 0.7, 50)
    save(other_gold, [row | {"gold": "8"} if row["problem"] == "p/3" else row for row in load(other_gold)])
    with pytest.raises(ConfigError, match=r"different ones under the same id: p/3"):
        build_card(one, read_measured(other_gold), 0.9)
    with pytest.raises(ConfigError, match="at least one right answer"):
        build_card(one, read_measured(evaluation(tmp_path / "e", 0.0, 50)), 0.9)
    unfinished = evaluation(tmp_path / "f", 0.7, 50)
    save(unfinished, load(unfinished)[:-1])
    with pytest.raises(ConfigError, match="came fewer to p/49"):
        read_measured(unfinished)


def test_differences_besides_the_model_are_told(tmp_path):
    one, two = evaluation(tmp_path / "a", 0.7, 50), evaluation(tmp_path / "b", 0.7, 50)
    identity = json.loads((two / "exam.json").read_text())
    (two / "exam.json").write_text(json.dumps(identity | {"verifier_digest": "new", "sampling": {"temperature": 0.0}}))
    said = " ".join(build_card(read_measured(one), read_measured(two), 0.9)["warnings"])
    assert "different versions of the verifiers" in said and "sampling.temperature: 0.0 -> 1.0" in said
    (two / "exam.json").unlink()
    assert "not how they were made" in " ".join(build_card(read_measured(one), read_measured(two), 0.9)["warnings"])


def test_a_recipes_records_can_be_claimed_about(tmp_path):
    one = evaluation(tmp_path / "a", 0.7, 50)
    rows = [{key: row[key] for key in ("problem", "place", "prompt", "gold", "outcome")} for row in load(one)]
    file = tmp_path / "records-r1.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_measured(file).name == "r1"
    assert build_card(read_measured(file), read_measured(one), 0.5)["ratio"] == 1.0
