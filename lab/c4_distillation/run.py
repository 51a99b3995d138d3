"""C4: students of a wide and of a collapsed teacher, what they can still say, and what a new rule costs them.

Run: `zifio lab run C4 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Table, Verdict, file_in
from zifio.lab.effects import paired
from zifio.lab.picture import bars
from zifio.tasks.catalog import read_task

STUDENTS = ("traces", "forward", "reverse", "wide-traces", "clean")
OF_COLLAPSED = ("traces", "forward", "reverse")
MODELS = ("base", "wide", "collapsed", *STUDENTS)
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "size": "XXS", "base_steps": 10, "documents": 16, "rl_steps": [2, 3], "prompts": 2, "traces": 16,
        "steps": 2, "kl_steps": 2, "rule_steps": 2, "problems": 8, "n": 8, "k": 2, "keep": "all", "device": {},
    },
    "cpu": {
        "seeds": 5, "size": "XS", "base_steps": 180, "documents": 128, "rl_steps": [50, 110], "prompts": 32,
        "traces": 4096, "steps": 90, "kl_steps": 60, "rule_steps": 12, "problems": 64, "n": 32, "k": 16,
        "keep": "right", "device": {},
    },
    "gpu": {
        "seeds": 5, "size": "M", "base_steps": 1000, "documents": 512, "rl_steps": [100, 400], "prompts": 64,
        "traces": 16384, "steps": 400, "kl_steps": 200, "rule_steps": 40, "problems": 512, "n": 64, "k": 32,
        "keep": "right", "device": {"device": "cuda", "precision": "bf16"},
    },
}  # fmt: skip


def _design(settings: Table, seed: int) -> list[Design]:
    device, task = settings["device"], {"name": "splits"}
    model, short, long = s.llama(settings["size"]), *settings["rl_steps"]
    prompts, steps = settings["prompts"], settings["steps"]
    stages = [
        s.tokenizer(),
        s.pretrain("base", task | {"junk": 0.3}, model, settings["base_steps"], settings["documents"], 0.0, **device),
        s.rl("wide", "base", short, prompts, **device),
        s.rl("collapsed", "base", long, prompts, **device),
    ]
    for teacher in ("wide", "collapsed"):
        stages.append(s.sample(f"{teacher}-text", teacher, settings["traces"], 1, keep=settings["keep"]))
    given = {"traces": "collapsed", "wide-traces": "wide"}
    for name, teacher in given.items():
        data = {"data": f"{teacher}-text"}
        stages.append(s.distill(name, "base", teacher, "traces", steps, **data, **device))
    forward = {"data": "collapsed-text"} | device
    stages.append(s.distill("forward", "base", "collapsed", "forward_kl", settings["kl_steps"], **forward))
    stages.append(s.distill("reverse", "base", "collapsed", "reverse_kl", settings["kl_steps"], **device))
    stages.append(s.sft("clean", "base", file_in("clean.jsonl"), steps, **device))
    stages.append(s.examine("final", [*MODELS], settings["problems"], settings["n"], ks=[1, settings["k"]]))
    rule = task | {"odd_first": True}
    for name in MODELS[1:]:
        stages.append(s.rl(f"rule-{name}", name, settings["rule_steps"], prompts, task=rule, **device))
    after = [f"rule-{name}" for name in MODELS[1:]]
    stages.append(s.examine("after", [*MODELS, *after], settings["problems"], settings["n"] // 4, task=rule))
    arms = [
        Arm("wide", "wide", {"kind": "rl", "steps": short, "from": "base"}),
        Arm("collapsed", "collapsed", {"kind": "rl", "steps": long, "from": "base"}),
        Arm("traces", "traces", {"method": "traces", "teacher": "collapsed", "data": "collapsed-text"}),
        Arm("wide-traces", "wide-traces", {"method": "traces", "teacher": "wide", "data": "wide-text"}),
        Arm("forward", "forward", {"method": "forward_kl", "teacher": "collapsed", "student_share": 0.0}),
        Arm("reverse", "reverse", {"method": "reverse_kl", "teacher": "collapsed", "student_share": 1.0}),
        Arm("clean", "clean", {"kind": "sft", "from": "base"}),
        *(Arm(f"rule-{name}", f"rule-{name}", {"from": name, "task.odd_first": True}) for name in MODELS[1:]),
    ]
    return [Design(stages, task, arms, [], {"clean.jsonl": partial(_clean, task, settings["traces"], seed)})]


def _clean(table: Table, n: int, seed: int) -> list[Table]:
    """Right and diverse documents of the task."""
    task = read_task(table, "C4")
    problems = [task.problem("train", index, 1_000_000 + seed) for index in range(n)]
    return [{"prompt": one.prompt, "response": task.document(one, False)} for one in problems]


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per model: accuracy, distinct right answers among k, nats a reply, accuracy by the new rule before and after."""
    part, k = parts["main"], str(settings["k"])
    final, after = part.results("final"), part.results("after")
    return {
        "accuracy": {name: final[name]["pass_at_1"] for name in MODELS},
        "distinct": {name: final[name].get("distinct_right_at_k", {}).get(k) for name in MODELS},
        "entropy": {name: final[name].get("reply_entropy") for name in MODELS},
        "rule_before": {name: after[name]["pass_at_1"] for name in MODELS},
        "rule_after": {name: after[f"rule-{name}"]["pass_at_1"] for name in MODELS[1:]},
    }


def _judge(rows: list[Table], settings: Table) -> Verdict:
    if any(row["distinct"][name] is None for row in rows for name in MODELS[1:]):
        return Verdict("underpowered", f"Some model has no problem with {settings['k']} right replies in a seed.")
    distinct = {name: [row["distinct"][name] for row in rows] for name in MODELS[1:]}
    rule = {name: [row["rule_after"][name] for row in rows] for name in MODELS[1:]}
    of_teacher = {name: paired(distinct[name], distinct["collapsed"], name, "teacher") for name in OF_COLLAPSED}
    of_teacher["wide-traces"] = paired(distinct["wide-traces"], distinct["wide"], "wide", "teacher")
    of_clean = {name: paired(distinct[name], distinct["clean"], name, "clean") for name in OF_COLLAPSED}
    debt = {
        name: paired(rule[name], rule["clean"], name, "debt") for name in (*OF_COLLAPSED, "collapsed", "wide-traces")
    }
    has_debt = any(debt[name].high < 0 for name in OF_COLLAPSED)
    loses = all(of_teacher[name].high < -0.02 for name in ("forward", "reverse"))
    if any(effect.high >= 0 for effect in of_clean.values()) and all(effect.low >= 0 for effect in of_clean.values()):
        word = "refuted"
    elif loses and has_debt:
        word = "supported"
    elif all(effect.high < 0 for effect in of_clean.values()) and all(of_teacher[n].low > -0.05 for n in OF_COLLAPSED):
        word = "narrowed"
    elif not has_debt and all(debt[name].low >= 0 for name in OF_COLLAPSED):
        word = "refuted"
    else:
        word = "underpowered"
    middle = {
        key: {name: sum(row[key][name] for row in rows) / len(rows) for name in MODELS[1:]}
        for key in ("accuracy", "distinct", "rule_after")
    }
    shown = "; ".join(
        f"{name} {middle['accuracy'][name]:.2f}, {middle['distinct'][name]:.2f}, {middle['rule_after'][name]:.2f}"
        for name in MODELS[1:]
    )
    gaps = ", ".join(f"{name} {of_teacher[name].points()}" for name in of_teacher)
    debts = ", ".join(f"{name} {debt[name].points()}" for name in debt)
    why = (
        f"Accuracy, distinct among {settings['k']} right answers, accuracy by the new rule after RL: {shown}. "
        f"Distinct against the own teacher: {gaps}. By the new rule against the clean control: {debts}."
    )
    figures = {"of_teacher": of_teacher, "of_clean": of_clean, "debt": debt}
    return Verdict(word, why, {key: {name: [*e] for name, e in one.items()} for key, one in figures.items()})


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    titles = {"accuracy": "right", "distinct": "distinct among right", "rule_after": "right by the new rule, after RL"}
    for axes, (key, title) in zip(canvas.subplots(1, 3), titles.items(), strict=True):
        bars(axes, {name: [row[key][name] or 0.0 for row in rows] for name in MODELS[1:]}, "")
        axes.set_title(title, fontsize=9)


EXPERIMENT = Experiment(
    "C4",
    "Distillation",
    SCALES,
    _design,
    _measure,
    _judge,
    _draw,
    "Accuracy, diversity, and accuracy by a new rule after RL.",
)
