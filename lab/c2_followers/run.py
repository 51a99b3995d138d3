"""C2: what an explorer pays for RL to a level, and what followers pay with it as a teacher, in four ledgers.

Run: `zifio lab run C2 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Probe, Table, Verdict
from zifio.lab.effects import Effect, paired_ratio
from zifio.lab.picture import COLOURS

METHODS = {"traces": "traces", "forward": "forward_kl", "reverse": "reverse_kl"}
TASKS = ("sums", "splits")
LEDGERS = ("a", "b", "c", "d")
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "size": "XXS", "keep": "all", "taus": {"sums": [0.0], "splits": [0.0]}, "terms": 2,
        "every": 1, "problems": 8,
        "sums": {"base_steps": 60, "documents": 32, "rl_steps": 3, "prompts": 2, "traces": 64, "steps": 3},
        "splits": {"base_steps": 60, "documents": 32, "rl_steps": 3, "prompts": 2, "traces": 64, "steps": 3,
                   "junk": 0.0},
        "device": {},
    },
    "cpu": {
        "seeds": 5, "size": "XS", "keep": "right", "taus": {"sums": [0.8, 0.9], "splits": [0.6, 0.75]}, "terms": 6,
        "every": 1, "problems": 64,
        "sums": {"base_steps": 360, "documents": 128, "rl_steps": 20, "prompts": 16, "traces": 1024, "steps": 24},
        "splits": {
            "base_steps": 180, "documents": 128, "rl_steps": 60, "prompts": 32, "traces": 4096, "steps": 60,
            "junk": 0.3,
        },
        "device": {},
    },
    "gpu": {
        "seeds": 5, "size": "M", "keep": "right", "taus": {"sums": [0.8, 0.9, 0.95], "splits": [0.8, 0.9, 0.95]},
        "terms": 12, "every": 2, "problems": 512,
        "sums": {"base_steps": 48, "documents": 1024, "rl_steps": 200, "prompts": 64, "traces": 16384, "steps": 200},
        "splits": {
            "base_steps": 48, "documents": 1024, "rl_steps": 200, "prompts": 64, "traces": 16384, "steps": 200,
            "junk": 0.3,
        },
        "device": s.CUDA,
    },
}  # fmt: skip


def _design(settings: Table, seed: int) -> list[Design]:
    terms = settings["terms"]
    sums = {"name": "chain_mod", "min_terms": terms, "max_terms": terms, "working": "totals"}
    splits = {"name": "splits"}
    text = splits | {"junk": settings["splits"]["junk"]}
    return [_part(settings, "sums", sums, "base-300", sums, 0.3), _part(settings, "splits", splits, "base", text, 0.0)]


def _part(settings: Table, name: str, task: Table, base: str, text: Table, p_cot: float) -> Design:
    """Explorer, its traces, and every follower from the same base."""
    own, device = settings[name], settings["device"]
    looks = {"held_out": s.look(settings["every"], settings["problems"])} | device
    model = s.llama(settings["size"])
    stages = [
        s.tokenizer(),
        s.pretrain(base, text, model, own["base_steps"], own["documents"], p_cot, **device),
        s.rl("explorer", base, own["rl_steps"], own["prompts"], **looks),
        s.sample("text", "explorer", own["traces"], 1, keep=settings["keep"], **s.for_eval(device)),
    ]
    if device:
        stages[:2] = [s.taught(base, own["base_steps"], own["documents"], **device)]
    arms = [Arm("explorer", "explorer", {"kind": "rl", "from": base})]
    for short, method in METHODS.items():
        given = {} if method == "reverse_kl" else {"data": "text"}
        stages.append(s.distill(short, base, "explorer", method, own["steps"], **given, **looks))
        arms.append(Arm(short, short, {"method": method, "teacher": "explorer", "from": base}))
    return Design(stages, task, arms, [Probe(task)] if name == "sums" else [], name=name)


def reached(curve: list[tuple[float, float]], tau: float) -> int | None:
    """The place of the first of two looks in a row at tau or above: one alone may be luck."""
    for place in range(len(curve) - 1):
        if min(curve[place][1], curve[place + 1][1]) >= tau:
            return place
    return None


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per task and tau: what the explorer paid, what each follower pays in ledgers a and b; None if it never came."""
    out: Table = {}
    for name in TASKS:
        part = parts[name]
        explorer, text = part.curve("explorer"), part.done("text")
        costs: Table = {}
        for tau in settings["taus"][name]:
            place = reached(explorer, tau)
            costs[f"{tau:g}"] = {"explorer": None if place is None else explorer[place][0]}
            for method in METHODS:
                costs[f"{tau:g}"][method] = _cost(part, method, tau, text)
        ends = {arm: part.curve(arm)[-1][1] for arm in ("explorer", *METHODS)}
        out[name] = {"base": explorer[0][1], "costs": costs, "total": part.done("explorer")["flops"], "ends": ends}
        out[name]["text"] = {"flops": text["flops"], "kept": text["kept"]}
    return out


def _cost(part: Any, method: str, tau: float, text: Table) -> Table | None:
    """Ledgers a and b of a follower where it reaches tau: of the teacher's text it pays for what it has read."""
    curve, done = part.curve(method), part.done(method)
    place = reached(curve, tau)
    if place is None:
        return None
    of_teacher = done.get("teacher_flops", 0.0) / done["flops"]
    steps = part.record(method).series("held_out/pass_at_1")[0]
    read = 0.0 if method == "reverse" else min(1.0, steps[place] * 64 / text["kept"])
    alone = curve[place][0] * (1 - of_teacher)
    return {"a": alone, "b": curve[place][0] + read * text["flops"], "steps": steps[place]}


def highest(rows: list[Table], name: str) -> str | None:
    """The highest tau that the explorer and some follower reach in every seed."""
    taus = [tau for tau in rows[0][name]["costs"] if _complete(rows, name, tau)]
    return max(taus, key=float) if taus else None


def _complete(rows: list[Table], name: str, tau: str) -> list[str]:
    """The followers that reach tau in every seed, if the explorer does."""
    every = [row[name]["costs"][tau] for row in rows]
    if any(not costs["explorer"] for costs in every):
        return []
    return [method for method in METHODS if all(costs[method] and costs[method]["a"] > 0 for costs in every)]


def _ratios(rows: list[Table], name: str, tau: str, method: str) -> dict[str, Effect]:
    """Explorer's over follower's FLOPs in each ledger."""
    costs = [row[name]["costs"][tau] for row in rows]
    explorer = [one["explorer"] for one in costs]
    totals = [row[name]["total"] for row in rows]
    paid = {
        "a": [one[method]["a"] for one in costs],
        "b": [one[method]["b"] for one in costs],
        "c": [one[method]["b"] + total for one, total in zip(costs, totals, strict=True)],
        "d": [one[method]["b"] + sum(totals) for one in costs],
    }
    return {ledger: paired_ratio(explorer, paid[ledger], name, ledger) for ledger in LEDGERS}


def _judge(rows: list[Table], settings: Table) -> Verdict:
    best: dict[str, tuple[str, str, dict[str, Effect]]] = {}
    figures: Table = {}
    for name in TASKS:
        tau = highest(rows, name)
        if tau is None:
            return Verdict("underpowered", f"On {name} no level is reached by explorer and a follower in every seed.")
        ratios = {method: _ratios(rows, name, tau, method) for method in _complete(rows, name, tau)}
        method = max(ratios, key=lambda one: ratios[one]["b"].mean)
        best[name] = (tau, method, ratios[method])
        figures[name] = {m: {ledger: [*e] for ledger, e in r.items()} for m, r in ratios.items()} | {"tau": tau}
        figures[name]["break_even"] = [_break_even(row[name], tau, method) for row in rows]
    a, b, c = ({name: best[name][2][ledger] for name in TASKS} for ledger in "abc")
    if all(one.high < 3 for one in b.values()):
        word = "refuted"
    elif all(one.low > 5 for one in b.values()):
        word = "supported"
    elif any(one.high > 3 for one in (*a.values(), *b.values())) and all(one.high < 1 for one in c.values()):
        word = "narrowed"
    else:
        word = "underpowered"
    said = [
        f"{name}, to {tau} by {method}: alone {r['a'].times()}, with the teacher's text and passes {r['b'].times()}, "
        f"with its training {r['c'].times()}, with every seed's {r['d'].times()}"
        for name, (tau, method, r) in best.items()
    ]
    return Verdict(word, "How many times cheaper than the explorer's RL. " + "; ".join(said) + ".", figures)


def _break_even(row: Table, tau: str, method: str) -> float | None:
    """How many followers must share the teacher for each to be cheaper than exploring; None: no number is enough."""
    saved = row["costs"][tau]["explorer"] - row["costs"][tau][method]["b"]
    return row["total"] / saved if saved > 0 else None


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    for axes, name in zip(canvas.subplots(1, 2), TASKS, strict=True):
        found = verdict.figures.get(name, {})
        methods = [method for method in METHODS if method in found]
        for place, method in enumerate(methods):
            for at, ledger in enumerate(LEDGERS):
                middle, low, high, _ = found[method][ledger]
                x = at + 0.22 * (place - 1)
                axes.plot([x, x], [max(low, 1e-3), min(high, 1e3)], color=COLOURS[place], linewidth=1.2)
                label = method if at == 0 else None
                axes.scatter([x], [middle], color=COLOURS[place], s=22, label=label, zorder=3)
        for level, style in ((1.0, "-"), (10.0, ":")):
            axes.axhline(level, color="#5d6b7a", linewidth=0.9, linestyle=style)
        axes.set_yscale("log")
        axes.set_xticks(range(4), ["a student", "b + text", "c + teacher", "d + search"], rotation=20, ha="right")
        axes.set_title(f"{name}, to {found.get('tau', '-')}")
        if methods:
            axes.legend()
    canvas.axes[0].set_ylabel("times cheaper than RL")


EXPERIMENT = Experiment(
    "C2",
    "Followers",
    SCALES,
    _design,
    _measure,
    _judge,
    _draw,
    "Explorer's FLOPs over followers', by ledger; lines: intervals.",
)
