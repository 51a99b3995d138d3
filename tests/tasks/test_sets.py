"""Data sets: rows of every shape, splits that share nothing, epochs, and what is told when data are not there."""

import gzip
import json

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from zifio.config import ConfigError
from zifio.recipe import load_recipe
from zifio.tasks.catalog import named_task
from zifio.tasks.custom import Custom
from zifio.tasks.rows import Hub, find, read_rows
from zifio.tasks.runtime import judge_all
from zifio.tasks.sets import Gsm8k, Math500, MultipleChoice, WordProblems


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def grade_school(n, first=0):
    rows = []
    for i in range(first, first + n):
        total = i * (i + 2000)
        answer = f"It is {i}*{i + 2000}=<<{i}*{i + 2000}={total}>>{total}.\n#### {total:,}"
        rows.append({"question": f"{i} boxes of {i + 2000} pens?", "answer": answer})
    return rows


@pytest.fixture
def gsm8k(tmp_path):
    write(tmp_path / "train.jsonl", grade_school(20))
    write(tmp_path / "test.jsonl", grade_school(5, 100))
    return Gsm8k(path=str(tmp_path))


def test_a_worked_solution_becomes_a_right_reply_without_its_marks(gsm8k):
    problem = gsm8k.problem("held-out", 1, seed=1)
    assert problem.gold == "212201" and "#" not in problem.working and "<<" not in problem.working
    reply = gsm8k.document(problem, shows_working=True)
    assert reply == "It is 101*2101=212201.\n<answer>212201</answer>"
    for answer, outcome in (("212,201", "right"), ("212201.0", "right"), ("$212201", "right"), ("212202", "wrong")):
        assert gsm8k.score(problem, f"<answer>{answer}</answer>").outcome == outcome


@pytest.mark.parametrize("form", ["tags", "boxed", "free"])
def test_every_form_takes_its_own_documents(gsm8k, form):
    task = gsm8k.model_copy(update={"response": form})
    for index in range(5):
        problem = task.problem("held-out", index, seed=1)
        assert task.check_gold(problem).parts == {"accuracy": 1.0, "format": 1.0}
        assert task.score(problem, task.document(problem, shows_working=False)).outcome == "right"


def test_the_instruction_can_be_another_or_none(gsm8k):
    bare = gsm8k.model_copy(update={"instruction": ""}).problem("held-out", 0, 1).prompt
    assert bare == "100 boxes of 2100 pens?"
    assert gsm8k.problem("held-out", 0, 1).prompt.startswith(f"{bare}\n")
    assert gsm8k.model_copy(update={"instruction": "Go."}).problem("held-out", 0, 1).prompt == f"{bare}\nGo."


def test_train_goes_on_in_epochs_and_held_out_ends(gsm8k):
    def prompts(start, seed):
        return [gsm8k.problem("train", start + index, seed).prompt for index in range(20)]

    first, second = prompts(0, 1), prompts(20, 1)
    assert len(set(first)) == 20 and set(first) == set(second) and first != second and first != prompts(0, 2)
    assert first == prompts(0, 1)
    held_out = [gsm8k.problem("held-out", index, seed) for seed in (1, 2) for index in range(5)]
    assert held_out[:5] == held_out[5:] and held_out[0].prompt.startswith("100 ")
    with pytest.raises(ConfigError, match="a set with 5"):
        gsm8k.problem("held-out", 5, 1)
    ids = [gsm8k.problem("train", index, 1).id for index in range(40)]
    assert len(set(ids)) == 40


def test_a_single_file_is_split_by_its_questions_alone(tmp_path):
    rows = [{"input": f"What is {i} and {i}?", "target": 2.0 * i} for i in range(400)]
    path = write(tmp_path / "mine.jsonl", rows)
    other = write(tmp_path / "other.jsonl", [{**row, "input": f" {row['input'].upper()}"} for row in reversed(rows)])
    task, again = WordProblems(path=path), WordProblems(path=other)
    assert task.size("train") + task.size("held-out") == 400 and 10 < task.size("held-out") < 50
    assert again.size("held-out") == task.size("held-out")
    golds = [task.problem("held-out", index, 1).gold for index in range(task.size("held-out"))]
    assert golds == [again.problem("held-out", index, 1).gold for index in reversed(range(len(golds)))]
    assert all(gold.isdecimal() for gold in golds)


def test_a_train_row_that_is_held_out_is_left_out(tmp_path):
    write(tmp_path / "train.jsonl", [*grade_school(4), *grade_school(1, 100)])
    write(tmp_path / "test.jsonl", grade_school(5, 100))
    task = Gsm8k(path=str(tmp_path))
    assert (task.size("train"), task.left_out()) == (4, 1)


@pytest.mark.parametrize(
    ("raw", "prompt", "gold"),
    [
        ({"Body": "Two here.", "Question": "How many?", "Answer": 2.5}, "Two here. How many?", "2.5"),
        ({"sQuestion": "How many?", "lSolutions": [7.0]}, "How many?", "7"),
        ({"question": "How many?", "answer": "1,200"}, "How many?", "1200"),
    ],
)
def test_word_problems_of_every_shape(raw, prompt, gold):
    assert WordProblems().row(raw, "row")[:2] == (prompt, gold)


@pytest.mark.parametrize(
    "raw",
    [
        {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
        {"question": "Which?", "options": ["red", "blue"], "answer": "B"},
        {"question": "Which?", "choices": ["red", "blue"], "answer": "blue"},
    ],
)
def test_choices_of_every_shape(raw):
    task = MultipleChoice(path="none")
    row = task.row(raw, "row")
    assert row[:2] == ("Which?\nA. red\nB. blue", "B")
    with pytest.raises(ConfigError, match=r"one of 2 choices, came 'C'"):
        task.row({**raw, "answer": "C", "answerKey": "C"}, "row")


def test_contest_problems_keep_their_box_for_the_answer(tmp_path):
    path = write(tmp_path / "math.jsonl", [{"problem": "Half?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}])
    task = Math500(path=path)
    problem = task.problem("held-out", 0, 1)
    assert (problem.gold, problem.working) == ("\\frac{1}{2}", "It is $\\frac{1}{2}$.")
    assert task.document(problem, shows_working=True).endswith("\n\\boxed{\\frac{1}{2}}")
    verdicts = judge_all(
        task, [(problem, task.document(problem, True)), (problem, "\\boxed{\\frac{1}{3}}"), (problem, "")]
    )
    assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong"]
    with pytest.raises(ConfigError, match="has no train part"):
        task.problem("train", 0, 1)


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    rows = [{"prompt": f"say {i}", "answer": str(i)} for i in range(5)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet"):
        assert list(read_rows(tmp_path / name, "t")) == rows, name


def test_a_folder_of_shards_is_one_split_and_two_sets_are_refused(tmp_path):
    for name in (
        "main/train-00000-of-00002.jsonl",
        "main/train-00001-of-00002.jsonl",
        "main/test-00000-of-00001.jsonl",
    ):
        write(tmp_path / name, [{"a": 1}])
    assert [len(files) for files in find("t", str(tmp_path), None).values()] == [2, 1]
    write(tmp_path / "other" / "test.jsonl", [{"a": 1}])
    with pytest.raises(ConfigError, match="one file with `test`"):
        find("t", str(tmp_path), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"question": 1}\n[2]\n', ["line 2", "JSON object"]),
        (b"", ["wanted rows"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b'{"q": 1}', ["row 1", "'answer'", "Rename"]),
        (b'{"question": "x", "answer": "y"}', ["row 1", "#### NUMBER"]),
        (b'{"question": "", "answer": "#### 1"}', ["question", "wanted text"]),
    ],
)
def test_bad_rows_are_told_by_their_place(tmp_path, content, words):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Gsm8k(path=str(tmp_path / "bad.jsonl")).problem("held-out", 0, 1)
    assert all(word in str(caught.value) for word in ["task gsm8k", *words])


def test_absent_data_are_told_with_the_command_that_fetches_them(tmp_path):
    command = "hf download openai/gsm8k main/train-00000-of-00001.parquet main/test-00000-of-00001.parquet --repo-type"
    with pytest.raises(ConfigError, match=command):
        Gsm8k(path=str(tmp_path / "none")).problem("train", 0, 1)
    with pytest.raises(ConfigError, match="wanted a file with `test`"):
        Gsm8k(path=str(tmp_path)).problem("train", 0, 1)
    with pytest.raises(ConfigError, match="Convert the file"):
        (tmp_path / "a.csv").write_text("a,b")
        Gsm8k(path=str(tmp_path / "a.csv")).problem("train", 0, 1)


def test_a_hub_out_of_reach_is_told_with_the_command(monkeypatch):
    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    for task in (Gsm8k(), Math500(), Custom(path="hub:owner/name/train.parquet")):
        with pytest.raises(ConfigError, match=r"came: no connection.*hf download .* --repo-type dataset"):
            task.problem("held-out", 0, 1)


def test_the_hub_s_command_names_what_it_fetches():
    assert Hub("a/B", None, "test.jsonl").command() == "hf download a/B test.jsonl --repo-type dataset --local-dir b"


def test_a_recipe_that_asks_for_too_many_is_refused_before_it_runs(tmp_path):
    write(tmp_path / "data" / "train.jsonl", grade_school(9))
    write(tmp_path / "data" / "test.jsonl", grade_school(5, 100))
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\ntask = {{ name = "gsm8k", path = "{tmp_path}/data" }}\n'
        f'[[stage]]\nkind = "eval"\nname = "report"\nmodels = ["{tmp_path}"]\nproblems = 6\n'
    )
    with pytest.raises(
        ConfigError, match=r"report\.problems: task gsm8k: wanted 6 held-out problems, came a set with 5"
    ):
        load_recipe(recipe, [])
    assert load_recipe(recipe, ["stage.report.problems=5"]).task == named_task(str(recipe))
