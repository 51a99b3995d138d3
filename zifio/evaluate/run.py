"""Measuring models on held-out problems: the same problems, the same random numbers, the task's own verdict.

A check that broke is neither right nor wrong: it leaves every denominator and is counted apart. What a model said is
kept word for word in `records-MODEL.jsonl`, the figures in `results.json`.

Run alone: `zifio eval recipes/quickstart.toml --json`
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zifio.checkpoint import model_digest
from zifio.config import Sampling
from zifio.data.sources import read_jsonl, write_jsonl
from zifio.data.template import ChatTokenizer
from zifio.engine.policy import LocalPolicy, load_policy, sampling_flops
from zifio.engine.scorer import Scorer, load_scorer
from zifio.evaluate.config import CHUNK, EvalStage
from zifio.evaluate.diversity import diversity, of_drawings
from zifio.evaluate.methods import use_of_tools
from zifio.evaluate.rerank import rerank_by_each
from zifio.log import Progress, RunFolder, peak_rss_bytes
from zifio.models.count import parameters
from zifio.models.decoder import Decoder
from zifio.models.device import Precision, sampling_precision
from zifio.record.stage import write_whole
from zifio.stats import mean, paired_difference, pass_at_k, share_interval
from zifio.tasks.catalog import make_task
from zifio.tasks.episode import Episode, Policy, play, record
from zifio.tasks.form import split_thinking
from zifio.tasks.task import Problem, Task

_KEPT = 3  # problems of a look whose first reply is kept


def evaluate(
    policy: Policy, task: Task, problems: Sequence[Problem], n: int, sampling: Sampling, seed: int, *names: int | str
) -> list[list[Episode]]:
    """n judged replies to each problem. Equal names give every policy the same random numbers."""
    return play(policy, task, problems, n, sampling, seed, *names, "evaluate")


def summarise(episodes_P_G: list[list[Episode]], ks: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """The figures of one model: shares are means over problems, with 95% intervals from resampling problems.

    What cannot be computed is absent: a problem whose every check broke, pass@k of fewer than k checked replies.
    """
    counted_P = [[e for e in group if e.verdict.outcome != "error"] for group in episodes_P_G]
    counted = [episode for group in counted_P for episode in group]
    n_samples = sum(map(len, episodes_P_G))
    out: dict[str, Any] = {
        "n_problems": len(episodes_P_G),
        "n_samples": n_samples,
        "n_errors": n_samples - len(counted),
    }
    if not counted:
        return out
    rates = [(k, _pass_rates(counted_P, k)) for k in sorted({1, *ks})]
    intervals = {k: share_interval(rate_P, seed, "pass", k) for k, rate_P in rates if rate_P}
    shares = {k: mean(rate_P) for k, rate_P in rates if rate_P}
    out |= {
        "pass_at_1": shares[1],
        "pass_at_1_interval": list(intervals[1]),
        "pass_at_k": {str(k): shares[k] for k in ks if k in shares},
        "pass_at_k_interval": {str(k): list(intervals[k]) for k in ks if k in shares},
        "process_pass_at_1": mean([e.verdict.parts.get("process", 0.0) for e in counted]),
        "format_rate": mean([e.verdict.parts.get("format", 0.0) for e in counted]),
        "share_shows_working": mean([float(bool(split_thinking(e.reply.text).thinking.strip())) for e in counted]),
        "share_cut_off": mean([float(e.reply.finish == "length") for e in counted]),
    }
    return out | use_of_tools([record(episode, 0) for episode in counted]) | _lengths(counted)


def _pass_rates(counted_P: list[list[Episode]], k: int) -> list[float]:
    """pass@k of every problem that has k checked replies."""
    return [
        pass_at_k(len(group), sum(e.verdict.outcome == "right" for e in group), k)
        for group in counted_P
        if len(group) >= k
    ]


def _lengths(counted: list[Episode]) -> dict[str, float]:
    """Mean tokens of a reply, its end token included, of all replies and of right and wrong ones apart."""
    tokens = {outcome: [e.reply.n_sampled for e in counted if e.verdict.outcome == outcome] for outcome in _OUTCOMES}
    apart = {f"mean_response_tokens_{outcome}": mean(lengths) for outcome, lengths in tokens.items() if lengths}
    return {"mean_response_tokens": mean([e.reply.n_sampled for e in counted])} | apart


_OUTCOMES = ("right", "wrong")


def make_look(
    problems: int,
    n: int,
    sampling: Sampling,
    seed: int,
    task: Task,
    tokenizer: ChatTokenizer,
    precision: Precision = "fp32",
    log: RunFolder | None = None,
) -> Callable[[Decoder, int], tuple[dict[str, float], float]]:
    """A quick evaluation for the training loop: (model, step) -> (metrics, FLOPs).

    Always the same problems and random numbers, so that two looks differ by the model alone. The problems are the
    first ones of an `eval` stage with the same seed and task. On a GPU it samples in the `precision` of training.
    What was said to the first few goes to `log`, so that a reader sees the replies change.
    """
    questions = _questions(task, problems, seed)

    def look(model: Decoder, step: int) -> tuple[dict[str, float], float]:
        policy = LocalPolicy(model, tokenizer, precision=sampling_precision(precision, model.device))
        episodes_P_G = evaluate(policy, task, questions, n, sampling, seed, "look")
        policy.engine.release()
        if log is not None:
            log.rollouts(step, [record(group[0], 0) for group in episodes_P_G[:_KEPT]])
        found = summarise(episodes_P_G, sorted({1, n}), seed) | of_drawings(episodes_P_G, task)
        metrics = {key: float(value) for key, value in found.items() if isinstance(value, float) and key != "pass_at_1"}
        for k, share in found.get("pass_at_k", {}).items():
            low, high = found["pass_at_k_interval"][k]
            metrics |= {f"pass_at_{k}": share, f"pass_at_{k}_low": low, f"pass_at_{k}_high": high}
        return metrics | {"n_verifier_errors": found["n_errors"]}, sampling_flops(
            policy, task, episodes_P_G, sampling.guidance
        )

    return look


def eval_stage(
    stage: EvalStage, folder: Path, seed: int, task: Task, model_of: Callable[[str], Path]
) -> dict[str, float]:
    """Measure every model of the stage and write its records and `results.json`; returns the stage's totals.

    A model that an interrupted run has measured, with these weights on these problems, is not measured again.
    Raises ConfigError when a model cannot be read.
    """
    task = make_task(stage.task) if stage.task else task
    problems = _questions(task, stage.problems, seed)
    prms = {key: model_of(name) for key, name in stage.named_prms.items()}
    digest = _exam_digest(stage, seed, problems, prms.values())
    scorers = {key: load_scorer(path, stage.device) for key, path in prms.items()}
    exam = _Exam(stage, folder, seed, task, problems, digest, scorers)
    paths = {key: model_of(model) for key, model in stage.named_models.items()}
    results = exam.finished(paths)
    log = RunFolder(folder)
    log.truncate(len(results))
    per_model = -(-len(problems) // CHUNK)
    with Progress(stage.name, per_model * len(paths), done=per_model * len(results)) as progress:
        for number, (key, path) in enumerate(paths.items(), 1):
            if key not in results:
                results[key] = exam.measure(key, path, number, log, progress, results)
    exam.compare(results)
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
    return {
        "flops": sum(found["flops"] for found in results.values()),
        "tokens": sum(found["n_tokens"] for found in results.values()),
        "seconds": sum(line["step_s"] for line in log.read_timing()),
    }


@dataclass(frozen=True)
class _Exam:
    """What all models of a stage are measured on, and where that is written."""

    stage: EvalStage
    folder: Path
    seed: int
    task: Task
    problems: list[Problem]
    digest: str
    scorers: dict[str, Scorer]
    """Process reward models that choose among the replies."""

    def finished(self, paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
        """Results of the models, up to the first that is missing, changed, or measured on something else."""
        file = self.folder / "results.json"
        written: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        results: dict[str, dict[str, Any]] = {}
        for key, path in paths.items():
            mark = (written[key]["model_digest"], written[key]["exam_digest"]) if key in written else None
            if mark != (model_digest(path), self.digest) or not self._records(key).exists():
                break
            results[key] = written[key]
        return results

    def measure(
        self, key: str, path: Path, number: int, log: RunFolder, progress: Progress, results: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Evaluate one model, the `number`th, and write its records, then its results beside the others'."""
        began = time.perf_counter()
        policy = load_policy(path, None, self.stage.engine, self.stage.device, self.stage.precision)
        episodes_P_G = self._play(policy, number, progress)
        found = summarise(episodes_P_G, self.stage.ks, self.seed)
        found |= diversity(episodes_P_G, self.task, self.stage.sampling, self.stage.ks, self.seed)
        rows = [_row(e, j) for group in episodes_P_G for j, e in enumerate(group)]
        scoring = 0.0
        if self.scorers:
            found["rerank"], scoring = rerank_by_each(self.scorers, self.task, rows, self.stage.ks, self.seed)
        size = parameters(policy.model.config)
        n_tokens = sum(e.reply.n_sampled for group in episodes_P_G for e in group)
        found |= {
            "path": str(path),
            "parameters": {"total": size.total, "active": size.active},
            "model_digest": model_digest(path),
            "exam_digest": self.digest,
            "flops": sampling_flops(policy, self.task, episodes_P_G, self.stage.sampling.guidance) + scoring,
            "n_tokens": n_tokens,
        }
        write_jsonl(self._records(key), rows)
        log.metrics(number, {f"{key}/{name}": value for name, value in found.items() if isinstance(value, int | float)})
        seconds = time.perf_counter() - began
        log.timing(number, {"step_s": seconds, "tokens_per_s": n_tokens / seconds, "peak_rss_bytes": peak_rss_bytes()})
        # Last: this is what a killed run is resumed by.
        write_whole(self.folder / "results.json", json.dumps({**results, key: found}, indent=1) + "\n")
        return found

    def _play(self, policy: Policy, number: int, progress: Progress) -> list[list[Episode]]:
        """All episodes of one model, with its share of right answers beside the progress bar."""
        episodes_P_G: list[list[Episode]] = []
        starts = range(0, len(self.problems), CHUNK)
        for chunk, start in enumerate(starts, 1):
            part = self.problems[start : start + CHUNK]
            episodes_P_G += evaluate(policy, self.task, part, self.stage.n, self.stage.sampling, self.seed, "eval")
            right = sum(e.verdict.outcome == "right" for group in episodes_P_G for e in group)
            share = right / sum(map(len, episodes_P_G))
            progress.update((number - 1) * len(starts) + chunk, {"pass@1": share})
        return episodes_P_G

    def compare(self, results: dict[str, dict[str, Any]]) -> None:
        """Add to every model but the first how much more often it is right, on problems where both were checked."""
        first, *others = results
        results[first].pop("gain", None)
        before_P = self._right(first)
        for key in others:
            results[key].pop("gain", None)
            right_P = self._right(key)
            both = [problem for problem in right_P if problem in before_P]
            if both:
                gain = paired_difference([right_P[p] for p in both], [before_P[p] for p in both], self.seed, "gain")
                results[key]["gain"] = {"over": first, "mean": gain.mean, "interval": list(gain.interval)}

    def _right(self, key: str) -> dict[str, float]:
        """Share of right ones among the checked replies to each problem, from a model's records."""
        checked: dict[str, list[float]] = {}
        for row in read_jsonl(self._records(key)):
            if row["outcome"] != "error":
                checked.setdefault(row["problem"], []).append(float(row["outcome"] == "right"))
        return {problem: mean(rights) for problem, rights in checked.items()}

    def _records(self, key: str) -> Path:
        return self.folder / f"records-{key}.jsonl"


def _questions(task: Task, problems: int, seed: int) -> list[Problem]:
    return [task.problem("held-out", index, seed) for index in range(problems)]


def _exam_digest(stage: EvalStage, seed: int, problems: list[Problem], prms: Iterable[Path]) -> str:
    """Names everything but the model that a result depends on. Which other models are measured is no part of it."""
    asked = [[problem.id, problem.prompt, problem.gold] for problem in problems]
    whole = [seed, stage.n, stage.ks, stage.sampling.digest(), asked, *map(model_digest, prms)]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]


def _row(episode: Episode, place: int) -> dict[str, Any]:
    """One reply as it stands in the records; `logp` is the sum over its tokens."""
    return {**record(episode, place), "logp": sum(episode.reply.logps)}
