"""C1: RL from bases that have seen no, few or many workings, with and without supervised fine-tuning before it.

Run: `zifio lab run C1 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Probe, Table, Verdict, file_in
from zifio.lab.effects import paired, share
from zifio.lab.picture import COLOURS
from zifio.lab.trial import at_budget
from zifio.tasks.catalog import read_task

ARMS = ("zero", "cold", "sft", "shuffled")
CHANCE, IGNITED = 0.1, 0.8
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "size": "XXS", "terms": 3, "doses": [0.0, 0.3], "base_steps": 6, "documents": 16, "worked": 16,
        "rl_steps": 3, "prompts": 2, "cold_steps": 2, "sft_steps": 6, "every": 1, "problems": 8, "pretrain": {},
    },
    "cpu": {
        "seeds": 10, "size": "XS", "terms": 6, "doses": [0.0, 0.1, 0.3], "base_steps": 240, "documents": 128,
        "worked": 256, "rl_steps": 16, "prompts": 16, "cold_steps": 12, "sft_steps": 32, "every": 4, "problems": 128,
        "pretrain": {},
    },
    "gpu": {
        "seeds": 10, "size": "M", "terms": 12, "doses": [0.0, 1e-3, 0.01, 0.05, 0.25], "base_steps": 3000,
        "documents": 512, "worked": 1024, "rl_steps": 200, "prompts": 64, "cold_steps": 48, "sft_steps": 600,
        "every": 20, "problems": 512, "pretrain": {"device": "cuda", "precision": "bf16"},
    },
}  # fmt: skip


def _tag(dose: float) -> str:
    return f"{round(1000 * dose):03d}"


def _arms(settings: Table, dose: float) -> tuple[str, ...]:
    """The control of shuffled steps is for the highest dose, where there is a skill to disturb."""
    return ARMS if dose == settings["doses"][-1] else ARMS[:-1]


def _design(settings: Table, seed: int) -> list[Design]:
    terms, device = settings["terms"], settings["pretrain"]
    task = {"name": "chain_mod", "min_terms": terms, "max_terms": terms, "working": "totals"}
    looks = {"held_out": s.look(settings["every"], settings["problems"])} | device
    worked, shuffled = file_in("worked.jsonl"), file_in("shuffled.jsonl")
    stages, arms = [s.tokenizer()], []
    for dose in settings["doses"]:
        tag = _tag(dose)
        base, steps = f"base-{tag}", settings["rl_steps"]
        model = s.llama(settings["size"])
        stages.append(s.pretrain(base, task, model, settings["base_steps"], settings["documents"], dose, **device))
        stages.append(s.rl(f"zero-{tag}", base, steps, settings["prompts"], **looks))
        for name, data in (("cold", worked), ("shuffled", shuffled)):
            if name not in _arms(settings, dose):
                continue
            stages.append(s.sft(f"{name}-start-{tag}", base, data, settings["cold_steps"], **device))
            stages.append(s.rl(f"{name}-{tag}", f"{name}-start-{tag}", steps, settings["prompts"], **looks))
        stages.append(s.sft(f"sft-{tag}", base, worked, settings["sft_steps"], **looks))
        starts = {"zero": base, "cold": f"cold-start-{tag}", "sft": base, "shuffled": f"shuffled-start-{tag}"}
        kinds = {"zero": "rl", "cold": "rl", "sft": "sft", "shuffled": "rl"}
        arms += [Arm(f"{n}-{tag}", f"{n}-{tag}", {"kind": kinds[n], "from": starts[n]}) for n in _arms(settings, dose)]
    files = {
        "worked.jsonl": partial(_rows, task, settings["worked"], seed),
        "shuffled.jsonl": partial(
            _rows, task | {"name": "flawed_mod", "rotten": 1.0, "rot": "shuffled"}, settings["worked"], seed
        ),
    }
    return [Design(stages, task, arms, [Probe(task)], files)]


def _rows(table: Table, n: int, seed: int) -> list[Table]:
    """Conversations with workings; the same problems whatever is wrong with them."""
    task, source = read_task(table, "C1"), read_task(_gold(table), "C1")
    problems = [source.problem("train", index, 1_000_000 + seed) for index in range(n)]
    return [{"prompt": one.prompt, "response": task.document(one, True)} for one in problems]


def _gold(table: Table) -> Table:
    return {key: value for key, value in table.items() if key not in ("rotten", "rot")} | {"name": "chain_mod"}


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per dose and arm: accuracy at the FLOPs that all arms of the dose have, and at the end."""
    trial = parts["main"]
    out: Table = {}
    for dose in settings["doses"]:
        tag, curves = _tag(dose), {}
        for name in _arms(settings, dose):
            before = f"{name}-start-{tag}" if name in ("cold", "shuffled") else None
            spent = trial.done(before)["flops"] if before else 0.0
            curves[name] = trial.curve(f"{name}-{tag}", spent=spent)
        budget = min(curve[-1][0] for curve in curves.values())
        out[tag] = {
            "dose": dose,
            "base": curves["zero"][0][1],
            "budget": budget,
            "at_budget": {name: at_budget(_reach(curve, budget), budget) for name, curve in curves.items()},
            "end": {name: curve[-1][1] for name, curve in curves.items()},
            "flops": {name: curve[-1][0] for name, curve in curves.items()},
            "length": {name: _last(trial, f"{name}-{tag}", "mean_response_tokens") for name in curves},
            "worked": {name: _last(trial, f"{name}-{tag}", "process_pass_at_1") for name in curves},
        }
    return out


def _reach(curve: list[tuple[float, float]], budget: float) -> list[tuple[float, float]]:
    """A cold start that alone costs more than the budget counts as it stands after it."""
    return curve if curve[0][0] <= budget else [(budget, curve[0][1])]


def _last(trial: Any, stage: str, key: str) -> float:
    return trial.curve(stage, key)[-1][1]


def _judge(rows: list[Table], settings: Table) -> Verdict:
    tags = [_tag(dose) for dose in settings["doses"]]
    none, most = tags[0], tags[-1]
    ignited = {tag: share([row[tag]["end"]["zero"] >= IGNITED for row in rows]) for tag in tags}
    gaps = {
        tag: paired(
            [row[tag]["at_budget"]["zero"] for row in rows], [row[tag]["at_budget"]["cold"] for row in rows], tag
        )
        for tag in tags
    }
    rescued = share([row[none]["end"]["cold"] >= IGNITED for row in rows])
    gap = gaps[most]
    if gap.high < -0.02 or ignited[most][0] < 0.5:
        word = "refuted"
    elif ignited[none][1][0] > 0.5:
        word = "supported"
    elif gap.low >= -0.02 and ignited[none][1][1] < 0.5:
        word = "narrowed"
    else:
        word = "underpowered"
    n = len(rows)
    lit = ", ".join(f"{settings['doses'][i]:g}: {round(ignited[tag][0] * n)} of {n}" for i, tag in enumerate(tags))
    why = (
        f"RL alone ignites by the share of worked text: {lit}. At equal FLOPs and the highest share it is "
        f"{gap.points()} ahead of a cold start of {settings['worked']} worked answers, which by itself makes "
        f"{round(rescued[0] * n)} of {n} bases without workings ignite."
    )
    figures = {
        "ignited": {t: [v, *i] for t, (v, i) in ignited.items()},
        "zero_minus_cold": {t: [*g] for t, g in gaps.items()},
    }
    return Verdict(word, why, figures | {"cold_rescues": [rescued[0], *rescued[1]]})


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    axes = canvas.subplots(1, 2, sharey=True)
    tags = list(rows[0])
    for panel, key, title in ((axes[0], "at_budget", "at equal FLOPs"), (axes[1], "end", "at the end of each arm")):
        for place, name in enumerate(ARMS[:-1]):
            for row in rows:
                panel.plot(
                    range(len(tags)), [row[t][key][name] for t in tags], color=COLOURS[place], linewidth=0.5, alpha=0.35
                )
            means = [sum(row[t][key][name] for row in rows) / len(rows) for t in tags]
            panel.plot(range(len(tags)), means, color=COLOURS[place], marker="o", markersize=4, label=name)
        shuffled = [row[tags[-1]][key]["shuffled"] for row in rows]
        panel.scatter([len(tags) - 1] * len(shuffled), shuffled, color=COLOURS[3], s=12, label="shuffled", zorder=3)
        panel.axhline(CHANCE, linestyle=":", linewidth=1, color="#5d6b7a")
        panel.set_xticks(range(len(tags)), [f"{rows[0][t]['dose']:g}" for t in tags])
        panel.set_xlabel("share of the base's text that shows a working")
        panel.set_title(title)
    axes[0].set_ylabel("right, held-out")
    axes[0].legend()


EXPERIMENT = Experiment(
    "C1",
    "SFT is unnecessary",
    SCALES,
    _design,
    _measure,
    _judge,
    _draw,
    "Accuracy of each arm by dose; thin lines are seeds.",
)
