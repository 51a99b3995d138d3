"""C7: dense and sparse decoders of equal active size, on facts to remember and sums to work out; balance, cache, MTP.

Run: `zifio lab run C7 --scale smoke`
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.design import Arm, Design, Experiment, Probe, Table, Verdict
from zifio.lab.effects import Effect, paired, paired_ratio
from zifio.lab.picture import lines

ARMS = ("dense", "moe", "wide", "moe-aux", "gqa", "moe-mtp")
TASKS = ("recall", "sums")
LEAST = 1.2
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "width": 32, "layers": 2, "terms": 2, "keys": 20, "recall": 8, "sums": 8, "documents": 16,
        "every": 4, "problems": 16, "device": {},
    },
    "cpu": {
        "seeds": 5, "width": 64, "layers": 2, "terms": 6, "keys": 500, "recall": 240, "sums": 120, "documents": 128,
        "every": 12, "problems": 128, "device": {},
    },
    "gpu": {
        "seeds": 5, "width": 256, "layers": 6, "terms": 12, "keys": 10_000, "recall": 4000, "sums": 2000,
        "documents": 512, "every": 100, "problems": 1024, "device": {"device": "cuda", "precision": "bf16"},
    },
}  # fmt: skip


def _models(settings: Table) -> dict[str, Table]:
    """Of equal active width: two of eight experts and the shared one are together as wide as the dense block."""
    width, layers = settings["width"], settings["layers"]
    expert = width // 2
    dense, total = 3 * expert, 9 * expert
    latent = {
        "model_type": "deepseek_v3", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "kv_lora_rank": width // 2, "qk_nope_head_dim": width // 4, "qk_rope_head_dim": 8, "v_head_dim": width // 4,
        "moe_intermediate_size": expert, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "rope_theta": 1000.0, "max_position_embeddings": 96, "initializer_range": 0.05,
    }  # fmt: skip
    blocks = {"first_k_dense_replace": layers, "intermediate_size": dense}
    sparse = {"first_k_dense_replace": 0, "intermediate_size": dense}
    gqa = {key: latent[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "rope_theta")}
    gqa |= {key: latent[key] for key in ("max_position_embeddings", "initializer_range")}
    return {
        "dense": latent | blocks,
        "moe": latent | sparse,
        "wide": latent | blocks | {"intermediate_size": total},
        "moe-aux": latent | sparse,
        "gqa": gqa | {"model_type": "llama", "intermediate_size": dense},
        "moe-mtp": latent | sparse | {"num_nextn_predict_layers": 1},
    }


def _design(settings: Table, seed: int) -> list[Design]:
    terms = settings["terms"]
    tasks = {
        "recall": {"name": "facts", "keys": settings["keys"]},
        "sums": {"name": "chain_mod", "min_terms": terms, "max_terms": terms, "working": "totals"},
    }
    return [_part(settings, name, task) for name, task in tasks.items()]


def _part(settings: Table, name: str, task: Table) -> Design:
    bias, aux = {"loss_weight": 0.0, "bias_speed": 1e-3}, {"loss_weight": 1e-2, "bias_speed": 0.0}
    stages, arms = [s.tokenizer()], []
    for arm, model in _models(settings).items():
        balance = aux if arm == "moe-aux" else bias
        other = {"held_out": s.look(settings["every"], settings["problems"], 1), "balance": balance} | settings[
            "device"
        ]
        stages.append(s.pretrain(arm, task, model, settings[name], settings["documents"], 1.0, **other))
        told = {f"model.{key}": model[key] for key in ("model_type", "intermediate_size")}
        told |= {f"model.{k}": model[k] for k in ("first_k_dense_replace", "num_nextn_predict_layers") if k in model}
        arms.append(Arm(arm, arm, told | {f"balance.{key}": value for key, value in balance.items()}))
    return Design(stages, task, arms, [Probe(task)] if name == "sums" else [], name=name)


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Per task and arm: FLOPs and accuracy at each look, seconds, and how far the busiest expert is above the mean."""
    out: Table = {}
    for name in TASKS:
        part = parts[name]
        out[name] = {arm: [[*look] for look in part.curve(arm)] for arm in ARMS}
        out[name]["cpu_s"] = {arm: part.done(arm)["cpu_s"] for arm in ARMS}
        out[name]["violation"] = {arm: _violation(part.record(arm)) for arm in ARMS if arm.startswith("moe")}
    return out


def _violation(record: Any) -> float:
    """MaxVio (arXiv:2408.15664): largest load over the mean load, less 1; over layers and the last tenth of steps."""
    rows = [row for row in record.metrics if any(key.startswith("expert_load/") for key in row)]
    found = []
    for row in rows[-max(1, len(rows) // 10) :]:
        layers: dict[str, list[float]] = {}
        for key, value in row.items():
            if key.startswith("expert_load/"):
                layers.setdefault(key.split("/")[1], []).append(value)
        found += [max(loads) * len(loads) / sum(loads) - 1 for loads in layers.values()]
    return sum(found) / len(found)


def cost_of(curve: list[list[float]], level: float) -> float | None:
    """FLOPs at which a curve first reaches a level, between two looks in proportion; None where it never does."""
    for (work, value), (later, after) in pairwise(curve):
        if after >= level > value:
            return work + (later - work) * (level - value) / (after - value)
    return None


def _leverage(rows: list[Table], name: str, arm: str, level: float) -> Effect | None:
    """Dense FLOPs over the arm's to the same level, by seed; None where one of them stays below it in a seed."""
    costs = [(cost_of(row[name]["dense"], level), cost_of(row[name][arm], level)) for row in rows]
    known = [(dense, other) for dense, other in costs if dense and other]
    if len(known) < len(rows):
        return None
    return paired_ratio([dense for dense, _ in known], [other for _, other in known], "C7", name, arm)


def _judge(rows: list[Table], settings: Table) -> Verdict:
    found = {name: {arm: _leverage(rows, name, arm, 0.5) for arm in ARMS[1:]} for name in TASKS}
    moe = {name: found[name]["moe"] for name in TASKS}
    ends = {name: {arm: [row[name][arm][-1][1] for row in rows] for arm in ARMS} for name in TASKS}
    missing = [name for name, effect in moe.items() if effect is None]
    if missing:
        levels = {name: {arm: round(sum(v) / len(v), 3) for arm, v in ends[name].items()} for name in missing}
        return Verdict("underpowered", f"Half right is not reached by dense and MoE in every seed: {levels}.")
    effects = [effect for effect in moe.values() if effect is not None]
    if all(effect.high < LEAST for effect in effects):
        word = "refuted"
    elif all(effect.low > LEAST for effect in effects):
        word = "supported"
    elif any(effect.low > LEAST for effect in effects):
        word = "narrowed"
    else:
        word = "underpowered"
    told = {
        name: ", ".join(f"{arm} {effect.times() if effect else 'never half right'}" for arm, effect in one.items())
        for name, one in found.items()
    }
    spread = {
        arm: sum(row[name]["violation"][arm] for row in rows for name in TASKS) / (2 * len(rows))
        for arm in ("moe", "moe-aux")
    }
    aux = paired(ends["sums"]["moe"], ends["sums"]["moe-aux"], "C7", "aux")
    why = (
        f"Dense FLOPs over the arm's, to half right. Recall: {told['recall']}. Sums: {told['sums']}. Busiest expert "
        f"above the mean: {spread['moe']:.2f} by bias, {spread['moe-aux']:.2f} by loss, at {aux.points()} on sums."
    )
    figures = {name: {arm: effect and [*effect] for arm, effect in one.items()} for name, one in found.items()}
    seconds = {name: {arm: sum(row[name]["cpu_s"][arm] for row in rows) for arm in ARMS} for name in TASKS}
    return Verdict(word, why, figures | {"violation": spread, "cpu_s": seconds})


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    for axes, name in zip(canvas.subplots(1, 2, sharey=True), TASKS, strict=True):
        curves = {arm: [[value for _, value in row[name][arm]] for row in rows] for arm in ARMS}
        steps = [place for place, _ in enumerate(rows[0][name]["dense"])]
        lines(axes, curves, steps, "look (equal text)", "right" if name == "recall" else "")
        axes.set_title(name)
        axes.legend(fontsize=7)


EXPERIMENT = Experiment(
    "C7", "Mixture", SCALES, _design, _measure, _judge, _draw, "Accuracy by text read, on facts and on sums."
)
