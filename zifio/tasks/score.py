"""Verdicts on anyone's outputs, a line each: `zifio score FILE.jsonl --verifier maths`.

A line of the input is a JSON object with the model's text as `response`, `output`, `prediction` or `completion`, and

- the right answer as `gold` or `answer`, checked by the verifier, or
- `task`, one of ours (a name or a table with its options), with `prompt` and `gold`, or with `problem`, an id.

A line of the output has `line` (its number in the input), `id` where the input has one, `verdict` (right, wrong,
error), `reward`, `parts`, `reason` and `seconds`. Every line of the input has one, in order; what cannot be read is an
error that says why. A run that was stopped goes on where it stopped.

Try it alone: `zifio score outputs.jsonl --verifier maths --out verdicts.jsonl`
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

from zifio.config import Config, ConfigError, build
from zifio.log import Finished, Progress, say
from zifio.tasks.catalog import read_task
from zifio.tasks.maths.verify import NEEDS, verify
from zifio.tasks.runtime import Checked, Checker, Limits, Pool
from zifio.tasks.task import Problem, Split, Verdict

READER = "zifio.tasks.score:read_checker"
RESPONSE, GOLD = ("response", "output", "prediction", "completion"), ("gold", "answer")
_AT_ONCE = 256  # lines between two writes
_ADDRESS = re.compile(r"[a-z_0-9]+/(train|held-out)/(\d{1,18})/(\d{1,18})")
_QUOTED = 80


class Maths(Config):
    """The verifier of mathematics as something that a pool of checkers can be given."""

    name: Literal["maths"] = "maths"
    """Which verifier this is."""
    ordered: bool = True
    """Whether a list without brackets has an order."""
    second_opinion: bool = False
    """Whether math-verify is asked too."""
    isolated: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = NEEDS
    limits: ClassVar[Limits] = Limits(seconds=10, memory_mb=1024)

    def score(self, problem: Problem, response: str) -> Verdict:
        """The verdict on a response to anything whose gold is known."""
        return verify(response, problem.gold, ordered=self.ordered, second_opinion=self.second_opinion)


class Scores(dict[str, Any]):
    """What `score` did: counts, share of right answers, seconds, the file written."""

    def __str__(self) -> str:
        counts = ", ".join(f"{self[outcome]} {outcome}" for outcome in ("right", "wrong", "error"))
        share = "" if self["accuracy"] is None else f", {100 * self['accuracy']:.1f} % of those checked"
        lines = [f"{self['lines']} lines: {counts}{share}; {self['out']}", *self["examples"]]
        return "\n".join(lines)


class _Line(NamedTuple):
    """One line of the input, read: what to check, or what is the matter with it."""

    number: int
    id: Any
    checker: str = ""
    """The config, as JSON, of what checks it."""
    problem: Problem | None = None
    response: str = ""
    fault: str = ""


def read_checker(data: dict[str, Any], where: str) -> Checker:
    """A task of the catalog, or a verifier, of its config."""
    if data.get("name") == "maths":
        return build(Maths, data, where)
    return read_task(data, where)


def score(
    path: Path,
    verifier: Literal["maths"] = "maths",
    out: Path | None = None,
    fresh: bool = False,
    unordered: bool = False,
    second_opinion: bool = False,
    as_json: bool = False,
) -> Finished:
    """Check every line of `path` and write a line for each to `out` (FILE.verdicts.jsonl beside it by default).

    The exit code is 1 where a line could not be checked.
    Raises ConfigError when the file cannot be read, or `out` belongs to another file or other options.
    """
    out = out or path.with_name(path.name.removesuffix(".jsonl") + ".verdicts.jsonl")
    if not path.is_file():
        raise ConfigError(f"{path}: wanted a file with a JSON object a line, came none. Check the path.")
    if out.resolve() == path.resolve():
        raise ConfigError(f"{out}: wanted a file of its own for the verdicts, came the input. Choose another --out.")
    checker = Maths(name=verifier, ordered=not unordered, second_opinion=second_opinion)
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    if not lines[-1]:
        lines.pop()
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _begun(out, _signature(whole, checker), fresh, len(lines))
    if done:
        say(f"{out}: {done} lines are there, going on behind them")
    with Pool(reader=READER) as pool, out.open("ab") as stream, Progress("score", len(lines), done) as progress:
        for start in range(done, len(lines), _AT_ONCE):
            numbered = enumerate(lines[start : start + _AT_ONCE], start + 1)
            read = [_read(number, line, checker) for number, line in numbered]
            written = [_record(line, checked) for line, checked in zip(read, _check(pool, read), strict=True)]
            stream.write(b"".join(json.dumps(record).encode() + b"\n" for record in written))
            stream.flush()
            progress.update(start + len(written), {})
    scores = _summary(out, len(lines))
    return Finished(int(scores["error"] > 0), scores)


def _signature_file(out: Path) -> Path:
    return out.with_name(out.name + ".from")


def _signature(whole: bytes, checker: Maths) -> str:
    """What the verdicts are of: the input's bytes and the options. Whoever goes on must mean the same."""
    return f"{hashlib.sha256(whole).hexdigest()[:16]} {checker.digest()}"


def _begun(out: Path, signature: str, fresh: bool, n_lines: int) -> int:
    """How many lines are already written; a torn last one is cut off. Starts anew where there is nothing, or `fresh`.

    Raises ConfigError when what is there came from another input or other options.
    """
    note = _signature_file(out)
    if fresh or not out.exists() or not out.stat().st_size:
        out.write_bytes(b"")
        note.write_text(signature + "\n")
        return 0
    if not note.exists() or note.read_text().strip() != signature:
        raise ConfigError(
            f"{out}: wanted verdicts of this very file and these options to go on with, came others. "
            "Choose another --out, or write over it with --fresh."
        )
    whole = out.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    done = min(kept.count(b"\n"), n_lines)
    if len(kept) < len(whole):
        os.truncate(out, len(kept))
    return done


def _read(number: int, raw: bytes, checker: Maths) -> _Line:
    """One line of the input; what is wrong with it goes into its fault."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        what = "an empty line" if not raw.strip() else f"{raw[:_QUOTED].decode(errors='replace')!r} ({error})"
        return _Line(number, None, fault=f"line {number}: wanted a JSON object, came {what}")
    if not isinstance(data, dict):
        return _Line(number, None, fault=f"line {number}: wanted a JSON object, came {str(data)[:_QUOTED]!r}")
    try:
        return _understood(number, data, checker)
    except ValueError as error:
        return _Line(number, data.get("id"), fault=f"line {number}: {error}")


def _understood(number: int, data: dict[str, Any], checker: Maths) -> _Line:
    response = _text(data, RESPONSE)
    if "task" not in data:
        id = data.get("id", f"line {number}")
        problem = Problem(str(id), str(data.get("prompt", "")), _text(data, GOLD))
        return _Line(number, data.get("id"), checker.model_dump_json(), problem, response)
    config = data["task"] if isinstance(data["task"], dict) else {"name": data["task"]}
    task = read_task(config, "task")
    address = _ADDRESS.fullmatch(str(data.get("problem", "")))
    if "prompt" in data:
        problem = Problem(str(data.get("problem", f"line {number}")), _text(data, ("prompt",)), _text(data, GOLD))
    elif address:
        problem = task.problem(cast(Split, address[1]), int(address[3]), int(address[2]))
    else:
        raise ValueError(
            f"wanted `prompt` and `gold`, or `problem` with an id such as {task.name}/train/0/7, came neither"
        )
    return _Line(number, data.get("id"), json.dumps(config), problem, response)


def _text(data: dict[str, Any], names: tuple[str, ...]) -> str:
    """The first of these that the line has, as text. Raises ValueError when there is none, or no text."""
    for name in names:
        if name in data:
            value = data[name]
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = repr(value)
            if not isinstance(value, str):
                raise ValueError(f"{name}: wanted a text, came {str(value)[:_QUOTED]!r}")
            return value
    raise ValueError(f"wanted one of {', '.join(names)}, came none of them")


def _check(pool: Pool, lines: list[_Line]) -> Iterator[Checked]:
    """The verdicts in order, those of one checker in one go."""
    results: dict[int, Checked] = {}
    for config in dict.fromkeys(line.checker for line in lines if not line.fault):
        mine = [line for line in lines if line.checker == config and not line.fault]
        task = read_checker(json.loads(config), "task")
        answered = [(cast(Problem, line.problem), line.response) for line in mine]
        for line, checked in zip(mine, pool.check(task, answered), strict=True):
            results[line.number] = checked
    for line in lines:
        yield results[line.number] if not line.fault else Checked(Verdict("error", 0.0, {}, line.fault), 0.0)


def _record(line: _Line, checked: Checked) -> dict[str, Any]:
    verdict = checked.verdict
    told = {"line": line.number, **({} if line.id is None else {"id": line.id}), "verdict": verdict.outcome}
    told |= {"reward": verdict.reward, "parts": verdict.parts, "reason": verdict.reason}
    return {**told, "seconds": round(checked.seconds, 6)}


def _summary(out: Path, n_lines: int) -> Scores:
    """Counted from what is written, so that a resumed run tells of all of it."""
    with out.open("rb") as stream:
        records = [json.loads(line) for line in stream]
    counts = Counter(record["verdict"] for record in records)
    checked = counts["right"] + counts["wrong"]
    examples = [record["reason"][:200] for record in records if record["verdict"] == "error"][:3]
    disagreements = sum("math-verify says" in record["reason"] for record in records)
    return Scores(
        lines=n_lines,
        **{outcome: counts[outcome] for outcome in ("right", "wrong", "error")},
        accuracy=counts["right"] / checked if checked else None,
        disagreements=disagreements,
        seconds=round(sum(record["seconds"] for record in records), 3),
        out=str(out),
        examples=examples,
    )
