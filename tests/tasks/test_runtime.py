"""The pool of checkers: whatever a check does, its own verdict is an error that says so, and nothing else changes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from nasty import READER, Nasty

from zifio.config import ConfigError
from zifio.tasks.runtime import Limits, Pool, judge, judge_all
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict

TASK = Nasty()
QUICK, PATIENT = Limits(seconds=0.15, memory_mb=128), Limits(seconds=20, memory_mb=128)


@pytest.fixture(scope="module")
def pool():
    with Pool(2, READER) as pool:
        yield pool


def asked(responses: list[str]) -> list[tuple[Problem, str]]:
    return [(TASK.problem("train", index, 0), response) for index, response in enumerate(responses)]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


WAYS = {
    "sleep 100": "took longer than 0.15 s",
    "spin": "took longer than 0.15 s",
    "regex": "took longer than 0.15 s",
    "power": "took longer than 0.15 s",
    "exit": "ended its process with exit code 3",
    "sysexit": "raised SystemExit(0)",
    "crash": "crashed (SIGSEGV)",
    "kill": "was killed: by itself",
    "recurse": "raised RecursionError",
    "bomb": "",
    "eat": "wanted more than 128 MB of memory",
    "huge": "wanted more than 128 MB of memory",
    "raise no such file": "raised RuntimeError('no such file')",
    "interrupt": "raised KeyboardInterrupt",
    "unspeakable": "gave a _Unspeakable without a repr, not a verdict",
    "nan": "gave the reward nan",
    "inf": "gave the reward inf",
    "over": "gave the reward 1.5",
    "under": "gave the reward -0.5",
    "text": "gave the reward '1'",
    "parts": "gave the part 'accuracy' = inf",
    "outcome": "gave the outcome 'maybe'",
    "number": "gave 1.0, not a verdict",
    "none": "gave None, not a verdict",
    "flood": "wrote to the pool's own channel",
}


@pytest.mark.parametrize("way", WAYS)
def test_what_goes_wrong_is_that_checks_error_alone(way: str, pool: Pool):
    responses = ["0", "1", way, "3", "x", "5"]
    limits = QUICK if "longer" in WAYS[way] else PATIENT
    verdicts = [checked.verdict for checked in pool.check(TASK, asked(responses), limits)]
    assert [verdict.outcome for verdict in verdicts] == ["right", "right", "error", "right", "wrong", "right"]
    guilty = verdicts[2]
    assert guilty.reward == 0 and guilty.parts == {}
    assert guilty.reason.startswith("nasty: the check of nasty/2 ") and WAYS[way] in guilty.reason


def test_one_check_alone_and_none_at_all(pool: Pool):
    assert pool.check(TASK, []) == []
    assert pool.check(TASK, asked(["spin"]), QUICK)[0].verdict.outcome == "error"
    (checked,) = pool.check(TASK, asked(["0"]))
    assert checked.verdict == Verdict("right", 1.0, {"accuracy": 1.0}) and checked.seconds > 0


def test_what_an_earlier_check_left_behind_is_not_held_against_a_later_one():
    """A leak and a delayed exit: each is fine itself, and makes its worker fail under whoever comes next."""
    with Pool(1, READER) as pool:
        leaks = pool.check(TASK, asked(["leak"] * 3 + ["3"]), Limits(seconds=5, memory_mb=256))
        assert [checked.verdict.outcome for checked in leaks] == ["right"] * 4
        assert pool.check(TASK, asked(["later"]))[0].verdict.outcome == "right"
        time.sleep(0.2)
        assert pool.check(TASK, asked(["0"]))[0].verdict.outcome == "right"
        outcomes = [c.verdict.outcome for c in pool.check(TASK, asked(["later", "sleep 0.2", "2"]))]
        assert outcomes == ["right"] * 3


def test_a_check_that_kills_the_template_is_named_and_the_pool_goes_on(pool: Pool):
    """Those that were under way beside it are tried again when it is not."""
    slow = "sleep 0.3"
    verdicts = [checked.verdict for checked in pool.check(TASK, asked([slow, "template", slow, "3"]), PATIENT)]
    assert [verdict.outcome for verdict in verdicts] == ["right", "error", "right", "right"]
    assert "the whole pool died" in verdicts[1].reason
    assert pool.check(TASK, asked(["0"]))[0].verdict.outcome == "right"


def test_a_task_that_cannot_be_set_up(pool: Pool):
    checked = pool.check(Nasty(broken=True), asked(["0", "1"]))
    assert [one.verdict.outcome for one in checked] == ["error"] * 2
    assert "setting up the task raised OSError" in checked[0].verdict.reason
    assert "the task's file is gone" in checked[1].verdict.reason
    assert pool.check(TASK, asked(["0"]))[0].verdict.outcome == "right"


def test_a_pool_that_cannot_start_says_why():
    with Pool(1, "no.such.module:read") as pool, pytest.raises(RuntimeError, match="No module named 'no'"):
        pool.check(TASK, asked(["0"]))


def test_a_task_without_a_config():
    class Bare:
        name = "bare"
        isolated = True
        problem = document = score = check_gold = lambda *_: None

    with pytest.raises(ConfigError, match="wanted a task with a config"):
        judge(Bare(), Problem("a", "b", "c"), "d")  # type: ignore[arg-type]


def test_strange_texts_come_through(pool: Pool):
    strange = ["\ud800", "\x00\n\r", "é" * 10, "\u2028", "9" * 200_000]
    problems = [Problem(f"p/{n}", "", text) for n, text in enumerate(strange)]
    checked = pool.check(TASK, list(zip(problems, strange, strict=True)))
    assert [one.verdict.outcome for one in checked] == ["right"] * len(strange)


def test_a_long_reason_is_cut(pool: Pool):
    (checked,) = pool.check(TASK, asked(["say longwinded"]))
    assert checked.verdict.outcome == "wrong" and len(checked.verdict.reason) <= 2000


def test_workers_are_reused_and_know_no_torch(pool: Pool):
    pids = [checked.verdict.reason for checked in pool.check(TASK, asked(["pid"] * 200))]
    assert 1 <= len(set(pids)) <= 2 and str(os.getpid()) not in pids
    assert pool.check(TASK, asked(["torch"]))[0].verdict.reward == 0.0


def test_threads_share_a_pool(pool: Pool):
    results: dict[int, list[Any]] = {}

    def call(which: int) -> None:
        responses = [str(n) for n in range(150)]
        responses[which * 10] = "exit"
        results[which] = pool.check(TASK, asked(responses), PATIENT)

    threads = [threading.Thread(target=call, args=[which]) for which in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, checked in results.items():
        wrong = [n for n, one in enumerate(checked) if one.verdict.outcome != "right"]
        assert wrong == [which * 10] and checked[which * 10].verdict.outcome == "error"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_check_takes_its_children_along(tmp_path: Path, pool: Pool):
    checked = pool.check(TASK, asked([f"child {tmp_path / 'pids'}"]), Limits(seconds=2))
    assert "took longer" in checked[0].verdict.reason
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nobody_outlives_a_killed_parent(tmp_path: Path):
    """SIGKILL gives no chance to tidy up: template, idle worker and a check that hangs in C go by themselves."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from nasty import *\n"
        "from zifio.tasks.runtime import Pool\n"
        "pool, task, problem = Pool(2, READER), Nasty(), Nasty().problem('train', 0, 0)\n"
        "(one,) = pool.check(task, [(problem, 'pid')])\n"
        "sys.stdout.write(f'{pool._template._process.pid} {one.verdict.reason}\\n'); sys.stdout.flush()\n"
        "pool.check(task, [(problem, 'regex')] * 2, Limits(seconds=1000))\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        template, worker = map(int, parent.stdout.readline().split())
        time.sleep(0.3)
        with open(f"/proc/{template}/task/{template}/children") as listed:
            workers = {worker, *map(int, listed.read().split())}
        assert len(workers) >= 2 and all(map(alive, workers)) and alive(template)
        parent.kill()
    until = time.monotonic() + 5
    while any(map(alive, {template, *workers})) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, {template, *workers}))


def test_closing_ends_every_process_and_the_pool_can_be_used_again():
    pool = Pool(1, READER)
    pid = int(pool.check(TASK, asked(["pid"]))[0].verdict.reason)
    pool.close()
    assert not alive(pid)
    assert pool.check(TASK, asked(["0"]))[0].verdict.outcome == "right"
    pool.close()


def test_the_catalogs_tasks_give_the_same_verdicts_in_the_pool_and_here():
    task = ChainSum()
    problems = [task.problem("train", index, seed=1) for index in range(40)]
    answered = [
        (problem, task.document(problem, shows_working=index % 2 == 0)) for index, problem in enumerate(problems)
    ]
    answered += [(problem, response[:-12]) for problem, response in answered]
    answered.append((Problem("bad", problems[0].prompt, "1000"), ""))
    with Pool(2) as pool:
        there = [checked.verdict for checked in pool.check(task, answered)]
    assert there == judge_all(task, answered) and there[-1].outcome == "error"


BAD = ("spin", "regex", "exit", "crash", "eat", "bomb", "recurse", "nan", "none", "sleep 9")


def many(pool: Pool, n: int, limits: Limits) -> None:
    responses = [BAD[index // 20 % len(BAD)] if index % 20 == 7 else str(index) for index in range(n)]
    outcomes = [checked.verdict.outcome for checked in pool.check(TASK, asked(responses), limits)]
    assert outcomes == ["error" if index % 20 == 7 else "right" for index in range(n)]


def test_one_in_twenty_of_many_checks_breaks(pool: Pool):
    many(pool, 400, Limits(seconds=0.25, memory_mb=96))


@pytest.mark.slow
def test_five_hundred_of_ten_thousand_checks_break(pool: Pool):
    many(pool, 10_000, Limits(seconds=0.25, memory_mb=96))
