"""TRL: what it reads out of the adapter, rewards with tools, games and broken checks; and steps of GRPOTrainer."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from foreign import own_python, run_inside

from zifio.adapters.trl import environment_factory, reward_func, rows
from zifio.config import ConfigError
from zifio.tasks.calculator import Calculator
from zifio.tasks.catalog import named_task
from zifio.tasks.game import TicTacToe, best_moves, read_position
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict, render_response


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def test_single_questions_earn_what_the_task_says():
    task = ChainSum()
    table = rows(task, 3, first=2)
    problems = [task.problem("train", index, 0) for index in (2, 3, 4)]
    assert [row["prompt"] for row in table] == [[{"role": "user", "content": p.prompt}] for p in problems]
    columns = [row["problem"] for row in table]
    texts = [render_response("", problems[0].gold), problems[1].gold, task.document(problems[2], True)]
    assert reward_func(task)(list(map(said, texts)), columns) == [1.0, 0.0, 1.0]
    assert reward_func(task)(texts, columns) == [1.0, 0.0, 1.0], "plain completions too"


class Broken(ChainSum):
    """A task whose check breaks."""

    def score(self, problem: Problem, response: str) -> Verdict:
        raise OSError("broken")


def test_a_broken_check_is_none():
    row = rows(Broken(), 1)[0]
    assert reward_func(Broken())([said("<answer>5</answer>")], [row["problem"]]) == [None]


class BrokenDesk(Calculator):
    """A task whose environment cannot be had."""

    def start(self, problem: Problem, seed: int) -> Any:
        raise OSError("no desk")


def test_a_broken_environment_is_none():
    environment = environment_factory(BrokenDesk())()
    row = rows(BrokenDesk(), 1)[0]
    environment.reset(**row)
    assert environment.calculator(expression="1+1") == "The episode is over."
    assert reward_func(BrokenDesk())([said("")], [row["problem"]], environments=[environment]) == [None]


def test_tools_are_methods_and_the_last_text_is_judged():
    task = Calculator()
    environment = environment_factory(task)()
    row, other = rows(task, 2)
    tools = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction) if name[0] != "_"]
    assert tools == ["calculator", "reset"]
    assert environment.reset(**row) is None, "the prompt has it all"
    gold = row["problem"]["gold"]
    assert environment.calculator(expression=row["problem"]["prompt"]) == gold
    assert environment.calculator(number=5) == "error: no argument 'expression'", "in zifio's words"
    reward = reward_func(task)
    assert reward([said(render_response("", gold))], [row["problem"]], environments=[environment]) == [1.0]
    environment.reset(**other)
    assert reward([said(render_response("", gold))], [other["problem"]], environments=[environment]) == [0.0]
    environment.reset(**row)
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "1+1"}}}
    unanswered = said(render_response("", gold), tool_calls=[call])
    assert reward([unanswered], [row["problem"]], environments=[environment]) == [1.0], "cut, and judged by its text"


def test_a_game_is_played_by_its_one_tool():
    task = TicTacToe(goal="draw")
    factory = environment_factory(task)
    row = rows(task, 1)[0]
    environment, position = factory(), row["problem"]["prompt"]
    environment.reset(**row)
    while position != "The episode is over.":
        move = best_moves(*read_position(position))[0] + 1
        position = environment.say(text=render_response("", str(move)))
    assert reward_func(task)([said("thanks")], [row["problem"]], environments=[environment]) == [1.0]


def test_chance_differs_between_rollouts_and_repeats_between_runs():
    task = TicTacToe(min_plies=0, max_plies=0)
    row = rows(task, 1)[0]

    def answers() -> list[str]:
        factory, heard = environment_factory(task, seed=5), []
        for _ in range(8):
            environment = factory()
            environment.reset(**row)
            heard.append(environment.say(text=render_response("", "5")))
        return heard

    assert len(set(answers())) > 1 and answers() == answers()


def test_single_questions_want_no_environment():
    with pytest.raises(ConfigError, match="Leave the factory out"):
        environment_factory(ChainSum())


class Tokens:
    """As much of a tokenizer as the reward uses."""

    def batch_decode(self, ids: list[str], skip_special_tokens: bool) -> list[str]:
        return ids


def test_an_empty_thinking_that_the_template_dropped_is_put_back():
    task = ChainSum()
    row = rows(task, 1)[0]
    gold = f"<answer>{row['problem']['gold']}</answer>"
    for raw, reward in ((f"<think>\n</think>\n{gold}\n", 1.0), (gold, 0.0), (f"<think></think>so: {gold}", 0.0)):
        found = reward_func(task, Tokens())([said(gold)], [row["problem"]], completion_ids=[raw])
        assert found == [reward], raw


def learns_where_it_should(found: dict[str, Any]) -> bool:
    """The weights moved where a group's known rewards differ, and nowhere else, and are numbers."""
    rewards = [reward for *_, reward in found["seen"]]
    groups = [{*rewards[start : start + 4]} - {None} for start in range(0, len(rewards), 4)]
    return found["finite"] and found["moved"] == any(len(group) > 1 for group in groups)


@pytest.mark.slow
def test_grpo_steps_with_tools_and_with_a_check_that_breaks(tmp_path: Path):
    file = tmp_path / "found.json"
    run_inside(own_python(), "trl_run.py", {"folder": str(tmp_path), "file": str(file)})
    found = json.loads(file.read_text())
    tools = found["with_tools"]
    assert learns_where_it_should(tools) and len(tools["logs"]) == 2
    assert tools["logs"][0]["tools/call_frequency"] > 0 and tools["logs"][0]["tools/failure_frequency"] == 0
    (schema,) = tools["schema"]
    del schema["function"]["return"]
    assert [schema] == tools["ours"], "the model is shown zifio's own schema"
    task = named_task("calculator:min_digits=1,max_digits=1")
    for problem, completion, raw, reward in tools["seen"]:
        last = raw.rpartition("assistant\n")[2] if len(completion) > 1 else raw
        if completion[-1]["content"]:
            assert reward == task.score(Problem(**problem), last).reward, raw
    assert {reward for *_, reward in tools["seen"]} >= {1.0}
    single = found["single"]
    earned = {problem["id"]: set() for problem, *_ in single["seen"]}
    for problem, *_, reward in single["seen"]:
        earned[problem["id"]].add(reward)
    assert learns_where_it_should(single) and earned.pop("chain_sum/train/0/1") == {None}
    assert None not in earned["chain_sum/train/0/0"]
    right = [reward for *_, reward in single["seen"][:8] if reward is not None]
    assert single["logs"][0]["reward"] == pytest.approx(sum(right) / len(right)), "errors are left out of the mean"
    assert found["game"]["schema"]["function"]["name"] == "say" and found["game"]["rewards"] == [0.0]
