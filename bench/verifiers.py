"""How often the verifier of mathematics errs: false accepts and false rejects where the truth is known.

Every gold of the given files is rewritten truly and falsely (`bench/rewriting.py`), each form is put into a response,
and the verifier judges it in the pool. math-verify judges a share of the same answers, each in a \\boxed. With
`--solutions`, also a file of model solutions with marks. The table in docs/verifiers.md is what this writes.

Try it alone: `python -m bench.verifiers GSM8K/test.jsonl MATH-500.jsonl --write docs/verifiers.md`
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from bench.rewriting import WRAPPERS, Form, kind_of, near_misses, rewritings
from zifio.config import Config, build
from zifio.log import Progress, say
from zifio.tasks.maths.verify import gold_answer
from zifio.tasks.runtime import Checker, Limits, Pool
from zifio.tasks.score import Maths
from zifio.tasks.task import Problem, Verdict

READER = "bench.verifiers:read"
BEGIN, END = "<!-- rates: written by bench/verifiers.py -->", "<!-- end of rates -->"
_AT_ONCE = 2000


class MathVerify(Config):
    """math-verify by its own two calls, its time limits off: the pool has its own."""

    name: Literal["math-verify"] = "math-verify"
    isolated: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("math_verify",)
    limits: ClassVar[Limits] = Limits(seconds=10, memory_mb=1024)

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when math-verify says so."""
        from math_verify import parse, verify

        logging.disable(logging.CRITICAL)
        gold = parse(f"\\boxed{{{problem.gold}}}", parsing_timeout=None)
        right = verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None)
        return Verdict("right" if right else "wrong", float(right))


class Case(NamedTuple):
    """One response and whether it is right."""

    data: str
    kind: str
    truth: bool
    form: Form
    problem: Problem
    response: str


def read(data: dict[str, Any], where: str) -> Checker:
    """A verifier of its config."""
    return build({"maths": Maths, "math-verify": MathVerify}[data["name"]], data, where)


def main(argv: list[str] | None = None) -> int:
    """Measure, write the table; 0 comes back."""
    parser = argparse.ArgumentParser(prog="python -m bench.verifiers", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines with `answer`: GSM8K's or MATH's")
    parser.add_argument("--solutions", type=Path, help="GSM8K's example_model_solutions.jsonl")
    parser.add_argument("--every", type=int, default=1, help="use every so many-th problem (default: all)")
    parser.add_argument("--peer-every", type=int, default=10, help="math-verify judges every so many-th (default: 10)")
    parser.add_argument("--write", type=Path, help="put the table into this file, between its marks")
    parser.add_argument("--show", type=int, default=20, help="tell so many of the errors (default: 20)")
    asked = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    start = time.monotonic()
    cases = [case for file in asked.files for case in cases_of(file, asked.every)]
    say(f"{len(cases)} responses made in {time.monotonic() - start:.0f} s")
    with Pool(reader=READER) as pool:
        ours = judged(pool, Maths(), cases)
        share = [case._replace(response=f"\\boxed{{{case.form.text}}}") for case in cases[:: asked.peer_every]]
        theirs = judged(pool, MathVerify(), share)
        solved = solutions(pool, asked.solutions) if asked.solutions else ""
    tell_errors(cases, ours, asked.show)
    how = command(sys.argv[1:] if argv is None else argv)
    text = "\n".join(["", table(cases, ours, share, theirs), "", solved, "", how, ""])
    sys.stdout.write(text)
    if asked.write:
        write_between(asked.write, text)
    return 0


def cases_of(file: Path, every: int) -> Iterator[Case]:
    """Every form of every gold, in responses of five shapes in turn."""
    name = file.parent.name if file.stem == "test" else file.stem
    with file.open() as lines:
        golds = [json.loads(line)["answer"] for line in lines]
    for number, gold in enumerate(golds[::every]):
        answer = gold_answer(gold)
        for truth, forms in ((True, rewritings(answer)), (False, near_misses(answer))):
            for place, form in enumerate(forms):
                response = WRAPPERS[(number + place) % len(WRAPPERS)](form.text)
                problem = Problem(f"{name}/{number}", "", answer)
                yield Case(name, kind_of(answer), truth, form, problem, response)


def judged(pool: Pool, checker: Checker, cases: list[Case]) -> list[Verdict]:
    """The checker's verdicts, in order."""
    verdicts: list[Verdict] = []
    with Progress(checker.name, len(cases)) as progress:
        for start in range(0, len(cases), _AT_ONCE):
            some = [(case.problem, case.response) for case in cases[start : start + _AT_ONCE]]
            verdicts += [checked.verdict for checked in pool.check(checker, some)]
            progress.update(len(verdicts), {})
    return verdicts


def table(cases: list[Case], ours: list[Verdict], share: list[Case], theirs: list[Verdict]) -> str:
    """Markdown: a row for each verifier, data set and kind of gold."""
    lines = [
        "| verifier | data | golds | true rewritings | accepted | false rejects | near misses | false accepts "
        "| at most | broken |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, some, verdicts in (("zifio", cases, ours), ("math-verify", share, theirs)):
        groups: dict[tuple[str, str], list[tuple[Case, Verdict]]] = defaultdict(list)
        for case, verdict in zip(some, verdicts, strict=True):
            groups[case.data, case.kind].append((case, verdict))
        lines += [row(name, data, kind, pairs) for (data, kind), pairs in sorted(groups.items())]
    return "\n".join(lines)


def row(name: str, data: str, kind: str, pairs: list[tuple[Case, Verdict]]) -> str:
    """One row; "at most" is the upper end of the 95 % Wilson interval of the rate of false accepts."""
    true = [verdict for case, verdict in pairs if case.truth]
    false = [verdict for case, verdict in pairs if not case.truth]
    right = sum(verdict.outcome == "right" for verdict in true)
    accepted = sum(verdict.outcome == "right" for verdict in false)
    golds = len({case.problem.id for case, _ in pairs})
    broken = sum(verdict.outcome == "error" for verdict in true + false)
    return (
        f"| {name} | {data}, {kind}s | {golds:,} | {len(true):,} | {100 * right / max(1, len(true)):.2f} % "
        f"| {len(true) - right:,} | {len(false):,} | {accepted:,} ({100 * accepted / max(1, len(false)):.2f} %) "
        f"| {100 * upper(accepted, len(false)):.3f} % | {broken:,} |"
    )


def upper(hits: int, n: int, z: float = 1.959964) -> float:
    """The upper end of Wilson's interval."""
    if not n:
        return 1.0
    middle = hits / n + z * z / (2 * n)
    return (middle + z * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def solutions(pool: Pool, file: Path) -> str:
    """Four models' solutions to GSM8K, marked right or wrong: how often the verifier agrees with the mark."""
    marked = []
    with file.open() as lines:
        for number, line in enumerate(lines):
            data = json.loads(line)
            gold = data["ground_truth"].rpartition("A:")[2].strip()
            for model, said in data.items():
                if isinstance(said, dict):
                    marked.append((Problem(f"{number}/{model}", "", gold), said["solution"], said["is_correct"]))
    checked = pool.check(Maths(), [(problem, response) for problem, response, _ in marked])
    tally = Counter((mark, one.verdict.outcome) for (_, _, mark), one in zip(marked, checked, strict=True))
    agreed = tally[True, "right"] + tally[False, "wrong"]
    return (
        f"Real outputs: of {len(marked):,} solutions by four models to GSM8K's test problems, published with "
        f"marks, the verdict agrees with the mark on {agreed:,}: {tally[True, 'right']:,} right, "
        f"{tally[False, 'wrong']:,} wrong; "
        f"marked right and not accepted: {tally[True, 'wrong']}; marked wrong and accepted: {tally[False, 'right']}."
    )


def command(argv: list[str]) -> str:
    """How to get the same again, folders left out."""
    words = " ".join(Path(word).name if "/" in word and not word.startswith("docs/") else word for word in argv)
    return f"Measured {datetime.now(UTC):%Y-%m-%d} by `python -m bench.verifiers {words}`."


def tell_errors(cases: list[Case], verdicts: list[Verdict], most: int) -> None:
    """Say some of what went wrong, so that it can be mended."""
    bad = [pair for pair in zip(cases, verdicts, strict=True) if (pair[1].outcome == "right") != pair[0].truth]
    bad = [pair for pair in bad if pair[0].truth or pair[1].outcome != "wrong"]
    for case, verdict in bad[:most]:
        what = "false accept" if verdict.outcome == "right" else f"false reject ({verdict.reason[:120]})"
        say(f"{case.problem.id} gold {case.problem.gold!r}, {case.form.how}: {case.response[-100:]!r}: {what}")


def write_between(file: Path, text: str) -> None:
    """Replace what stands between the marks."""
    whole = file.read_text()
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(whole):
        raise SystemExit(f"{file}: wanted the marks {BEGIN} and {END}, came none. Put them where the table goes.")
    file.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", whole))


if __name__ == "__main__":
    sys.exit(main())
