"""C3: a fixed pool of worked sums, small and clean, large and clean, or large and rotten in one of three ways.

Run: `zifio lab run C3 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.controls import check_equal
from zifio.lab.design import Arm, Design, Experiment, Probe, Table, Verdict, file_in
from zifio.lab.effects import paired
from zifio.lab.picture import bars
from zifio.tasks.catalog import read_task

ROTS = ("answer", "rule", "shuffled")
ARMS = ("clean-few", "clean", *ROTS)
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "size": "XXS", "terms": 3, "few": 8, "times": 10, "steps": 4, "sequences": 8, "problems": 16,
        "n": 2, "device": {},
    },
    "cpu": {
        "seeds": 5, "size": "XS", "terms": 6, "few": 1000, "times": 10, "steps": 240, "sequences": 128, "problems": 256,
        "n": 4, "device": {},
    },
    "gpu": {
        "seeds": 5, "size": "M", "terms": 12, "few": 10_000, "times": 10, "steps": 3000, "sequences": 512,
        "problems": 512, "n": 16, "device": {"device": "cuda", "precision": "bf16"},
    },
}  # fmt: skip


def _design(settings: Table, seed: int) -> list[Design]:
    terms, device, steps = settings["terms"], settings["device"], settings["steps"]
    task = {"name": "chain_mod", "min_terms": terms, "max_terms": terms, "working": "totals"}
    still = {"kind": "adamw", "lr": 1e-9, "weight_decay": 0.0}  # a stage that trains wants a base: here random weights
    model = s.llama(settings["size"])
    stages = [s.tokenizer(), s.pretrain("random", task, model, 1, 8, 1.0, optim=still, **device)]
    learning = {"sequences": settings["sequences"], "optim": s.muon(warmup_steps=min(20, steps // 4))} | device
    stages += [s.sft(name, "random", file_in(f"{name}.jsonl"), steps, **learning) for name in ARMS]
    stages.append(s.examine("final", [*ARMS], settings["problems"], settings["n"]))
    greedy = {"temperature": 0.0, "max_new_tokens": 32}
    stages.append(s.examine("greedy", [*ARMS], settings["problems"], 1, sampling=greedy))
    few, many = settings["few"], settings["few"] * settings["times"]
    tables = {"clean-few": task, "clean": task}
    tables |= {rot: task | {"name": "flawed_mod", "rotten": 1.0 if rot == "rule" else 0.5, "rot": rot} for rot in ROTS}
    files = {
        f"{name}.jsonl": partial(_rows, tables[name], task, few if name == "clean-few" else many, seed) for name in ARMS
    }
    arms = [Arm(name, name, {"kind": "sft", "from": "random", "steps": steps}) for name in ARMS]
    return [Design(stages, task, arms, [Probe(task)], files)]


def _rows(table: Table, honest: Table, n: int, seed: int) -> list[Table]:
    """The first n documents of a pool whose problems are the same whatever is wrong with it."""
    task, source = read_task(table, "C3"), read_task(honest, "C3")
    problems = [source.problem("train", index, 1_000_000 + seed) for index in range(n)]
    return [{"prompt": one.prompt, "response": task.document(one, True)} for one in problems]


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per arm: accuracy at T = 1 and greedy, on problems with a 7 and without, by gold; work, which must be equal."""
    part = parts["main"]
    work = {name: part.done(name)["flops"] for name in ARMS}
    check_equal(work, 0.05)
    final, greedy = part.results("final"), part.results("greedy")
    out: Table = {"flops": work, "right": {}, "greedy": {}, "sevens": {}, "others": {}}
    for name in ARMS:
        out["right"][name] = final[name]["pass_at_1"]
        out["greedy"][name] = greedy[name]["pass_at_1"]
        for key, has_seven in (("sevens", True), ("others", False)):
            chosen = [row for row in part.replies("final", name) if ("7" in row["prompt"]) == has_seven]
            out[key][name] = sum(row["outcome"] == "right" for row in chosen) / max(1, len(chosen))
    return out


def _judge(rows: list[Table], settings: Table) -> Verdict:
    right = {name: [row["right"][name] for row in rows] for name in ARMS}
    sevens = {name: [row["sevens"][name] for row in rows] for name in ARMS}
    of_few = {name: paired(right[name], right["clean-few"], name, "few") for name in ARMS[1:]}
    of_many = {name: paired(right[name], right["clean"], name, "many") for name in ROTS}
    rule = paired(sevens["rule"], sevens["clean"], "rule", "sevens")
    if all(effect.low >= -0.02 for effect in of_many.values()):
        word = "refuted"
    elif all(of_few[rot].high < 0 for rot in ROTS):
        word = "supported"
    elif of_few["answer"].low >= 0 and rule.high < 0:
        word = "narrowed"
    else:
        word = "underpowered"
    n = len(rows)
    levels = ", ".join(f"{name} {sum(values) / n:.3f}" for name, values in right.items())
    by_rule = {key: sum(row[key]["rule"] for row in rows) / n for key in ("sevens", "others")}
    gaps = ", ".join(f"{name} {of_few[name].points()}" for name in ROTS)
    why = (
        f"Right at equal FLOPs, {settings['few']} clean documents against {settings['times']} times as many: {levels}. "
        f"Against the few clean ones: {gaps}. The systematic error: {by_rule['sevens']:.3f} on problems with a 7, "
        f"{by_rule['others']:.3f} on others; on the former {rule.points()} against clean."
    )
    figures: Table = {"of_few": {name: [*e] for name, e in of_few.items()}}
    return Verdict(word, why, figures | {"of_many": {name: [*e] for name, e in of_many.items()}, "rule": [*rule]})


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    titles = {"right": "all problems", "sevens": "with a 7", "others": "without"}
    for axes, (key, title) in zip(canvas.subplots(1, 3, sharey=True), titles.items(), strict=True):
        bars(axes, {name: [row[key][name] for row in rows] for name in ARMS}, "right by gold" if key == "right" else "")
        axes.set_title(title)


EXPERIMENT = Experiment(
    "C3", "Data as a moat", SCALES, _design, _measure, _judge, _draw, "Accuracy by gold of each pool of documents."
)
