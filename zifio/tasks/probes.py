"""Checks of a task's problems, without any reply: purity, duplicates, overlap of the splits, a gold that leaks.

Try it alone: `zifio screen splits`
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from zifio.config import Config, ConfigError
from zifio.tasks.attacks import Severity, same
from zifio.tasks.checking import config_of
from zifio.tasks.findings import Finding, Row, Screening, shown
from zifio.tasks.task import Problem, Split, Task, folded

_SPLITS: tuple[Split, ...] = ("train", "held-out")
_MOST_ROWS = 20_000
_AGAIN = 8  # problems of each split that are drawn again
_PACE, SLOW_DRAW_S = 4, 0.02
_LABEL = r"(?i:answer|solution|gold|result|key|label|target|truth)\W{0,4}(?i:is|was|:|=)?\W{0,4}"
_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?", re.ASCII)
_LEAK, _PART_LEAK, _LABELLED = 0.5, 0.25, 0.02  # shares of problems that a way of copying solves


def pace(task: Task, seed: int) -> float:
    """Seconds of work that drawing a problem to train on takes; 0 where there is none. Raises ConfigError."""
    n = min(_PACE, task.size("train")) if hasattr(task, "size") else _PACE  # type: ignore[attr-defined]
    start = time.process_time()
    for index in range(n):
        task.problem("train", index, seed)
    return (time.process_time() - start) / n if n else 0.0


def drawn(task: Task, n: int, seed: int, seconds: float) -> dict[Split, list[Problem]]:
    """Problems of both splits: of a finite set all there are; else four times `n` of each, or where one takes too many
    `seconds`, `n` to train on and a few held out, for a held-out problem takes sixteen draws.

    A split that the task lacks stays away. Raises ConfigError when it has none.
    """
    found: dict[Split, list[Problem]] = {}
    slow = seconds > SLOW_DRAW_S
    for split in _SPLITS:
        n_wanted = (n if split == "train" else max(1, n // 4)) if slow else 4 * n
        if hasattr(task, "size"):
            n_wanted = min(task.size(split), _MOST_ROWS)  # type: ignore[attr-defined]
        try:
            those = [task.problem(split, index, seed) for index in range(n_wanted)]
        except ConfigError:
            if split == "held-out" and "train" not in found:
                raise
            continue
        if those:
            found[split] = those
    return found


def probe(
    screening: Screening, task: Task, problems: dict[Split, list[Problem]], elsewhere: "Elsewhere | None"
) -> None:
    """Put into the screening what the problems themselves show. `elsewhere`: where to draw some again."""
    _quick(screening)
    _pure(screening, task, problems, elsewhere)
    _duplicates(screening, problems)
    _overlap(screening, task, problems)
    everyone = [problem for split in problems.values() for problem in split]
    _leak(screening, everyone)
    missing = [split for split in _SPLITS if split not in problems]
    if missing:
        cure = "Give a file with train problems before training on it." if missing == ["train"] else "Give a test file."
        severity: Severity = "low" if missing == ["train"] else "medium"
        screening.findings.append(Finding(severity, "splits", f"it has no {missing[0]} split", cure))
    screening.rows.append(Row("splits", "problems to train on, and others that are held out", len(everyone)))


def _quick(screening: Screening) -> None:
    screening.rows.append(Row("drawing", "a problem takes little time to draw", 1))
    seconds = screening.measured["seconds a problem"]
    if seconds > SLOW_DRAW_S:
        what = f"a problem takes {seconds:.2g} s to draw, a held-out one sixteen times as long"
        cure = "Expect evaluation to wait for it, or choose smaller problems."
        screening.findings.append(Finding("low", "drawing", what, cure))


def _pure(
    screening: Screening, task: Task, problems: dict[Split, list[Problem]], elsewhere: "Elsewhere | None"
) -> None:
    addresses: list[tuple[Split, int]] = []
    for split in _SPLITS:
        n_again = _AGAIN if screening.measured["seconds a problem"] <= SLOW_DRAW_S else 2
        for index in range(min(len(problems.get(split, ())), n_again)):
            addresses.insert(0, (split, index))
    again = [(task.problem(split, index, screening.seed), problems[split][index]) for split, index in addresses]
    cure = "Draw only from the stream of the address; sort what a set holds."
    rows = Row("purity", "the same address gives the same problem, in any order and process", len(again))
    screening.rows.append(rows)
    changed = next((old for new, old in again if new != old), None)
    if changed is not None:
        what = "a problem is another one when it is drawn again"
        screening.findings.append(Finding("high", "purity", what, cure, shown(changed)))
    elif elsewhere is not None and isinstance(task, Config):
        other = elsewhere.draw(task, addresses, screening.seed)
        there = [old for (_, old), new in zip(again, other, strict=True) if [old.prompt, old.gold] != new]
        if there:
            what = f"{len(there)} of {len(again)} problems are others in another process"
            screening.findings.append(Finding("high", "purity", what, cure, shown(there[0])))


class Elsewhere:
    """Another process, which orders its sets in another way, to draw problems in. It starts when first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def draw(self, task: Task, addresses: Sequence[tuple[Split, int]], seed: int) -> list[list[str]]:
        """[prompt, gold] of these addresses. Raises RuntimeError when the process fails."""
        if self._process is None:
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            environment = {**os.environ, "PYTHONHASHSEED": "4321", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
            command = [sys.executable, "-P", "-m", "zifio.tasks.probes"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": config_of(task), "addresses": addresses, "seed": seed}) + "\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline()
        if not told:
            raise RuntimeError(f"the problems of {task!r} cannot be drawn in another process")
        return json.loads(told)


def answer_elsewhere() -> None:
    """The other side of `Elsewhere`."""
    from zifio.tasks.screen import read_screened

    for line in sys.stdin:
        asked = json.loads(line)
        task = read_screened(asked["task"], "task")
        found = [task.problem(split, index, asked["seed"]) for split, index in asked["addresses"]]
        sys.stdout.write(json.dumps([[problem.prompt, problem.gold] for problem in found]) + "\n")
        sys.stdout.flush()


def _duplicates(screening: Screening, problems: dict[Split, list[Problem]]) -> None:
    for split, those in problems.items():
        n_each = Counter(_asked(problem) for problem in those)
        twice = len(those) - len(n_each)
        share = twice / len(those) if those else 0.0
        check = f"duplicates, {split}"
        screening.rows.append(Row(check, "the same problem twice, but for case and spaces", len(those)))
        golds: dict[str, str] = {}
        for problem in those if not screening.measured["many"] else ():
            first = golds.setdefault(_asked(problem), problem.gold)
            if not same(first, problem.gold):
                what = f"one problem has two answers: {first[:40]!r} and {problem.gold[:40]!r}"
                cure = "Keep the right one; the other is a wrong reward."
                screening.findings.append(Finding("medium", check, what, cure, shown(problem)))
                break
        if twice:
            severity: Severity = "medium" if share > 0.1 else "low"
            often = next(problem for problem in those if n_each[_asked(problem)] > 1)
            what = f"{twice} of {len(those)} problems are repeats ({share:.1%})"
            cure = "Allow longer or more varied problems, or remove the copies: they count more than once."
            screening.findings.append(Finding(severity, check, what, cure, shown(often)))


def _asked(problem: Problem) -> str:
    """What is asked but for case and spaces: the words, and the pictures as they are."""
    return "\n".join([folded(problem.prompt), *problem.pictures])


def _overlap(screening: Screening, task: Task, problems: dict[Split, list[Problem]]) -> None:
    train = {_asked(problem): problem.prompt for problem in problems.get("train", [])}
    held_out = problems.get("held-out", [])
    both = [problem for problem in held_out if _asked(problem) in train]
    screening.rows.append(Row("overlap", "held-out problems that are trained on", len(held_out)))
    very = [problem for problem in both if train[_asked(problem)] == problem.prompt]
    cure = "Remove them from the train file: what is held out must not be seen."
    if both:
        severity: Severity = "high" if very else "medium"
        what = f"{len(both)} held-out problems are train problems, too"
        what += "" if very else " but for case and spaces"
        screening.findings.append(Finding(severity, "overlap", what, cure, shown((very or both)[0])))
    left_out = task.left_out() if hasattr(task, "left_out") else 0  # type: ignore[attr-defined]
    if left_out:
        what = f"{left_out} rows of the train file are held-out problems; they are not used"
        screening.findings.append(Finding("low", "overlap", what, cure))


def _leak(screening: Screening, problems: Sequence[Problem]) -> None:
    """Ways of copying an answer out of the prompt, and the share of problems that each of them solves."""
    n = len(problems)
    screening.rows.append(Row("leak", "the gold at a fixed place of the prompt, or behind a word like `answer`", n))
    asks = _shared_end([problem.prompt for problem in problems])
    solved: Counter[str] = Counter()
    example: dict[str, Problem] = {}
    for problem in problems:
        question = problem.prompt[: len(problem.prompt) - asks] if asks < len(problem.prompt) else problem.prompt
        ways = [way for way, text in _copies(question).items() if text and same(text, problem.gold)]
        if 0 < len(problem.gold) < 200 and re.search(rf"{_LABEL}{re.escape(problem.gold)}(?!\w)", question):
            ways.insert(0, "behind a label")
        for way in ways:
            solved[way] += 1
            example.setdefault(way, problem)
    luck = Counter(problem.gold for problem in problems).most_common(1)[0][1] / n
    cure = "Take the answer out of the prompt."
    for way, count in solved.most_common():
        share = count / n
        least = (_LABELLED, _LABELLED) if way == "behind a label" else (_LEAK, _PART_LEAK)
        if count < 3 or share - (0.0 if way == "behind a label" else luck) < least[1]:
            continue
        severity: Severity = "high" if share >= least[0] else "medium"
        what = f"{way}, the prompt gives the answer of {count} of {n} problems"
        screening.findings.append(Finding(severity, "leak", what, cure, shown(example[way])))
        return  # one way that leaks is enough


def _copies(question: str) -> dict[str, str]:
    """The texts that a fixed way of copying takes from a question."""
    found: dict[str, str] = {}
    marks = {"brackets": r"\(([^()]*)\)", "square brackets": r"\[([^][]*)\]", "braces": r"\{([^{}]*)\}"}
    marks |= {"quotes": r'"([^"]*)"', "a comment": r"<!--(.*?)-->", "backquotes": r"`([^`]*)`"}
    for name, pattern in marks.items():
        inside = re.findall(pattern, question)
        if inside:
            found[f"in its last {name}"] = inside[-1].strip()
    lines = [line.strip() for line in question.strip().splitlines() if line.strip()] or [""]
    words = question.split() or [""]
    numbers = _NUMBER.findall(question)
    for number, place in enumerate(("first", "second", "third")):
        if number < len(numbers):
            found[f"as its {place} number"] = numbers[number]
            found[f"as its {place} number from the end"] = numbers[-1 - number]
        if number < len(lines):
            found[f"as its {place} line"] = lines[number]
            found[f"as its {place} line from the end"] = lines[-1 - number]
    found |= {"as its first word": words[0].strip(".,:;!?()"), "as its last word": words[-1].strip(".,:;!?()")}
    found["behind the last colon"] = question.rpartition(":")[2].strip()
    found["behind the last ="] = question.rpartition("=")[2].strip(" ?.\n")
    return found


def _shared_end(prompts: Sequence[str]) -> int:
    """How many characters at the end all prompts share, in whole lines: how to answer, not the question."""
    lines = [prompt.split("\n")[::-1] for prompt in prompts]
    if len(lines) < 2:
        return 0
    shared = takewhile(lambda those: len(set(those)) == 1, zip(*lines, strict=False))
    return sum(len(those[0]) + 1 for those in shared)


if __name__ == "__main__":
    answer_elsewhere()
