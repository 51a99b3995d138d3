"""Rejection sampling: draw replies, keep what the verifier accepts, curate it, write JSONL (R1, section 2.3.3).

Every kept row carries its provenance: the weights that wrote it (of a model behind a server its name there), the
problem, the seed, the verdict and the digest of what gave it. What each filter (`data/clean.py`) dropped is in the
totals. Parts of a few hundred problems, of a server some dozens of replies, are written whole, so that a killed run
goes on behind the last part. A reply that a server does not give is no wrong one: it is left out and counted.

Run alone: `zifio sample recipes/quickstart.toml --stage traces problems=64 --out runs/try`
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from zifio.checkpoint import model_digest
from zifio.config import Config, ConfigError
from zifio.data.card import write_dataset
from zifio.data.clean import Curated, curate
from zifio.data.sources import write_jsonl
from zifio.engine.policy import LocalPolicy, load_policy, sampling_flops
from zifio.log import Progress
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task, verifier_digest
from zifio.tasks.episode import Episode, Policy, play, record
from zifio.tasks.task import Task
from zifio.train.feedback import PART_REPLIES, SampleStage
from zifio.train.stage import Context, Parts

_REMOTE_REPLIES = 64


def sample(stage: SampleStage, context: Context) -> dict[str, float]:
    """Write `data.jsonl` with the kept replies; returns the stage's totals.

    Raises ConfigError when nothing is kept.
    """
    if not stage.is_remote:
        source = context.model_of(stage.from_)
        policy = load_policy(source, None, stage.engine, stage.device, stage.precision)
        return _sample(stage, context, policy, {"model": model_digest(source)})
    with context.endpoint(stage.from_, stage.from_model, stage.endpoint, True) as endpoint:
        return _sample(stage, context, endpoint, {"model": stage.from_model, "digest": None})


def _sample(stage: SampleStage, context: Context, policy: Policy, origin: dict[str, Any]) -> dict[str, float]:
    """`sample` from a policy; `origin` is what rows say of it."""
    task, parts = make_task(stage.task or context.task), Parts(context.folder)
    n_parts = -(-stage.problems // _part_problems(stage))
    rows: list[dict[str, Any]] = []
    with Progress(stage.name, n_parts, done=parts.n_done) as progress:
        for part in range(n_parts):
            drawn = parts.rows(part, partial(_one_part, stage, context, policy, task, origin, part))
            _check_origin(drawn, origin, parts.path(part))
            rows += drawn
            if stage.most is None and part + 1 < n_parts:
                progress.update(part + 1, {"drawn": len(rows)})
                continue  # filters look at all rows, so they wait for the last of them
            curated = keep(rows, stage)
            progress.update(part + 1, {"kept": len(curated.rows)})
            if stage.most is not None and len(curated.rows) >= stage.most:
                break
    if not curated.rows:
        raise ConfigError(
            f"{stage.name}: none of {len(rows)} replies was kept (keep = {stage.keep!r}{_dropped_words(curated)}). The "
            "model is too weak for this filter: train it longer, draw more replies per problem (n), or loosen keep or "
            "curation."
        )
    if stage.dataset:
        write_dataset(context.folder / "dataset", curated, _about(stage, task, origin), stage.license)
    write_jsonl(context.folder / "data.jsonl", curated.rows)
    dropped = {f"dropped_{name}": n for name, n in curated.dropped.items()}
    n_failed = sum(line.get("n_failed", 0) for line in parts.log.read_metrics())
    failed = {"failed": n_failed} if stage.is_remote else {}
    return {**parts.totals(), "drawn": len(rows), **failed, "kept": len(curated.rows), **dropped}


def keep(rows: list[dict[str, Any]], stage: SampleStage) -> Curated:
    """What the stage keeps of the rows, and what its filters dropped."""
    return curate(rows, stage.keep, stage.most_per_problem, stage.most, stage.curation)


def _dropped_words(curated: Curated) -> str:
    found = {name: n for name, n in curated.dropped.items() if n}
    return "".join(f"; {name.replace('_', ' ')}: {n} dropped" for name, n in found.items())


def _about(stage: SampleStage, task: Task, origin: dict[str, Any]) -> dict[str, Any]:
    """How the rows were made, for the card; no path of this machine."""
    settings = task.model_dump(exclude={"path"}) if isinstance(task, Config) else {}
    of_server = f"{stage.from_model}, as its server calls it"
    said = of_server if stage.is_remote else f"{Path(stage.from_).name} (weights {origin['model']})"
    return {
        "model": said,
        "task": f"{task.name} {json.dumps(settings)}",
        "verifier": verifier_digest(task),
        "problems": stage.problems,
        "replies per problem": stage.n,
        "sampling": stage.sampling.model_dump_json(),
        "kept": stage.keep,
        "curation": stage.curation.model_dump_json(),
    }


def _part_problems(stage: SampleStage) -> int:
    """Problems whose replies are drawn and written together. A server's replies may cost money, so few of them are
    asked for again after a kill, but enough to keep it busy."""
    n_replies = max(_REMOTE_REPLIES, 8 * stage.endpoint.concurrency) if stage.is_remote else PART_REPLIES
    return max(1, n_replies // stage.n)


def _one_part(
    stage: SampleStage, context: Context, policy: Policy, task: Task, origin: dict[str, Any], part: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(all replies of a part with their verdicts, figures)."""
    seed = stream_seed(context.seed, "sample", stage.name)
    size = _part_problems(stage)
    numbers = range(part * size, min((part + 1) * size, stage.problems))
    problems = [task.problem("train", index, seed) for index in numbers]
    episodes_P_G = play(policy, task, problems, stage.n, stage.sampling, seed, "sample")
    every = [(j, episode) for group in episodes_P_G for j, episode in enumerate(group)]
    faults = [e.reply.fault for _, e in every if e.reply.fault] if stage.is_remote else []
    _check_faults(stage, faults, len(every))
    episodes = [(j, e) for j, e in every if not (faults and e.reply.fault)]
    figures: dict[str, float] = {
        "pass_at_1": sum(e.verdict.outcome == "right" for _, e in episodes) / len(episodes),
        "n_tokens": sum(e.reply.n_sampled for _, e in episodes),
    }
    if isinstance(policy, LocalPolicy):
        figures["part_flops"] = sampling_flops(policy, task, episodes_P_G)
    if faults:
        figures["n_failed"] = len(faults)
    verifier = verifier_digest(task)
    return [_row(stage, origin, verifier, seed, j, episode) for j, episode in episodes], figures


def _check_faults(stage: SampleStage, faults: list[str], n_replies: int) -> None:
    """Raise ConfigError when the server failed too often, so that nothing of the part is written."""
    if len(faults) > stage.most_errors * n_replies or len(faults) == n_replies:
        raise ConfigError(
            f"{stage.from_}: wanted {n_replies} replies, came {len(faults)} failures, and most_errors = "
            f"{stage.most_errors:g}; for example: {'; '.join(list(dict.fromkeys(faults))[:3])}. Mend that and run the "
            "same command again: what came before is kept."
        )


def _check_origin(rows: list[dict[str, Any]], origin: dict[str, Any], path: Path) -> None:
    """Raise ConfigError when another model drew the rows of a part."""
    if others := {row.get("model") for row in rows} - {origin["model"]}:
        raise ConfigError(
            f"{path}: model: wanted replies of {origin['model']}, came {others.pop()!r}. "
            "Start this stage over with --fresh."
        )


def _row(
    stage: SampleStage, origin: dict[str, Any], verifier: str, seed: int, place: int, episode: Episode
) -> dict[str, Any]:
    provenance = {"seed": seed, **origin, "verifier": verifier, "sampling": stage.sampling.model_dump()}
    return {**record(episode, place), **provenance}
