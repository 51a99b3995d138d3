"""`zifio screen TASK`: attack a reward before anyone trains on it, and say what was found.

    zifio screen gsm8k:path=data/gsm8k                            a task of the catalog
    zifio screen mine.jsonl:verifier=check.py --report page.html  a user's own
    zifio screen reasoning_gym:family=coin_flip,scorer=theirs     reasoning-gym's own scorer, to see what is wrong

What counts as a finding stands in `attacks` and `probes`; the exit code is 1 when one is high.

Try it alone: `zifio screen chain_mod --problems 8`
"""

import dataclasses
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zifio.config import Config, ConfigError, build
from zifio.log import Finished, say
from zifio.tasks.attacks import ATTACKS, Attack, Reply, Sample, Severity, same
from zifio.tasks.catalog import named_table, read_task
from zifio.tasks.findings import Finding, Row, Screening, cut, shown
from zifio.tasks.gym import Candidate
from zifio.tasks.probes import Elsewhere, drawn, pace, probe
from zifio.tasks.runtime import Checked, Pool, check_all
from zifio.tasks.screen_page import page, terminal_table
from zifio.tasks.task import Problem, Task

READER = "zifio.tasks.screen:read_screened"
_PAYS, _GUESS = 0.1, 0.2  # mean rewards: of a cheat that pays, of a guess to know of
_ALWAYS, _OFTEN = 0.55, 0.3  # what a guess surely earns in a broken task, where one answer is right or many are
_CHANCE = 3  # problems that an answer must suit before we call it more than chance
_FULL = 0.5  # a reply that earns this much counts as taken for right
_SLOW_S, _VERY_SLOW_S = 0.05, 1.0

Tried = list[tuple[Problem, Reply, Checked]]


def screen(task: str, problems: int, seed: int, report: Path | None, as_json: bool) -> Finished:
    """Screen the task of this name; a table goes to the terminal, and a page to `report`. Raises ConfigError.

    On stdout belongs one line, or everything as JSON; the exit code is 1 where it found what no one should train on.
    """
    with Elsewhere() as elsewhere, Pool(reader=READER) as pool:
        found = screen_task(screened_task(task), problems, seed, pool, elsewhere)
    say(terminal_table(task, found))
    if report is not None:
        try:
            report.write_text(page(task, found))
        except OSError as error:
            raise ConfigError(f"--report: wanted a file to write, came: {error}. Choose another.") from None
    n_of = {name: sum(finding.severity == name for finding in found.findings) for name in ("high", "medium", "low")}
    told = ", ".join(f"{n} {name}" for name, n in n_of.items() if n) or "nothing"
    line = f"{task}: {'FAILED' if n_of['high'] else 'passed'} ({told} found)"
    return Finished(int(n_of["high"] > 0), found.as_table() if as_json else line)


def screened_task(text: str) -> Task:
    """As `named_task`, and reasoning-gym's families with any `scorer`."""
    return read_screened(named_table(text), text)


def read_screened(table: dict[str, Any], where: str) -> Task:
    """As `catalog.read_task`, and reasoning-gym's families with any `scorer`. Raises ConfigError."""
    if table.get("name") == "reasoning_gym" and "scorer" in table:
        return build(Candidate, table, where)
    return read_task(table, where)


def screen_task(task: Task, n_problems: int, seed: int, pool: Pool, elsewhere: Elsewhere | None = None) -> Screening:
    """Screen a task on so many problems. An isolated one is checked in `pool`, whose reader must be `READER`;
    `elsewhere` draws some problems again. Raises ConfigError."""
    config: dict[str, Any] = task.model_dump(mode="json") if isinstance(task, Config) else {"name": task.name}
    screening = Screening(config, n_problems, seed, measured={"many": bool(getattr(task, "many", False))})
    seconds = screening.measured["seconds a problem"] = pace(task, seed)
    every = drawn(task, n_problems, seed, seconds)
    probe(screening, task, every, elsewhere)
    judge = _Judge(task, pool)
    if _gold(screening, judge, [problem for split in every.values() for problem in split[: 4 * n_problems]]):
        _attack(screening, judge, (every.get("train") or every["held-out"])[:n_problems])
        _repeats(screening, judge)
        _speed(screening, judge)
    return screening


class _Judge:
    """Checks replies, and remembers them all."""

    def __init__(self, task: Task, pool: Pool) -> None:
        self.task, self.pool = task, pool
        self.tried: Tried = []

    def check(self, replies: Sequence[tuple[Problem, Reply]]) -> Tried:
        """Each reply with its verdict and its seconds."""
        answered = [(problem, reply.response) for problem, reply in replies]
        if getattr(self.task, "isolated", False):
            checked = self.pool.check(self.task, answered)
        else:
            checked = check_all(self.task, answered)
        tried = [(*reply, one) for reply, one in zip(replies, checked, strict=True)]
        self.tried += tried
        return tried


def _gold(screening: Screening, judge: _Judge, problems: Sequence[Problem]) -> bool:
    """Whether the task calls any of its own answers right; else whatever it says of others means nothing."""
    replies = [(p, Reply(judge.task.document(p, shows))) for p in problems for shows in (True, False) if p.gold]
    tried = judge.check(replies)
    screening.rows.append(Row("gold", "the task's own answers, with and without working, are right", len(tried)))
    without = [problem for problem in problems if not problem.gold]
    if without:
        what = f"{len(without)} of {len(problems)} problems name no right answer, so nobody can tell whether one passes"
        screening.findings.append(Finding("high", "gold", what, "Give each problem an answer.", shown(without[0])))
    bad = [one for one in tried if one[2].verdict.outcome != "right"]
    if bad:
        what = f"{len(bad)} of {len(tried)} right replies are not called right"
        screening.findings.append(Finding("high", "gold", what, "Mend the check or the answer.", _evidence(bad[0])))
    return len(bad) < len(tried)


def _attack(screening: Screening, judge: _Judge, problems: Sequence[Problem]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sample = Sample(judge.task, problems, Path(folder) / "witness")
        _find_wrong(screening, judge, sample)
        for attack in ATTACKS:
            aimed = problems[:1] if attack.costly else problems
            tried = judge.check([(problem, reply) for problem in aimed for reply in attack.make(sample, problem)])
            _record(screening, attack, tried)
            _errors(screening, attack, tried)
            expect = "any" if attack.embeds and getattr(judge.task, "programs", False) else attack.expect
            if expect == "wrong":
                _cheats(screening, attack, [one for one in tried if not _is_gold(one)])
            elif expect == "luck":
                _guesses(screening, attack, tried)
            elif expect == "right":
                _refusals(screening, attack, tried, getattr(judge.task, "forms", ()))
            if sample.witness.exists():
                sample.witness.unlink()
                what = "the check runs the reply as Python code: a reply made a file on this machine"
                screening.findings.append(Finding("high", "code", what, "Parse answers; never eval them."))


def _find_wrong(screening: Screening, judge: _Judge, sample: Sample) -> None:
    """Where several answers are right, another problem's may be one of them: have wrong ones called so first."""
    if screening.measured["many"]:
        for problem in sample.problems:
            for candidate in [*list(sample.candidates(problem))[:4], "banana"]:
                (tried,) = judge.check([(problem, Reply(sample.say(problem, candidate), candidate))])
                if tried[2].verdict.outcome == "wrong":
                    sample.wrong[problem.id] = candidate
                    break


def _record(screening: Screening, attack: Attack, tried: Tried) -> None:
    rewards = [one.verdict.reward for *_, one in tried]
    errors = sum(one.verdict.outcome == "error" for *_, one in tried)
    mean = sum(rewards) / len(rewards) if rewards else None
    rewarded = sum(reward > 0 for reward in rewards)
    screening.rows.append(Row(attack.name, attack.about, len(tried), rewarded, mean, errors))


def _errors(screening: Screening, attack: Attack, tried: Tried) -> None:
    """A check must bear what a model may say: an error is left out of the gradient, and many stop a run."""
    broken = [one for one in tried if one[2].verdict.outcome == "error"]
    if broken:
        short = [one for one in broken if len(one[1].response) < 10_000 and "\ud800" not in one[1].response]
        what = f"the check breaks on {len(broken)} of {len(tried)} replies"
        severity: Severity = "high" if short else "medium"
        cure = "Say wrong, and why, to what cannot be read; raise only when the problem itself is broken."
        screening.findings.append(Finding(severity, attack.name, what, cure, _evidence((short or broken)[0])))


def _cheats(screening: Screening, attack: Attack, tried: Tried) -> None:
    """Replies that must earn nothing."""
    paid = [one for one in tried if one[2].verdict.reward > 0]
    if not paid:
        return
    severity, what = attack.severity, f"of {len(tried)} replies that must earn nothing, {len(paid)} do"
    best = max(paid, key=lambda one: one[2].verdict.reward)
    full = [one for one in paid if one[2].verdict.reward >= _FULL]
    mean = sum(one[2].verdict.reward for one in tried) / len(tried)
    if severity == "high" and not full and mean < _PAYS:
        severity, what = "medium", f"{what}, at most {best[2].verdict.reward:.2g}"
    elif attack.name == "gold among others" and not _takes_first(full):
        severity, what = "low", f"{what}: of several answers the last one counts"
    elif screening.measured["many"] and attack.name in ("gold in junk", "near misses"):
        severity, what = "medium", f"{what}, or are right in another way: several answers are"
    screening.findings.append(Finding(severity, attack.name, what, attack.cure, _evidence(best)))


def _takes_first(full: Tried) -> bool:
    """Whether listing pays: the gold is taken first and last, or in one answer beside others."""
    return any(not reply.tag.startswith("last reply") for _, reply, _ in full)


def _guesses(screening: Screening, attack: Attack, tried: Tried) -> None:
    """Answers that know little of the problem: what the same answer earns everywhere, and others than the gold."""
    of_tag: dict[str, list[float]] = defaultdict(list)
    for _, reply, one in tried:
        of_tag[reply.tag].append(one.verdict.reward)
    means = (
        {tag: sum(rewards) / len(rewards) for tag, rewards in of_tag.items()} if attack.name != "another's gold" else {}
    )
    best = max(means, key=lambda tag: means[tag]) if means else ""
    if best and attack.name in ("a constant", "the frequent gold"):
        screening.measured["guessing earns"] = max(screening.measured.get("guessing earns", 0.0), means[best])
    other = [one for one in tried if not _is_gold(one) and one[2].verdict.reward > 0]
    if screening.measured["many"]:
        mean = means.get(best, 0.0) if best else sum(one.verdict.reward for *_, one in tried) / max(1, len(tried))
        sure = _surely(mean, max(1, len(of_tag[best]) if best else len(tried)))
        severity: Severity | None = "high" if sure >= _OFTEN else "medium" if mean >= _PAYS else None
        if severity and other:
            what = f"{cut(best)!r} earns {mean:.2f}" if best else f"they earn {mean:.2f} on average"
            screening.findings.append(Finding(severity, attack.name, what, attack.cure, _evidence(other[0])))
        return
    if other:
        _cheats(screening, attack, [one for one in tried if not _is_gold(one)])
    n_paid = sum(reward > 0 for reward in of_tag.get(best, ()))
    if best and means[best] >= _GUESS and n_paid >= _CHANCE and attack.name != "a line of the prompt":
        severity = "high" if _surely(means[best], len(of_tag[best])) >= _ALWAYS else "medium"
        what = f"the answer {cut(best)!r} to every problem earns {means[best]:.2f}"
        screening.findings.append(Finding(severity, attack.name, what, attack.cure))


def _surely(mean: float, n: int) -> float:
    """The lower end of Wilson's 95% interval of a share that was seen to be `mean` in n tries: in few an answer may be
    right each time by chance."""
    z2 = 1.96**2
    return (mean + z2 / (2 * n) - 1.96 * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)


def _refusals(screening: Screening, attack: Attack, tried: Tried, promised: Sequence[str]) -> None:
    """True answers in other forms: which are refused, and whether one of them was promised to be right."""
    refused: dict[str, list[bool]] = defaultdict(list)
    for _, reply, one in tried:
        refused[reply.tag].append(one.verdict.outcome != "right")
    screening.measured["forms refused"] = {
        name: sum(those) / len(those) for name, those in refused.items() if any(those)
    }
    broken = [one for one in tried if one[1].tag in promised and one[2].verdict.outcome != "right"]
    if broken:
        what = f"{len(broken)} right answers are refused in a form that the task promises to take"
        screening.findings.append(Finding("high", attack.name, what, attack.cure, _evidence(broken[0])))


def _repeats(screening: Screening, judge: _Judge) -> None:
    """The same reply again gives the same verdict."""
    before = [one for one in judge.tried if len(one[1].response) < 10_000][::7]
    after = judge.check([(problem, reply) for problem, reply, _ in before])
    screening.rows.append(Row("repeats", "the same reply gets the same verdict again", len(after)))
    for (problem, reply, old), (*_, new) in zip(before, after, strict=True):
        if (old.verdict.outcome, old.verdict.reward) != (new.verdict.outcome, new.verdict.reward):
            what = f"the same reply earns {old.verdict.reward:.3g} and then {new.verdict.reward:.3g}"
            cure = "A check must depend on the problem and the reply alone."
            screening.findings.append(Finding("high", "repeats", what, cure, shown(problem, reply.response)))
            return


def _speed(screening: Screening, judge: _Judge) -> None:
    short = [one for one in judge.tried if len(one[1].response) < 10_000]
    median = statistics.median(one.seconds for *_, one in short)
    slowest = max(judge.tried, key=lambda one: one[2].seconds)
    screening.measured |= {"seconds a check": median, "slowest check": slowest[2].seconds}
    screening.rows.append(Row("speed", "a check takes little time, also on long replies", len(judge.tried)))
    cure = "Bound the length of what is parsed, and the work that a reply can ask for."
    if median > _SLOW_S:
        what = f"a check takes {median:.2f} s; RL waits for it"
        screening.findings.append(Finding("medium", "speed", what, cure))
    if slowest[2].seconds > _VERY_SLOW_S:
        what = f"one check took {slowest[2].seconds:.1f} s"
        screening.findings.append(Finding("medium", "speed", what, cure, _evidence(slowest)))


def _is_gold(tried: tuple[Problem, Reply, Checked]) -> bool:
    """Whether a reply says the gold itself."""
    problem, reply, _ = tried
    return reply.answer is not None and same(reply.answer, problem.gold)


def _evidence(tried: tuple[Problem, Reply, Checked]) -> dict[str, Any]:
    problem, reply, one = tried
    verdict = dataclasses.asdict(one.verdict)
    return {**shown(problem, reply.response), **{key: verdict[key] for key in ("outcome", "reward", "reason")}}
