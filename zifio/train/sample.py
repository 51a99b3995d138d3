"""Rejection sampling: draw replies, keep what the verifier accepts, curate it, write JSONL (R1, section 2.3.3).

Every kept row carries its provenance: the weights that wrote it, the problem, the seed, the verdict and the digest of
what gave it. What each filter (`data/clean.py`) dropped is in the totals. Parts of a few hundred problems are written
whole, so that a killed run goes on behind the last part.

Run alone: `zifio sample recipes/quickstart.toml --stage traces problems=64 --out runs/try`
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from zifio.checkpoint import model_digest
from zifio.config import Config, ConfigError
from zifio.data.card import write_dataset
from zifio.data.clean import Curated, curate
from zifio.data.sources import read_jsonl, write_jsonl
from zifio.engine.policy import LocalPolicy, load_policy, sampling_flops
from zifio.log import Progress, RunFolder, peak_rss_bytes
from zifio.seed import stream_seed
from zifio.tasks.catalog import make_task, verifier_digest
from zifio.tasks.episode import Episode, play, record
from zifio.tasks.task import Task
from zifio.train.feedback import SampleStage
from zifio.train.stage import Context

_PART_REPLIES = 1024


def sample(stage: SampleStage, context: Context) -> dict[str, float]:
    """Write `data.jsonl` with the kept replies; returns the stage's totals.

    Raises ConfigError when nothing is kept.
    """
    source = context.model_of(stage.from_)
    policy = load_policy(source, None, stage.engine, stage.device, stage.precision)
    task = make_task(stage.task or context.task)
    digest, log = model_digest(source), RunFolder(context.folder)
    parts = context.folder / "parts"
    n_parts = -(-stage.problems // _part_problems(stage))
    done = sorted(parts.glob("part-*.jsonl")) if parts.is_dir() else []
    log.truncate(len(done))
    rows: list[dict[str, Any]] = []
    with Progress(stage.name, n_parts, done=len(done)) as progress:
        for part in range(n_parts):
            path = parts / f"part-{part:05d}.jsonl"
            if not path.exists():
                _one_part(stage, context, policy, task, digest, part, path, log)
            rows += _read_part(path, digest)
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
        write_dataset(context.folder / "dataset", curated, _about(stage, task, digest), stage.license)
    write_jsonl(context.folder / "data.jsonl", curated.rows)
    flops = sum(line["part_flops"] for line in log.read_metrics())
    tokens = sum(line["n_tokens"] for line in log.read_metrics())
    seconds = sum(line["step_s"] for line in log.read_timing())
    totals: dict[str, float] = {"flops": flops, "tokens": tokens, "seconds": seconds, "drawn": len(rows)}
    totals |= {"kept": len(curated.rows), **{f"dropped_{name}": n for name, n in curated.dropped.items()}}
    return totals


def keep(rows: list[dict[str, Any]], stage: SampleStage) -> Curated:
    """What the stage keeps of the rows, and what its filters dropped."""
    return curate(rows, stage.keep, stage.most_per_problem, stage.most, stage.curation)


def _dropped_words(curated: Curated) -> str:
    found = {name: n for name, n in curated.dropped.items() if n}
    return "".join(f"; {name.replace('_', ' ')}: {n} dropped" for name, n in found.items())


def _about(stage: SampleStage, task: Task, digest: str) -> dict[str, Any]:
    """How the rows were made, for the card; no path of this machine."""
    settings = task.model_dump(exclude={"path"}) if isinstance(task, Config) else {}
    return {
        "model": f"{Path(stage.from_).name} (weights {digest})",
        "task": f"{task.name} {json.dumps(settings)}",
        "verifier": verifier_digest(task),
        "problems": stage.problems,
        "replies per problem": stage.n,
        "sampling": stage.sampling.model_dump_json(),
        "kept": stage.keep,
        "curation": stage.curation.model_dump_json(),
    }


def _part_problems(stage: SampleStage) -> int:
    """Problems whose replies are drawn and written together."""
    return max(1, _PART_REPLIES // stage.n)


def _one_part(
    stage: SampleStage, context: Context, policy: LocalPolicy, task: Task, digest: str, part: int, path: Path,
    log: RunFolder,
) -> None:  # fmt: skip
    """Draw one part's replies and write all of them with their verdicts."""
    began = time.perf_counter()
    seed = stream_seed(context.seed, "sample", stage.name)
    size = _part_problems(stage)
    numbers = range(part * size, min((part + 1) * size, stage.problems))
    problems = [task.problem("train", index, seed) for index in numbers]
    episodes_P_G = play(policy, task, problems, stage.n, stage.sampling, seed, "sample")
    episodes = [(j, episode) for group in episodes_P_G for j, episode in enumerate(group)]
    right = sum(e.verdict.outcome == "right" for _, e in episodes) / len(episodes)
    n_tokens = sum(e.reply.n_sampled for _, e in episodes)
    flops = sampling_flops(policy, task, episodes_P_G)
    log.metrics(part + 1, {"pass_at_1": right, "n_tokens": n_tokens, "part_flops": flops})
    seconds = time.perf_counter() - began
    log.timing(part + 1, {"step_s": seconds, "tokens_per_s": n_tokens / seconds, "peak_rss_bytes": peak_rss_bytes()})
    # Last of all, so that a part which is there has its numbers too.
    verifier = verifier_digest(task)
    write_jsonl(path, [_row(stage, digest, verifier, seed, j, episode) for j, episode in episodes])


def _read_part(path: Path, digest: str) -> list[dict[str, Any]]:
    """A part's rows. Raises ConfigError when another model drew them."""
    rows = read_jsonl(path)
    if others := {row.get("model") for row in rows} - {digest}:
        raise ConfigError(
            f"{path}: model: wanted replies of the weights {digest}, came {others.pop()!r}. "
            "Start this stage over with --fresh."
        )
    return rows


def _row(stage: SampleStage, digest: str, verifier: str, seed: int, place: int, episode: Episode) -> dict[str, Any]:
    provenance = {"seed": seed, "model": digest, "verifier": verifier, "sampling": stage.sampling.model_dump()}
    return {**record(episode, place), **provenance}
