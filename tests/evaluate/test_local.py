"""A local model under examination: budgets cut thinking and nothing else; the same command gives the same replies."""

import json

import pytest
from tiny import SHORT_SUMS, llama, save_base

from zifio import cli
from zifio.config import ConfigError, build
from zifio.data.sources import read_jsonl
from zifio.evaluate.config import ExamConfig
from zifio.evaluate.examine import Exam
from zifio.evaluate.local import LocalSubject
from zifio.evaluate.replies import Ask, Failed, Said

SETTINGS = {
    "task": {"name": "chain_sum", "min_terms": 2, "max_terms": 4}, "problems": 6, "n": 4, "seed": 3,
    "budgets": [3, 10], "answer_tokens": 4, "sampling": {"max_new_tokens": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_base(tmp_path_factory.mktemp("local") / "one", llama(), 1))


def made(model: str, **changes) -> tuple[Exam, LocalSubject]:
    exam = Exam.of(build(ExamConfig, SETTINGS | changes, "test"))
    return exam, LocalSubject(model, exam.config, exam.problems, exam.force)


def answered(subject: LocalSubject, asks: list[Ask]) -> dict[tuple[str, int, int | None], Said]:
    found = {}
    for batch in subject.answer(asks):
        for item in batch:
            assert not isinstance(item, Failed)
            found[item[0].problem.id, item[0].place, item[0].budget] = item[1]
    return found


def test_a_budget_cuts_the_thinking_and_nothing_else(model):
    exam, subject = made(model)
    asks = exam.asks()
    found = answered(subject, asks)
    assert len(found) == len(asks) == 6 * 4 * 3
    encode, kinds = subject.policy.tokenizer.encode, set()
    for ask in asks:
        if ask.budget is None:
            continue
        whole, cut = found[ask.problem.id, ask.place, None], found[ask.problem.id, ask.place, ask.budget]
        opened, ended = "<think>" in whole.text, "</think>" in whole.text
        n_thinking = len(encode(whole.text.partition("</think>")[0])) + 1 if ended else whole.n_tokens
        assert n_thinking is not None
        if not (opened or ended):
            kinds.add("no thinking")
            assert cut == Said(**{**vars(whole), "seconds": cut.seconds}) and whole.n_thinking_tokens == 0
        elif n_thinking <= ask.budget and (ended or whole.finish == "stop"):
            kinds.add("short thinking")
            assert cut.text == whole.text
        else:
            kinds.add("cut")
            tokens, force = encode(cut.text), encode("</think><answer>")
            assert tokens[: ask.budget] == encode(whole.text)[: ask.budget]
            assert tokens[ask.budget : ask.budget + len(force)] == force
            assert cut.n_tokens is not None and cut.n_tokens <= ask.budget + len(force) + 4
    assert kinds == {"no thinking", "short thinking", "cut"}


def test_a_reply_depends_on_its_ask_alone(model):
    exam, subject = made(model)
    asks = exam.asks()
    found = answered(subject, asks)
    some = [ask for number, ask in enumerate(asks) if number % 5 in (0, 3)]
    again = answered(subject, some)
    assert again.keys() == {(ask.problem.id, ask.place, ask.budget) for ask in some}
    assert {key: said.text for key, said in again.items()} == {key: found[key].text for key in again}
    without = answered(made(model, budgets=[])[1], made(model, budgets=[])[0].asks())
    assert {key: said.text for key, said in without.items()} == {
        key: said.text for key, said in found.items() if key[2] is None
    }


def test_lengths_fit_the_context(model):
    exam, subject = made(model, sampling={"temperature": 0.5}, budgets=[])
    longest = max(len(subject.policy.prompt(subject.frame.messages(problem))) for problem in exam.problems)
    assert subject.sampling.max_new_tokens == 96 - longest
    with pytest.raises(ConfigError, match="fit the model's context of 96"):
        made(model, budgets=[90], sampling={"max_new_tokens": 20})
    with pytest.raises(ConfigError, match=r"at most sampling.max_new_tokens = 20.*came 30"):
        made(model, budgets=[30])


def test_the_command_measures_a_model_and_goes_on(model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["eval", model, "--task", "chain_sum:min_terms=2,max_terms=4", "--n", "4", "--json", "budgets=[3, 10]"]
    words += ["answer_tokens=4", "sampling.max_new_tokens=20", "prices.input=0", "prices.output=1"]
    assert cli.main([*words, "--problems", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = tmp_path / "runs" / "eval" / "one-chain_sum"
    rows = read_jsonl(folder / "records.jsonl")
    assert len(rows) == 5 * 4 * 3 and [arm["budget"] for arm in found["arms"]] == [3, 10, None]
    assert "its end forced" in found["budget_by"] and "its end forced" in (folder / "results.md").read_text()
    assert found["cost"] == pytest.approx(sum(row["n_tokens"] for row in rows if row["budget"] is None) / 1e6)
    assert all(row["logp"] < 0 and row["outcome"] in ("right", "wrong") for row in rows)
    free = [row for row in rows if row["budget"] is None]
    surprise, n_tokens = -sum(row["logp"] for row in free), sum(row["n_tokens"] for row in free)
    assert found["diversity"]["token_entropy"] == pytest.approx(surprise / n_tokens)
    assert f"| nats a token | {surprise / n_tokens:.3f} |" in (folder / "results.md").read_text()
    whole = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").write_bytes(whole[: len(whole) // 2])
    assert cli.main([*words, "--problems", "5"]) == 0
    again = json.loads(capsys.readouterr().out)

    def told(rows: list[dict]) -> dict:
        return {(r["problem"], r["place"], r["budget"]): (r["response"], r["thinking"], r["outcome"]) for r in rows}

    assert told(read_jsonl(folder / "records.jsonl")) == told(rows)
    assert again["pass_at_k"] == found["pass_at_k"] and again["majority_at_k"] == found["majority_at_k"]
    assert SHORT_SUMS.problem("held-out", 0, 0).prompt == rows[0]["prompt"]
