"""C6: RL with verifiers that are noisy, exploitable, graded or learned, from one base; gold is the honest verifier.

Run: `zifio lab run C6 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Probe, Table, Verdict
from zifio.lab.effects import paired, share
from zifio.lab.picture import gold_by_step

NOISE = {"j10": 1.0, "j06": 0.6, "j04": 0.4, "j02": 0.2, "j00": 0.0, "jm02": -0.2}
OTHERS = ("j02-long", "zero-ok", "graded", "learned")
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "size": "XXS", "terms": 2, "base_steps": 60, "documents": 32, "rl_steps": 2, "prompts": 2,
        "rm_problems": 24, "rm_steps": 2, "every": 1, "problems": 8, "device": {},
    },
    "cpu": {
        "seeds": 5, "size": "XS", "terms": 6, "base_steps": 360, "documents": 128, "rl_steps": 20, "prompts": 16,
        "rm_problems": 256, "rm_steps": 40, "every": 4, "problems": 128, "device": {},
    },
    "gpu": {
        "seeds": 10, "size": "M", "terms": 12, "base_steps": 48, "documents": 1024, "rl_steps": 200, "prompts": 64,
        "rm_problems": 4096, "rm_steps": 400, "every": 20, "problems": 512, "device": s.CUDA,
    },
}  # fmt: skip


def _noisy(task: Table, j: float) -> Table:
    """As many false accepts as false rejects."""
    error = round((1 - j) / 2, 6)
    return task | {"name": "flawed_mod", "false_accept": error, "false_reject": error}


def _design(settings: Table, seed: int) -> list[Design]:
    terms, device, steps = settings["terms"], settings["device"], settings["rl_steps"]
    task = {"name": "chain_mod", "min_terms": terms, "max_terms": terms, "working": "totals"}
    flawed = task | {"name": "flawed_mod"}
    looks = {"guard": s.guard(task, settings["every"], settings["problems"] // 2)} | device
    model, documents = s.llama(settings["size"]), settings["documents"]
    stages = [s.tokenizer(), s.pretrain("base-300", task, model, settings["base_steps"], documents, 0.3, **device)]
    if device:
        stages = [s.taught("base-300", settings["base_steps"], documents, **device)]
    tasks = {name: _noisy(task, j) for name, j in NOISE.items()}
    tasks |= {"j02-long": tasks["j02"], "zero-ok": flawed | {"loophole": "zero"}, "graded": flawed | {"graded": True}}
    for name, one in tasks.items():
        long = 4 if name == "j02-long" else 1
        stages.append(s.rl(name, "base-300", long * steps, settings["prompts"], task=one, **looks))
    own = s.for_eval(device)
    stages.append(s.sample("replies", "base-300", settings["rm_problems"], 4, keep="all", **own))
    reward = {"kind": "reward", "name": "judge", "from": "base-300", "data": "replies", "steps": settings["rm_steps"]}
    stages.append(reward | {"pairs": 32, "optim": s.adam(1e-3), "rows": {"row_tokens": 96}} | device)
    learned = {"accuracy_weight": 0.0, "reward_model": "judge"}
    stages.append(s.rl("learned", "base-300", steps, settings["prompts"], **learned, **looks))
    stages.append(s.examine("final", ["base-300", *tasks, "learned"], 2 * settings["problems"], 4, **own))
    keys = ("false_accept", "false_reject", "loophole", "graded")
    defaults = {"false_accept": 0.0, "false_reject": 0.0, "loophole": "none", "graded": False}
    arms = [
        Arm(name, name, {"kind": "rl", **{f"task.{key}": (defaults | one)[key] for key in keys}})
        for name, one in tasks.items()
    ]
    arms.append(Arm("learned", "learned", {"reward_model": "judge", "accuracy_weight": 0.0}))
    probes = [Probe(task)] + [
        Probe(tasks[name], 1 - tasks[name]["false_reject"], tasks[name]["false_accept"]) for name in NOISE
    ]
    return [Design(stages, task, arms, [*probes, Probe(tasks["zero-ok"])])]


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per arm: gold at each look, and how often its own verifier is content at the end."""
    trial = parts["main"]
    out: Table = {"steps": [], "gold": {}, "proxy": {}, "end": {}}
    found = trial.results("final")
    out["end"] = {name: found[name]["pass_at_1"] for name in ("base-300", *(arm.stage for arm in trial.design.arms))}
    out["length"] = {name: found[name]["mean_response_tokens"] for name in out["end"]}
    for arm in trial.design.arms:
        record = trial.record(arm.stage)
        steps, gold = record.series("guard/gold")
        out["steps"] = list(steps) if arm.name == "j10" else out["steps"]
        out["gold"][arm.name] = gold
        out["proxy"][arm.name] = record.series("guard/proxy")[1][-1]
    return out


def _judge(rows: list[Table], settings: Table) -> Verdict:
    ends = {arm: [row["end"][arm] for row in rows] for arm in (*NOISE, *OTHERS)}
    base = [row["end"]["base-300"] for row in rows]
    behind = {arm: paired(ends[arm], ends["j10"], arm) for arm in ends}
    gains = {arm: paired(ends[arm], base, arm, "gain") for arm in ends}
    noisy, hole, graded = behind["j04"], behind["zero-ok"], behind["graded"]
    if noisy.high < -0.2 and hole.low > -0.1:
        word = "refuted"
    elif hole.low > -0.1 and graded.high < -0.1:
        word = "supported"
    elif noisy.low > -0.2 and hole.high < -0.3 and graded.low > -0.1:
        word = "narrowed"
    else:
        word = "underpowered"
    middle = {arm: sum(values) / len(values) for arm, values in ends.items()}
    hacked = share([value < 0.3 for value in ends["zero-ok"]])
    why = (
        f"Gold at the end: J = 1 {middle['j10']:.3f}, .6 {middle['j06']:.3f}, .4 {middle['j04']:.3f}, .2 "
        f"{middle['j02']:.3f} ({middle['j02-long']:.3f} with four times the steps), 0 {middle['j00']:.3f}, -.2 "
        f"{middle['jm02']:.3f}. Against J = 1: noise of J = .4 {noisy.points()}; the loophole {hole.points()}, gold "
        f"below .3 in {round(hacked[0] * len(rows))} of {len(rows)}; a graded reward {graded.points()}; a learned one "
        f"{behind['learned'].points()}."
    )
    figures = {"behind_j10": {a: [*e] for a, e in behind.items()}, "gain": {a: [*e] for a, e in gains.items()}}
    return Verdict(word, why, figures)


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    gold_by_step(canvas, rows, (*NOISE, "zero-ok", "graded"), (*NOISE, *OTHERS))


EXPERIMENT = Experiment(
    "C6",
    "RL works where victory is binary",
    SCALES,
    _design,
    _measure,
    _judge,
    _draw,
    "Gold of each arm by step, and at the end.",
)
