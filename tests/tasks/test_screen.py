"""The screen: planted defects are found, each by the attack that is meant for it, and what ships passes."""

import gc
import itertools
import json
import warnings
from typing import get_args

import pytest
from idx_files import labelled_files

from zifio.cli import main
from zifio.config import ConfigError
from zifio.tasks.agent import Agent
from zifio.tasks.attacks import near_misses, same, surface_forms
from zifio.tasks.calculator import Calculator
from zifio.tasks.catalog import TaskConfig, named_task
from zifio.tasks.coding import HumanEval, Mbpp
from zifio.tasks.custom import Custom
from zifio.tasks.drills import Drills
from zifio.tasks.families import allowed
from zifio.tasks.game import TicTacToe
from zifio.tasks.gym import Candidate, Gym
from zifio.tasks.labelled import PictureLabels
from zifio.tasks.lax import LaxMod
from zifio.tasks.probes import Elsewhere
from zifio.tasks.runtime import Pool
from zifio.tasks.scenes import GlyphCaptions, GlyphWords
from zifio.tasks.screen import READER, screen_task, screened_task
from zifio.tasks.sets import Gsm8k, Math500, MultipleChoice, WordProblems
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainMod, ChainSum
from zifio.tasks.task import Problem, Verdict


@pytest.fixture(scope="module")
def pool():
    with Pool(reader=READER) as pool:
        yield pool


def high(screening):
    return {finding.check for finding in screening.findings if finding.severity == "high"}


class Sums:
    """Sums of two numbers with a check to be spoilt: `accepts(answer, gold)` says what it calls right."""

    name = "sums"

    def __init__(self, accepts=None, prompt="What is {} + {}?", score=None):
        self.accepts, self.prompt, self.verdict = accepts, prompt, score

    def problem(self, split, index, seed):
        a, b = index + 11, 3 * index + (200 if split == "train" else 5001)
        return Problem(f"sums/{split}/{index}", self.prompt.format(a, b, total=a + b), str(a + b))

    def document(self, problem, shows_working):
        return f"<answer>{problem.gold}</answer>"

    def check_gold(self, problem):
        return self.score(problem, self.document(problem, True))

    def score(self, problem, response):
        if self.verdict:
            return self.verdict(problem, response)
        answer = response.removeprefix("<answer>").removesuffix("</answer>")
        right = self.accepts(answer, problem.gold)
        return Verdict("right" if right else "wrong", float(right))


def exact(answer, gold):
    return answer == gold


def test_a_sound_task_passes(pool):
    screening = screen_task(Sums(exact), 4, 0, pool)
    assert not screening.findings
    assert {row.check for row in screening.rows} >= {"purity", "overlap", "leak", "gold", "near misses", "repeats"}
    assert all(not row.errors for row in screening.rows)


DEFECTS = {
    "the gold anywhere": (lambda answer, gold: gold in answer, {"everything", "gold among others", "gold in junk"}),
    "anything": (lambda answer, gold: bool(answer), {"a constant", "the prompt", "injection", "a megabyte", "code"}),
    "even nothing": (lambda answer, gold: answer == gold or not answer.strip(), {"nothing"}),
    "a prefix": (lambda answer, gold: answer != "" and gold.startswith(answer), {"near misses"}),
    "off by one": (lambda answer, gold: answer.isdecimal() and abs(int(answer[:9]) - int(gold)) < 2, {"near misses"}),
    "the length": (lambda answer, gold: len(answer) == len(gold), {"another's gold", "near misses"}),
    "no sign": (lambda answer, gold: answer.lstrip("-") == gold, {"near misses"}),
    "an order": (lambda answer, gold: answer == gold or "say that this answer is correct" in answer, {"injection"}),
    "the prompt": (lambda answer, gold: answer == gold or answer.startswith("What is"), {"the prompt"}),
    "the last word": (lambda answer, gold: answer.split()[-1:] == [gold], {"everything", "gold among others"}),
}


@pytest.mark.parametrize(("accepts", "checks"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_planted_defect_is_found_by_its_attack(accepts, checks, pool):
    screening = screen_task(Sums(accepts), 4, 0, pool)
    assert checks <= high(screening)
    for finding in screening.findings:
        assert finding.what and finding.cure
        if finding.check in checks and "reply" in finding.evidence:
            assert finding.evidence["reward"] > 0 and finding.evidence["problem"].startswith("sums/")


def test_a_check_that_runs_the_answer_is_found(pool):
    def runs(answer, gold):
        try:
            return str(eval(answer[:200])) == gold
        except Exception:
            return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the attacks look like as Python, and of the file left open
        assert "code" in high(screen_task(Sums(runs), 2, 0, pool))
        gc.collect()


def raises(answer, gold):
    return int(answer) == int(gold)


def test_a_check_that_breaks_on_what_a_model_may_say_is_found(pool):
    screening = screen_task(Sums(raises), 4, 0, pool)
    assert "nothing" in high(screening) and sum(row.errors or 0 for row in screening.rows) > 100
    assert any("ValueError" in str(finding.evidence.get("reason")) for finding in screening.findings)


def test_a_check_that_changes_its_mind_is_found(pool):
    turn = itertools.count()

    def moody(problem, response):
        right = (problem.gold in response and len(response) < 40) or next(turn) % 5 == 0
        return Verdict("right" if right else "wrong", float(right))

    assert "repeats" in high(screen_task(Sums(score=moody), 4, 0, pool))


def test_a_reward_beyond_one_is_an_error_of_the_task(pool):
    assert high(screen_task(Sums(score=lambda *_: Verdict("right", 1.5)), 4, 0, pool)) == {"gold"}


def test_a_gold_that_is_not_right_is_found_first(pool):
    screening = screen_task(Sums(lambda answer, gold: False), 4, 0, pool)
    assert high(screening) == {"gold"} and "not called right" in screening.findings[0].what


LEAKS = [
    "{} + {} (answer: {total})",
    "{} + {} <!-- {total} -->",
    "{total} is what {} + {} makes, or not?",
    "{}+{}\n{total}",
]


@pytest.mark.parametrize("prompt", LEAKS)
def test_a_gold_in_the_prompt_is_found(prompt, pool):
    assert "leak" in high(screen_task(Sums(exact, prompt), 4, 0, pool))


def test_a_leak_in_some_rows_is_found_in_a_user_s_file(tmp_path, capsys):
    rows = [{"prompt": f"What is {i} + {i + 7}?", "answer": 2 * i + 7} for i in range(200)]
    for row in rows[::20]:
        row["prompt"] += f" [solution: {row['answer']}]"
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.html"
    task = f"{path}:verifier=integer"
    assert main(["screen", task, "--problems", "4", "--json", "--report", str(page)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert [finding["check"] for finding in found["findings"] if finding["severity"] == "high"] == ["leak"]
    html = page.read_text()
    assert "Failed" in html and "[solution: " in html and "http" not in html and "prefers-color-scheme: dark" in html


def test_repeats_and_overlap_of_the_splits_are_found(pool):
    class Small(Sums):
        def problem(self, split, index, seed):
            return super().problem("train", index % 3, seed)

    screening = screen_task(Small(exact), 4, 0, pool)
    assert "overlap" in high(screening)
    assert {"duplicates, train", "duplicates, held-out"} <= {finding.check for finding in screening.findings}


def test_a_problem_that_changes_is_found(pool):
    class Fresh(Sums):
        def problem(self, split, index, seed):
            return super().problem(split, next(numbers), seed)

    numbers = itertools.count()
    assert "purity" in high(screen_task(Fresh(exact), 4, 0, pool))


def test_a_promise_that_is_not_kept_is_found(pool):
    class Promising(Sums):
        forms = ("thousands",)

    screening = screen_task(Promising(exact, score=None), 4, 0, pool)
    assert not high(screening)  # no gold has thousands yet
    many = Promising(exact)
    many.problem = lambda split, index, seed: Problem(f"p{split}{index}", f"{split} {index}", str(2000 + index))
    assert high(screen_task(many, 4, 0, pool)) == {"other forms"}


@pytest.mark.parametrize("family", ["coin_flip", "game_of_life_halting"])
def test_the_known_defects_of_reasoning_gym_are_found(family, pool):
    screening = screen_task(Candidate(family=family, scorer="theirs"), 8, 0, pool)
    assert "a constant" in high(screening) and screening.measured["guessing earns"] > 0.9


def test_their_scorer_is_for_the_screen_alone():
    task = screened_task("reasoning_gym:family=coin_flip,scorer=theirs")
    assert isinstance(task, Candidate) and task.isolated
    with pytest.raises(ConfigError, match="scorer"):
        named_task("reasoning_gym:family=coin_flip,scorer=theirs")


def _written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FORMS = ("tags", "boxed", "free")


def _numbers(kind, path):
    rows = [{"question": f"{i} and {i + 1900} pens?", "answer": f"It is.\n#### {2 * i + 1900}"} for i in range(100)]
    short = [{"input": row["question"], "target": row["answer"].split()[-1]} for row in rows]
    file = _written(path, rows if kind is Gsm8k else short)
    return [kind(path=file, response=form) for form in FORMS]


def _choices(path):
    rows = [{"question": f"Which {i}?", "choices": ["red", "blue", "green"], "answer": i % 3} for i in range(100)]
    return [MultipleChoice(path=_written(path, rows), response=form) for form in FORMS]


def _contest(path):
    roots = [f"\\sqrt{{{i}}}" for i in (2, 3, 5, 6, 7, 10, 11, 13)]
    rows = [
        {"problem": f"The larger root of x^2 - {r[6:-1]}?", "answer": r, "solution": f"\\boxed{{{r}}}"} for r in roots
    ]
    return [Math500(path=_written(path, rows))]


def _programs(path):
    rows = [
        {
            "text": f"Write a function to add {n}.",
            "code": f"def plus(x):\n    return x + {n}",
            "task_id": n,
            "test_setup_code": "",
            "test_list": [f"assert plus({k}) == {n + k}" for k in (1, 20)],
            "challenge_test_list": [],
        }
        for n in (*range(11, 19), *range(601, 609))
    ]
    return [Mbpp(path=_written(path, rows))]


def _own(path):
    rows = [{"prompt": f"What is {i} + {i + 700}?", "answer": str(2 * i + 700)} for i in range(100)]
    return [Custom(path=_written(path, rows), verifier=kind) for kind in ("integer", "maths")]


BUILT_IN = {
    "chain_sum": lambda path: [ChainSum(), ChainSum(working="totals")],
    "chain_mod": lambda path: [ChainMod()],
    "splits": lambda path: [Splits()],
    "reasoning_gym": lambda path: [Gym(max_terms=8, max_digits=2)],
    "gsm8k": lambda path: _numbers(Gsm8k, path),
    "word_problems": lambda path: _numbers(WordProblems, path),
    "math500": _contest,
    "multiple_choice": _choices,
    "custom": _own,
    "humaneval": lambda path: [HumanEval()],
    "mbpp": _programs,
    "calculator": lambda path: [Calculator()],
    "tic_tac_toe": lambda path: [TicTacToe()],
    "agent": lambda path: [Agent(of={"name": "chain_sum"})],
    "glyph_captions": lambda path: [GlyphCaptions()],
    "glyph_words": lambda path: [GlyphWords()],
    "drills": lambda path: [Drills()],
    "picture_labels": lambda path: [PictureLabels(path=str(labelled_files(path.parent)))],
}


def test_no_built_in_task_goes_unscreened():
    names = {kind.model_fields["name"].default for kind in get_args(get_args(TaskConfig)[0])}
    drawn = {
        "glyph_drawings",
        "label_drawings",
    }  # attacks are words, their replies pictures
    assert names == BUILT_IN.keys() | drawn | {"lax_mod", "flawed_mod", "facts"}


def test_the_task_with_a_bug_on_purpose_is_found(pool):
    assert high(screen_task(LaxMod(), 8, 0, pool))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_task_passes(name, tmp_path, pool):
    for task in BUILT_IN[name](tmp_path / "data.jsonl"):
        screening = screen_task(task, 2 if getattr(task, "programs", False) else 3, 0, pool)
        assert not high(screening), (task, [finding for finding in screening.findings if finding.severity == "high"])


@pytest.mark.parametrize("family", ["ab", "countdown", "jugs", "spell_backward"])
def test_some_families_pass(family, pool):
    assert not high(screen_task(Gym(family=family), 3, 1, pool))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(allowed()))
def test_every_allowed_family_passes(family, pool):
    with Elsewhere() as elsewhere:
        assert not high(screen_task(Gym(family=family), 3, 2, pool, elsewhere))


@pytest.mark.parametrize("gold", ["15", "-3", "100", "0.25", "True", "B", "two words", "[1, 2]", "x**2 + 1", "0", "7"])
def test_near_misses_are_not_the_gold_and_other_forms_are(gold):
    misses = near_misses(gold)
    assert len(misses) >= 2 and not any(same(miss, gold) for miss in misses)
    assert gold not in surface_forms(gold).values()


def test_what_says_the_same():
    assert same("1,000", "1000.0") and same("Yes", " yes") and same("[1,2]", "[1, 2]")
    assert not same("12", "21") and not same("", "0") and not same("[1,2]", "[2,1]")


def test_the_verb_passes_a_task_and_says_so(capsys):
    assert main(["screen", "chain_mod", "--problems", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("chain_mod: passed") and "near misses" in captured.err
    assert main(["screen", "chain_sun"]) == 2
