"""Recipes: a TOML file with a list of stages, run in order, resumed where it stopped, skipped where it is done.

    name = "quickstart"
    seed = 0
    task = { name = "chain_sum" }
    [[stage]]
    kind = "pretrain"
    name = "base"
    ...

Every stage has a folder `runs/NAME/STAGE/`: `stage.json` (its settings and their digest, written first), metrics.jsonl,
timing.jsonl, checkpoints/, its result (`model/` or `data.jsonl`) and, when it is through, `done.json`. The digest takes
in the digests of the stages before it that it uses, so a result never stands for settings that it was not made with.

Run alone: `zifio run recipes/quickstart.toml --dry-run`
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator
from rich.table import Table

from zifio.config import Config, ConfigError, build, is_url, override, read_toml, suggestion
from zifio.evaluate.config import EvalStage
from zifio.log import RunFolder, cores, peak_rss_bytes, say
from zifio.models.config import AnyConfig
from zifio.models.hub import is_name, resolve
from zifio.sink.send import check_sinks, sending
from zifio.tasks.catalog import TaskConfig, make_task
from zifio.tasks.sets import Rows, too_few
from zifio.train.config import DistillStage, PretrainStage, RlStage, SftStage, TokenizerStage
from zifio.train.feedback import DpoStage, MarkStage, PrmStage, RewardStage, SampleStage
from zifio.train.picture_config import ClassifierStage, JanusStage, OfPictures, VisionStage, VqStage

if TYPE_CHECKING:
    from zifio.train.stage import Context

AnyStage = Annotated[
    TokenizerStage
    | PretrainStage
    | SftStage
    | RlStage
    | SampleStage
    | DistillStage
    | MarkStage
    | PrmStage
    | RewardStage
    | DpoStage
    | VqStage
    | ClassifierStage
    | VisionStage
    | JanusStage
    | EvalStage,
    Field(discriminator="kind"),
]


_LEARNERS = (PretrainStage, SftStage, DistillStage, DpoStage, JanusStage)
_SCORES = {"process.by": "scores of steps", "reward_model": "scores of replies"}
"""What a reward model must score; those of other keys may do either."""


class Recipe(Config):
    """What `zifio run` does."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Names the run folder, runs/NAME."""
    seed: NonNegativeInt = 0
    """Every random number of the run derives from this one."""
    task: TaskConfig
    """What the model is to learn; stages may name another."""
    sinks: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Where metrics are sent beside the run folder; each wants its package."""
    stage: Annotated[list[AnyStage], Field(min_length=1)]
    """The stages, in order."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        names = [stage.name for stage in self.stage]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"wanted a name of its own for every stage, came {twice[0]!r} twice. Rename one.")
        return self

    def named(self, name: str) -> AnyStage | None:
        """The stage of that name, if there is one."""
        return next((stage for stage in self.stage if stage.name == name), None)


def references(stage: AnyStage) -> list[str]:
    """Stages, folders or files that a stage starts from."""
    judge = _judge_of(stage)
    if isinstance(stage, EvalStage):
        return [*stage.models, *stage.scorers.values(), *([judge] if judge else [])]
    keys = ("tokenizer", "from_", "codes", "vision", "judge", "data", "held_out_data", "text_data", "teacher", "people")
    values = [judge, *(getattr(stage, key, None) for key in keys)]
    others = {**getattr(stage, "models", {}), **getattr(stage, "scorers", {})}
    return [value for value in [*values, *others.values()] if isinstance(value, str) and not is_url(value)]


def _judge_of(stage: AnyStage) -> str | None:
    """The classifier that a stage's own task is judged by."""
    return getattr(getattr(stage, "task", None), "judge", None)


def load_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a TOML file with overrides applied. Raises ConfigError for whatever is wrong with it."""
    return recipe_of(override(read_toml(path), overrides), str(path))


def recipe_of(data: dict[str, Any], path: str) -> Recipe:
    """The recipe of plain tables; `path` opens every message. Raises ConfigError for whatever is wrong with it."""
    recipe = build(Recipe, data, path)
    _check_kinds(recipe, path)
    _check_lengths(recipe, path)
    _check_sizes(recipe, path)
    check_sinks(recipe.sinks, path)
    earlier: list[str] = []
    for stage in recipe.stage:
        for name in references(stage):
            if name not in earlier and not Path(name).exists() and not is_name(name):
                later = " It comes later: move it up." if recipe.named(name) else ""
                hint = later or f" {suggestion(name, earlier)}" if earlier else ""
                raise ConfigError(
                    f"{path}: stage {stage.name}: wanted an earlier stage, a path that exists or a model's name, "
                    f"came {name!r}.{hint}"
                )
        earlier.append(stage.name)
    return recipe


def _check_kinds(recipe: Recipe, where: str) -> None:
    """Raise ConfigError where a stage starts from one that makes something else than it needs."""
    makes = {TokenizerStage: "a tokenizer", SampleStage: "data", MarkStage: "data", EvalStage: "results"}
    makes |= {PrmStage: "scores of steps", RewardStage: "scores of replies", VqStage: "codes of pictures"}
    makes |= {ClassifierStage: "labels of pictures", VisionStage: "an encoder of pictures"}
    for stage in recipe.stage:
        if isinstance(stage, EvalStage):
            needs = [(f"models[{place}]", name, "a model") for place, name in enumerate(stage.models)]
        else:
            wanted = {"tokenizer": "a tokenizer", "from_": "a model", "teacher": "a model", "data": "data"}
            wanted |= {"codes": "codes of pictures", "vision": "an encoder of pictures", "text_data": "data"}
            wanted |= {"judge": "labels of pictures"}
            needs = [(key, getattr(stage, key, None), what) for key, what in wanted.items()]
            needs += [(key, name, "a model") for key, name in getattr(stage, "models", {}).items()]
        needs += [(key, name, _SCORES.get(key, "scores")) for key, name in getattr(stage, "scorers", {}).items()]
        needs += [("task.judge", judge, "labels of pictures")] if (judge := _judge_of(stage)) else []
        for key, name, what in needs:
            source = recipe.named(name) if isinstance(name, str) else None
            made = makes.get(type(source), "a model")
            if source is not None and not made.startswith(what) and not (what == "a tokenizer" and made == "a model"):
                raise ConfigError(
                    f"{where}: {stage.name}.{key.rstrip('_')}: wanted a stage that makes {what}, came {name!r} "
                    f"(kind {source.kind}), which makes {made}. Name another stage."
                )


def _check_lengths(recipe: Recipe, where: str) -> None:
    """Raise ConfigError where a reply alone would fill the context of the model that is sampled."""
    for stage in recipe.stage:
        draws = isinstance(stage, DistillStage) and stage.draws
        if isinstance(stage, TokenizerStage | PrmStage | RewardStage | OfPictures):
            continue  # never samples
        if isinstance(stage, _LEARNERS) and not (stage.held_out.every or draws):
            continue
        starts = stage.models if isinstance(stage, EvalStage) else [stage.name]
        if isinstance(stage, MarkStage):
            starts = [stage.rollouts.from_] if stage.rollouts else []
        for context in filter(None, (_context_length(recipe, start) for start in starts)):
            if stage.sampling.max_new_tokens >= context:
                raise ConfigError(
                    f"{where}: {stage.name}.sampling.max_new_tokens: wanted less than the model's context of {context} "
                    f"tokens, came {stage.sampling.max_new_tokens}. Lower it, or raise max_position_embeddings."
                )


def _check_sizes(recipe: Recipe, where: str) -> None:
    """Raise ConfigError where a stage wants more held-out problems than its task has, or its data are not there."""
    for stage in recipe.stage:
        own = None if isinstance(stage, DistillStage) else getattr(stage, "task", None)  # it looks at the recipe's
        task = own or recipe.task
        looks = getattr(stage, "held_out", None)
        looks = None if isinstance(stage, OfPictures | JanusStage) else looks
        n = stage.problems if isinstance(stage, EvalStage) else looks.problems if looks and looks.every else 0
        if n and isinstance(task, Rows) and n > task.size("held-out"):
            key = "problems" if isinstance(stage, EvalStage) else "held_out.problems"
            raise ConfigError(f"{where}: {stage.name}.{key}: {too_few(task.name, n, task.size('held-out'))}")


def _context_length(recipe: Recipe, name: str) -> int | None:
    """Tokens that the model of a stage can hold, where the recipe itself says so."""
    shape = beginning(recipe, name)
    return None if isinstance(shape, str) else shape.max_position_embeddings


def beginning(recipe: Recipe, name: str) -> AnyConfig | str:
    """The shape that the recipe gives for the model of a stage, or the checkpoint that it goes back to."""
    stage = recipe.named(name)
    model, start = getattr(stage, "model", None), getattr(stage, "from_", None)
    if model is not None:
        return model
    return beginning(recipe, start) if isinstance(start, str) and start != name else name


class Run:
    """A recipe in its run folder."""

    def __init__(self, recipe: Recipe, folder: Path, fallback: Path | None = None) -> None:
        """`fallback` is where finished stages are looked for that are not in `folder`."""
        self.recipe, self.folder = recipe, folder
        self.fallback = fallback if fallback is not None else folder

    def place(self, name: str) -> Path:
        """Folder of a stage: in this run, or finished in the fallback."""
        own, other = self.folder / name, self.fallback / name
        return other if (other / "done.json").exists() and not (own / "done.json").exists() else own

    def model_of(self, name: str) -> Path:
        """Folder of the model (or tokenizer) that a stage made, or of one given by path."""
        return self._result(name, "model", "config.json" if _makes_model(self.recipe.named(name)) else None)

    def data_of(self, name: str) -> Path:
        """JSONL file that a `sample` stage made, or one given by path."""
        return self._result(name, "data.jsonl", None)

    def _result(self, name: str, result: str, inside: str | None) -> Path:
        stage = self.recipe.named(name)
        path = self.place(name) / result if stage is not None else _given(name)
        wanted = path / inside if inside else path
        if wanted.exists() and (path / "manifest.json").exists():
            from zifio.checkpoint import damage

            if fault := damage(path):
                raise ConfigError(
                    f"{path}: wanted the result of {name!r} as it was written, came: {fault}. Make it anew."
                )
        if not wanted.exists():
            first = (
                f"Run that stage first: zifio {stage.kind} RECIPE.toml --stage {name}" if stage else "Check the path"
            )
            raise ConfigError(f"{path}: wanted the result of {name!r}, came nothing. {first}, or run the whole recipe.")
        return path

    def digest(self, stage: AnyStage) -> str:
        """Names a stage's settings, the seed, the task and everything that it starts from."""
        used = {name: self._input_digest(name) for name in references(stage)}
        whole = _Identity(
            stage=stage.model_dump(), seed=self.recipe.seed, task=self.recipe.task.model_dump(), used=used
        )
        return whole.digest()

    def _input_digest(self, name: str) -> str:
        stage = self.recipe.named(name)
        if stage is None:
            return _path_digest(_given(name))
        done = self.place(name) / "done.json"
        return _read_mark(done, ("digest",))["digest"] if done.exists() else self.digest(stage)

    def is_done(self, stage: AnyStage) -> bool:
        """Whether the stage is finished with these very settings.

        Raises ConfigError when its folder holds the work of other settings.
        """
        folder = self.folder / stage.name
        mark = folder / "stage.json"
        if not mark.exists():
            return False
        before = _read_mark(mark, ("digest", "settings"))
        if before["digest"] != self.digest(stage):
            changed = _differences(before["settings"], self._settings(stage)) or "a stage that it starts from"
            raise ConfigError(
                f"{folder}: wanted a stage made with the present settings, came one made with others ({changed}). "
                "Start it over with --fresh, choose another folder with --out, or put the settings back."
            )
        return (folder / "done.json").exists()

    def _settings(self, stage: AnyStage) -> dict[str, Any]:
        return {
            **stage.model_dump(mode="json", by_alias=True),
            "seed": self.recipe.seed,
            "recipe.task": self.recipe.task.model_dump(mode="json"),
        }

    def stage(self, stage: AnyStage) -> dict[str, Any]:
        """Run one stage to its end, or skip it when it is done; returns what `done.json` says."""
        folder = self.folder / stage.name
        if self.is_done(stage):
            return _read_mark(folder / "done.json", ("digest",))
        digest = self.digest(stage)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "stage.json", {"digest": digest, "settings": self._settings(stage)})
        (folder / "ended.json").unlink(missing_ok=True)
        began, worked = time.perf_counter(), time.process_time()
        try:
            with sending(self.recipe.sinks, self.recipe.name, stage.name, folder):
                totals = _runner(stage)(self._placed(stage), self._context(folder))
        except (ConfigError, RuntimeError) as error:  # a folder should tell why it is not done
            _write_json(folder / "ended.json", {"kind": type(error).__name__, "message": str(error)})
            raise
        wall, cpu = time.perf_counter() - began, time.process_time() - worked
        seconds = max(wall, totals.get("seconds", 0.0))
        done = {**totals, "kind": stage.kind, "digest": digest, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
        # What tells a slow stage from a machine that others had too; of a stage that was resumed, its last stretch.
        done |= {"wall_s": wall, "cpu_s": cpu, "cores": cores()}
        _write_json(folder / "done.json", done)
        let_go()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the result has taken their place
        return done

    def _placed(self, stage: AnyStage) -> AnyStage:
        """The stage with its task's judge by its folder, which a task alone could not find."""
        task, judge = getattr(stage, "task", None), _judge_of(stage)
        if task is None or judge is None:
            return stage
        return stage.model_copy(update={"task": task.model_copy(update={"judge": str(self.model_of(judge))})})

    def missing(self, stage: AnyStage) -> list[AnyStage]:
        """The stages that this one starts from, directly or not, which nobody has finished; in the recipe's order."""
        found: set[str] = set()
        for name in references(stage):
            needed = self.recipe.named(name)
            if needed is not None and not (self.place(name) / "done.json").exists():
                found |= {name, *(one.name for one in self.missing(needed))}
        return [one for one in self.recipe.stage if one.name in found]

    def _context(self, folder: Path) -> Context:
        from zifio.evaluate.run import make_look
        from zifio.train.stage import Context

        def look(stage: Any, tokenizer: Any, task: Any) -> Any:
            held = stage.held_out
            log = RunFolder(folder)
            return make_look(
                held.problems, held.n, stage.sampling, self.recipe.seed, task, tokenizer, stage.precision, log
            )

        def endpoint(url: str, model: str, settings: Any, forgiving: bool) -> Any:
            from zifio.evaluate.endpoint import Endpoint

            return closing(Endpoint(url, model, settings, forgiving=forgiving))

        return Context(folder, self.recipe.seed, self.recipe.task, self.model_of, self.data_of, look, endpoint)

    def throw_away(self, stages: Sequence[AnyStage]) -> None:
        """Remove the folders of these stages (`--fresh`); nothing else in the run folder is touched."""
        for stage in stages:
            shutil.rmtree(self.folder / stage.name, ignore_errors=True)


class _Identity(Config):
    stage: dict[str, Any]
    seed: int
    task: dict[str, Any]
    used: dict[str, str]


def let_go() -> None:
    """Give back what a stage leaves behind, before the next begins: models and optimizers that Python would find some
    time later, as they know each other, and memory that the C library keeps. So a run holds what its largest stage
    wants, however many there are."""
    from zifio.kernels.operators import give_back

    gc.collect()
    give_back()


def _runner(stage: AnyStage) -> Callable[[Any, Context], dict[str, Any]]:
    """The function that runs a stage of this kind; torch is imported only here."""
    if isinstance(stage, TokenizerStage):
        from zifio.train.vocabulary import tokenizer as run
    elif isinstance(stage, PretrainStage):
        from zifio.train.pretrain import pretrain as run
    elif isinstance(stage, SftStage):
        from zifio.train.sft import sft as run
    elif isinstance(stage, RlStage):
        from zifio.train.rl import rl as run
    elif isinstance(stage, SampleStage):
        from zifio.train.sample import sample as run
    elif isinstance(stage, DistillStage):
        from zifio.train.distill import distill as run
    elif isinstance(stage, MarkStage):
        from zifio.train.mark import mark as run
    elif isinstance(stage, PrmStage):
        from zifio.train.prm import prm as run
    elif isinstance(stage, RewardStage):
        from zifio.train.preference import reward as run
    elif isinstance(stage, DpoStage):
        from zifio.train.preference import dpo as run
    elif isinstance(stage, VqStage):
        from zifio.train.vq import vq as run
    elif isinstance(stage, ClassifierStage):
        from zifio.train.classifier import classifier as run
    elif isinstance(stage, VisionStage):
        from zifio.train.vision import vision as run
    elif isinstance(stage, JanusStage):
        from zifio.train.janus import janus as run
    else:
        from zifio.evaluate.run import eval_stage

        return lambda s, c: eval_stage(s, c.folder, c.seed, make_task(s.task or c.task), c.model_of)
    return run


def run_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    as_json: bool = False,
) -> dict[str, Any] | None:
    """Run all stages that are not done and write the report; returns the report for `--json`.

    Raises ConfigError for a wrong recipe, a folder in use, or results made with other settings.
    """
    recipe = load_recipe(path, overrides)
    run = Run(recipe, out or Path("runs") / recipe.name)
    if dry_run:
        say(_overview(run, fresh))
        return _plan(run, fresh) if as_json else None
    with RunFolder(run.folder).lock():
        if fresh:
            run.throw_away(recipe.stage)
        say(_overview(run, fresh))
        _write_json(run.folder / "recipe.json", recipe.model_dump(mode="json", by_alias=True))
        for stage in recipe.stage:
            run.stage(stage)
        report = _report(run)
    return report if as_json else None


def _report(run: Run) -> dict[str, Any]:
    """Write the report of all that has run so far, and show its table."""
    from zifio.evaluate.report import terminal_table, write_report

    report = write_report(run.folder, run.recipe.name, [(stage.name, stage.kind) for stage in run.recipe.stage])
    say(terminal_table(report))
    say(f"report: {run.folder / 'report.html'}")
    return report


def run_stage(
    kind: str,
    path: Path,
    stage: str | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    as_json: bool = False,
) -> dict[str, Any] | None:
    """Run the one stage of this kind, and before it what it starts from and nobody has run; write the report.

    Overrides are the stage's own keys (and the recipe's `seed`). Stages that it starts from are looked for in the run
    folder, then in the recipe's own `runs/NAME`.
    """
    name = choose_stage(kind, path, stage)
    prefixed = [word if word.startswith("seed=") else f"stage.{name}.{word}" for word in overrides]
    recipe = load_recipe(path, prefixed)
    chosen = recipe.named(name)
    assert chosen is not None, "_choose found it"
    home = Path("runs") / recipe.name
    run = Run(recipe, out or home, fallback=home)
    todo = [*run.missing(chosen), chosen]
    if dry_run:
        say(_overview(run, fresh, todo))
        return _plan(run, fresh, todo) if as_json else None
    with RunFolder(run.folder).lock():
        if fresh:
            run.throw_away([chosen])
        say(_overview(run, fresh, todo))
        done = [run.stage(one) for one in todo][-1]
        _report(run)
    return {"stage": name, "path": str(run.folder / name), **done} if as_json else None


def choose_stage(kind: str, path: Path, stage: str | None) -> str:
    """Name of the stage that a verb means. Raises ConfigError where that is not one."""
    raw = read_toml(path).get("stage", [])
    tables = [table for table in raw if isinstance(table, dict)] if isinstance(raw, list) else []
    names = [str(table.get("name")) for table in tables if table.get("kind") == kind]
    if stage is not None:
        if stage in names:
            return stage
        hint = suggestion(stage, names) or f"Stages of that kind: {', '.join(names) or 'none'}."
        raise ConfigError(f"{path}: --stage: wanted a stage of kind {kind}, came {stage!r}. {hint}")
    if len(names) != 1:
        listed = f"Choose with --stage: {', '.join(names)}." if names else "Add one, or use another verb."
        raise ConfigError(f"{path}: wanted one stage of kind {kind}, came {len(names)}. {listed}")
    return names[0]


def _overview(run: Run, fresh: bool, only: Sequence[AnyStage] | None = None) -> Table:
    """The stages, or these of them, and how far they are."""
    table = Table(title=f"{run.recipe.name} in {run.folder}, seed {run.recipe.seed}", title_justify="left")
    for column in ("stage", "kind", "from", "state"):
        table.add_column(column)
    for row in _plan(run, fresh, only)["stages"]:
        table.add_row(row["name"], row["kind"], ", ".join(row["from"]), row["state"])
    return table


def _plan(run: Run, fresh: bool, only: Sequence[AnyStage] | None = None) -> dict[str, Any]:
    """What would run, for `--dry-run`."""
    rows = []
    for stage in run.recipe.stage if only is None else only:
        afresh = fresh and (only is None or stage is only[-1])
        state = "to do" if afresh or not run.is_done(stage) else "done"
        if state == "to do" and not afresh and (run.folder / stage.name / "stage.json").exists():
            state = "begun"
        rows.append({"name": stage.name, "kind": stage.kind, "from": references(stage), "state": state})
    return {"recipe": run.recipe.name, "folder": str(run.folder), "seed": run.recipe.seed, "stages": rows}


def _makes_model(stage: AnyStage | None) -> bool:
    return stage is not None and not isinstance(stage, TokenizerStage)


def _given(name: str) -> Path:
    """The path that a reference to no stage means; a model's name is looked up."""
    return resolve(name) if is_name(name) else Path(name)


def _path_digest(path: Path) -> str:
    """Digest of a file, or of a model folder's weights; the bare path when it holds neither."""
    from zifio.checkpoint import file_digest, model_digest

    if any(path.glob("model.safetensors*")):
        return model_digest(path)
    for candidate in (path, path / "tokenizer.json"):
        if candidate.is_file():
            return file_digest(candidate)
    return str(path)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """`lr: 0.1 -> 0.2` for the keys that differ, nested ones by their path."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(_differences(old, new, f"{prefix}{key}."))
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return ", ".join(filter(None, found))


def _read_mark(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """What `stage.json` or `done.json` says. Raises ConfigError when it is torn."""
    try:
        content = json.loads(path.read_text())
        return {**content, **{key: content[key] for key in keys}}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: wanted a JSON object with {', '.join(keys)}, came something else. "
            "Start this stage over with --fresh."
        ) from None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
