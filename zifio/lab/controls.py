"""What must hold for an experiment to mean anything: the verifier errs as it is said to, arms are what they are called,
and the books of work balance. Whatever does not hold ends the run; no verdict comes of it.

Try it alone: `pytest tests/lab/test_controls.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from zifio.config import ConfigError
from zifio.evaluate.ledger import ledger
from zifio.lab.design import Arm, Probe, Table
from zifio.recipe import Recipe, references
from zifio.record.stage import read_json
from zifio.stats import wilson_interval
from zifio.tasks.catalog import read_task
from zifio.tasks.task import Problem, Task, render_response

_PROBLEMS = 200
_SURE = 0.9999
"""Confidence of a probe's interval: there are hundreds of them, and a false alarm ends a run."""
_DIGITS = "0123456789"


class Unsound(ConfigError):
    """An experiment is not what it says it is."""


def check_verifier(probe: Probe, seed: int) -> dict[str, float]:
    """How often the verifier accepts right and wrong replies that are made up here: {"right", "wrong", "J"}.

    Raises Unsound where that is not what the probe says, within chance.
    """
    task = read_task(probe.task, "probe")
    problems = [task.problem("held-out", index, seed) for index in range(_PROBLEMS)]
    accepted = {
        "right": [_accepts(task, problem, _right(task, problem)) for problem in problems],
        "wrong": [_accepts(task, problem, _wrong(problem)) for problem in problems],
    }
    for kind, wanted in (("right", probe.accepts_right), ("wrong", probe.accepts_wrong)):
        found = accepted[kind]
        low, high = wilson_interval(sum(found), len(found), _SURE)
        exact = wanted in (0.0, 1.0)
        if (exact and sum(found) != wanted * len(found)) or not low <= wanted <= high:
            raise Unsound(
                f"verifier {probe.task}: wanted {wanted:.0%} of {kind} replies accepted, came {sum(found)} of "
                f"{len(found)}. The verifier is not what the experiment says; mend the task or the design."
            )
    shares = {kind: sum(found) / len(found) for kind, found in accepted.items()}
    return shares | {"J": shares["right"] - shares["wrong"]}


def _accepts(task: Task, problem: Problem, reply: str) -> bool:
    return task.score(problem, reply).outcome == "right"


def _right(task: Task, problem: Problem) -> str:
    return render_response(problem.working, problem.gold)


def _wrong(problem: Problem) -> str:
    """A reply of the agreed shape whose last digit is another one, never 0; which one depends on the problem."""
    others = [digit for digit in _DIGITS[1:] if digit != problem.gold[-1]]
    return render_response(problem.working, problem.gold[:-1] + others[len(problem.id) % len(others)])


def check_arms(arms: Sequence[Arm], folder: Path) -> None:
    """Raise Unsound where a stage on the disk is not what its arm is called, or two arms are one."""
    seen: dict[str, str] = {}
    for arm in arms:
        mark = read_json(folder / arm.stage / "stage.json")
        for path, wanted in arm.treatment.items():
            found = _at(mark.get("settings", {}), path)
            if found != wanted:
                raise Unsound(
                    f"arm {arm.name}: wanted {path} = {wanted!r} in the stage {arm.stage}, came {found!r}. Two arms "
                    "are swapped, or the design changed: put it right, or start over with --fresh."
                )
        digest = str(mark.get("digest"))
        if digest in seen:
            raise Unsound(f"arm {arm.name}: wanted a stage of its own, came that of {seen[digest]}. Mend the design.")
        seen[digest] = arm.name


def _at(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def check_ledger(recipe: Recipe, folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The ledger's entry of each stage, once every sum in it is added up again from the recipe, another way.

    Raises Unsound where a sum differs, or a stage's FLOPs are no possible ones for its weights and tokens.
    """
    entries = ledger({name: folder / name for name in names})
    for name in names:
        check_work(folder / name)
        entry, wanted = entries.get(name, {}), _own_sums(recipe, folder, name)
        for key, total in wanted.items():
            found = entry.get(key)
            if found is None or abs(found - total) > 1e-9 * max(total, 1.0):
                raise Unsound(
                    f"ledger of {name}: wanted {key} = {total:.6g} FLOPs, the sum over the recipe's stages, came "
                    f"{found!r}. The books do not balance, so no costs can be compared."
                )
    return {name: dict(entries[name]) for name in names}


def _own_sums(recipe: Recipe, folder: Path, name: str) -> dict[str, float]:
    """What the ledger should say, from the recipe's references alone."""
    done = {stage.name: read_json(folder / stage.name / "done.json") for stage in recipe.stage}
    chain, at = [], recipe.named(name)
    while at is not None and isinstance(start := getattr(at, "from_", None), str) and recipe.named(start) is not None:
        chain.append(at.name)
        at = recipe.named(start)
    is_given = at is not None and isinstance(getattr(at, "from_", None), str)  # a checkpoint that no stage made
    if at is not None and is_given:
        chain.append(at.name)
    base = {at.name} if at is not None and chain and not is_given else set()
    chain = chain or [name]
    behind, before = _closure(recipe, chain), _closure(recipe, base)
    student = sum(done[one].get("flops", 0.0) - done[one].get("teacher_flops", 0.0) for one in chain)
    sums: dict[str, float] = {"student": student}
    if base:
        sums["base"] = sum(done[one].get("flops", 0.0) for one in before)
        stages = [stage for stage in recipe.stage if stage.name in behind | before]
        if all(recipe.named(used) is not None for stage in stages for used in references(stage)):  # no given file
            sums["with_teacher"] = sum(done[one].get("flops", 0.0) for one in behind | before) - sums["base"]
    return sums


def _closure(recipe: Recipe, names: Sequence[str] | set[str]) -> set[str]:
    found, todo = set(), [*names]
    while todo:
        stage = recipe.named(todo.pop())
        if stage is not None and stage.name not in found:
            found.add(stage.name)
            todo += references(stage)
    return found


def check_work(folder: Path) -> None:
    """Raise Unsound for a training stage whose FLOPs its weights and tokens cannot have taken: fewer than 6 a weight
    and token, or ten times as many."""
    done, settings = read_json(folder / "done.json"), read_json(folder / "stage.json").get("settings", {})
    if settings.get("kind") not in ("pretrain", "sft"):
        return
    least = 6.0 * multiplied_weights(folder / "model") * done.get("tokens", 0)
    if not least <= done.get("flops", 0.0) <= 10 * least:
        raise Unsound(
            f"{folder}: wanted between {least:.3g} and {10 * least:.3g} FLOPs for {done.get('tokens')} tokens, came "
            f"{done.get('flops')}. The counter of work is broken."
        )


def multiplied_weights(model: Path) -> int:
    """Weights of the matrices in a model's files that every token meets: all but the embedding, and of routed experts
    the share that is active. Counted from the files, not by the package's counter."""
    from zifio.models.config import read_config

    config = read_config(model)
    share = config.moe.n_active / config.moe.n_experts if config.moe is not None else 1.0
    shapes = _shapes(model / "model.safetensors")
    matrices = {name: prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "embed_tokens" not in name}
    trunk = {name: size for name, size in matrices.items() if f"layers.{config.num_hidden_layers}." not in name}
    return int(sum(size * (share if ".experts." in name else 1.0) for name, size in trunk.items()))


def _shapes(path: Path) -> Mapping[str, list[int]]:
    """The shape of every tensor of a file, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = file.keys()
        return {name: file.get_slice(name).get_shape() for name in names}


def check_equal(work: Mapping[str, float], tolerance: float) -> None:
    """Raise Unsound where arms that are to have spent equal compute have not, beyond a share."""
    least, most = min(work.values()), max(work.values())
    if most > (1 + tolerance) * least:
        raise Unsound(f"equal compute: wanted FLOPs within {tolerance:.0%} of each other, came {_listed(work)}.")


def _listed(work: Table | Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in work.items())
