"""C9: one model that names and draws scenes of a glyph, beside models of one task, with true and with shuffled pairs.

A scene is a coloured shape in a quarter of 16 pixels; its caption is one of 48. What a scarce task has is few pairs,
seen again and again, beside many of the other task. Shuffled: the other task's texts belong to other pictures.

Run: `zifio lab run C9 --scale smoke`
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from zifio.lab import substrate as s
from zifio.lab.controls import Unsound, check_equal
from zifio.lab.design import Arm, Design, Experiment, Table, Verdict, file_in
from zifio.lab.effects import Effect, paired
from zifio.lab.picture import bars
from zifio.pictures import to_url
from zifio.seed import stream

COLORS = {"red": (215, 40, 40), "green": (30, 160, 60), "blue": (40, 70, 215), "black": (20, 20, 20)}
SHAPES, QUARTERS = ("square", "circle", "cross"), ("left above", "right above", "left below", "right below")
CAPTIONS = [" ".join(words) for words in product(COLORS, SHAPES, QUARTERS)]
TASKS = ("understanding", "drawing")
KIND = {"understanding": "understanding", "drawing": "generation"}
REGIMES: dict[str, dict[str, str]] = {
    "scarce-understanding": {"understanding": "few", "drawing": "many"},
    "scarce-drawing": {"understanding": "many", "drawing": "few"},
    "both-rich": {"understanding": "many", "drawing": "many"},
}
FEW, EQUAL = 0.03, 0.02
_SIDE, _GUIDANCE = 16, 2.0
_LOOK = {"understanding": "held_out/captions/held_out/pass_at_1",
         "drawing": f"held_out/drawings/held_out/guidance_{_GUIDANCE:g}/pass_at_1"}  # fmt: skip
SCALES: dict[str, Table] = {
    "smoke": {
        "seeds": 2, "few": 24, "many": 48, "held_out": 6, "codes_steps": 2, "judge_steps": 2, "steps": 2, "examples": 4,
        "width": 32, "layers": 1, "least_judge": 0.0, "device": {},
    },
    "cpu": {
        "seeds": 5, "few": 96, "many": 6144, "held_out": 192, "codes_steps": 250, "judge_steps": 400, "steps": 400,
        "examples": 24, "width": 64, "layers": 2, "least_judge": 0.98, "device": {},
    },
    "gpu": {
        "seeds": 5, "few": 96, "many": 24576, "held_out": 960, "codes_steps": 2000, "judge_steps": 2000, "steps": 4000,
        "examples": 128, "width": 256, "layers": 6, "least_judge": 0.98,
        "device": {"device": "cuda", "precision": "bf16"},
    },
}  # fmt: skip


def shown(caption: str, rng: random.Random) -> np.ndarray:
    """A picture of a caption, uint8 [16, 16, 3]: size and place within the quarter are drawn."""
    color, shape, across, down = caption.split()
    size = rng.randint(5, 7)
    left, top = (rng.randint(0, 8 - size) + 8 * (word in ("right", "below")) for word in (across, down))
    middle = (np.arange(size) + 0.5) / size - 0.5
    v, u = middle[:, None], middle[None, :]
    masks = {
        "square": np.ones((size, size), bool),
        "circle": (u * u + v * v <= 0.25) & (abs(u) + abs(v) <= 0.6),
        "cross": (abs(u) < 0.2) | (abs(v) < 0.2),
    }
    picture = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    picture[top : top + size, left : left + size][masks[shape]] = COLORS[color]
    return picture


def pairs(n: int, kinds: tuple[str, ...], name: str, seed: int, shuffled: bool = False) -> list[Table]:
    """n pairs, every caption as often, or about; shuffled, the same texts stand beside them in another order."""
    texts = [CAPTIONS[place % len(CAPTIONS)] for place in range(n)]
    urls = [to_url(shown(text, stream(seed, "lab/C9", name, place))) for place, text in enumerate(texts)]
    told = stream(seed, "lab/C9/shuffle", name).sample(texts, n) if shuffled else texts
    kind = KIND[kinds[0]] if len(kinds) == 1 else "both"
    return [{"image": url, "text": text, "kind": kind} for url, text in zip(urls, told, strict=True)]


def mixture(counts: Mapping[str, int], shuffled: str | None, seed: int) -> list[Table]:
    """The pairs of both tasks; those of one of them shuffled."""
    return [row for task, n in counts.items() for row in pairs(n, (task,), task, seed, task == shuffled)]


def _design(settings: Table, seed: int) -> list[Design]:
    n, many = {"few": settings["few"], "many": settings["many"]}, settings["many"]
    files = {
        "pictures.jsonl": partial(pairs, many, TASKS, "pictures", seed),
        "judge-test.jsonl": partial(pairs, 4 * settings["held_out"], TASKS, "judge", seed),
        **{f"held-{task}.jsonl": partial(pairs, settings["held_out"], (task,), "held", seed) for task in TASKS},
        "held-both.jsonl": partial(pairs, settings["held_out"], TASKS, "held", seed),
    }
    stages = [_tokenizer(), _codes(settings), _judge_stage(settings)]
    arms = []
    for task, amount in product(TASKS, n):  # one task alone, for as many examples, and for as many tokens
        name = f"{task}-{amount}"
        files[f"{name}.jsonl"] = partial(mixture, {task: n[amount]}, None, seed)
        for times, arm in ((1, name), (2, f"{name}-long")):
            counts = {other: settings["examples"] * times * (other == task) for other in TASKS}
            stages.append(_model(arm, settings, f"{name}.jsonl", counts, f"held-{task}.jsonl", task == "drawing"))
            arms.append(Arm(arm, arm, {f"examples.{key}": value for key, value in counts.items()}))
    counts = dict.fromkeys(TASKS, settings["examples"])
    for regime, amounts in REGIMES.items():
        for shuffled in (None, *_controls(regime)):
            name = regime if shuffled is None else f"{regime}-shuffled-{shuffled}"
            numbers = {task: n[amount] for task, amount in amounts.items()}
            files[f"{name}.jsonl"] = partial(mixture, numbers, shuffled, seed)
            stages.append(_model(name, settings, f"{name}.jsonl", counts, "held-both.jsonl", True))
            arms.append(Arm(name, name, {f"examples.{key}": value for key, value in counts.items()}))
    return [Design(stages, {"name": "glyph_words"}, arms, [], files)]


def _controls(regime: str) -> tuple[str, ...]:
    """Whose pairs are shuffled beside the joint arm: the rich task's, or one and then the other."""
    return {"scarce-understanding": ("drawing",), "scarce-drawing": ("understanding",)}.get(regime, TASKS)


def _tokenizer() -> Table:
    return {"kind": "tokenizer", "name": "tokenizer", "tokenizer": {"kind": "bpe", "vocab_size": 320, "pictures": True}}


def _codes(settings: Table) -> Table:
    """A tokenizer of pictures, the same for all arms of a seed: 16 codes a drawing."""
    shape = {
        "embed_dim": 8, "num_embeddings": 64, "latent_channels": 32, "base_channels": 32,
        "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "num_patches": 4,
    }  # fmt: skip
    optim = {"lr": 2e-3, "warmup_steps": 10, "schedule": "cosine", "final_lr": 0.05, "weight_decay": 0.0}
    return {
        "kind": "vq", "name": "codes", "data": file_in("pictures.jsonl"), "steps": settings["codes_steps"],
        "pictures": 32, "restart_after": 30, "l1_weight": 1.0, "optim": optim, "model": shape,
        "held_out": s.look(settings["codes_steps"], 32), "rows": {"micro_tokens": 2048},
    } | settings["device"]  # fmt: skip


def _judge_stage(settings: Table) -> Table:
    """Who says what a drawing shows: every caption is a label."""
    optim = {"lr": 2e-3, "warmup_steps": 20, "schedule": "cosine", "final_lr": 0.02, "weight_decay": 0.0}
    return {
        "kind": "classifier", "name": "judge", "data": file_in("pictures.jsonl"),
        "held_out_data": file_in("judge-test.jsonl"), "steps": settings["judge_steps"], "pictures": 128, "optim": optim,
        "model": {"image_size": _SIDE, "channels": [16, 32], "hidden_size": 128},
        "held_out": s.look(settings["judge_steps"], 4 * settings["held_out"]),
    } | settings["device"]  # fmt: skip


def _model(name: str, settings: Table, data: str, examples: Table, held_out: str, draws: bool) -> Table:
    """A model from nothing, looked at when it is through."""
    width = settings["width"]
    decoder = {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": settings["layers"], "num_attention_heads": 4,
        "intermediate_size": 5 * width // 2, "max_position_embeddings": 96, "initializer_range": 0.05,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "num_hidden_layers": settings["layers"], "num_attention_heads": 4, "image_size": _SIDE,
        "patch_size": 4, "num_image_tokens": 16,
    }  # fmt: skip
    optim = {"kind": "muon", "lr": 0.02, "adamw_lr_scale": 0.15, "warmup_steps": min(20, settings["steps"] // 4)}
    return {
        "kind": "janus", "name": name, "tokenizer": "tokenizer", "codes": "codes", "model": decoder, "vision": vision,
        "trains": "all", "data": file_in(data), "held_out_data": file_in(held_out), "steps": settings["steps"],
        "examples": examples, "weights": {"understanding": 2.0}, "scales": [_GUIDANCE],
        "held_out": s.look(settings["steps"], settings["held_out"], 1),
        "rows": {"row_tokens": 96, "micro_tokens": 8192},
        "optim": optim | {"schedule": "cosine", "final_lr": 0.02}, "sampling": {"max_new_tokens": 12},
    } | ({"judge": "judge"} if draws else {}) | settings["device"]  # fmt: skip


def _measure(parts: Mapping[str, Any], settings: Table) -> Table:
    """Captions and drawings right by arm, what the judge makes of real pictures, tokens of each arm."""
    part = parts["main"]
    judge = _last(part, "judge", "held_out/accuracy")
    if judge is None or judge < settings["least_judge"]:
        raise Unsound(f"judge: wanted at least {settings['least_judge']:.0%} of real pictures right, came {judge}.")
    names = [arm.name for arm in part.design.arms]
    for regime in REGIMES:
        check_equal({name: part.done(name)["flops"] for name in names if name.startswith(regime)}, EQUAL)
    right = {name: {task: _last(part, name, key) for task, key in _LOOK.items()} for name in names}
    return {
        "right": {
            name: {task: share for task, share in one.items() if share is not None} for name, one in right.items()
        },
        "judge": judge,
        "tokens": {name: part.done(name)["tokens"] for name in names},
    }


def _last(part: Any, stage: str, key: str) -> float | None:
    values = part.record(stage).series(key)[1]
    return values[-1] if values else None


def _gain(rows: list[Table], regime: str, task: str, over: str) -> Effect:
    """How many more a joint arm has right than another arm."""
    joint, other = ([row["right"][name][task] for row in rows] for name in (regime, over))
    return paired(joint, other, "C9", regime, task, over)


def comparisons(rows: list[Table]) -> dict[str, dict[str, Effect]]:
    """Joint less shuffled, less one task at equal examples and at equal tokens: by regime and task."""
    out = {}
    for regime, amounts in REGIMES.items():
        for task, amount in amounts.items():
            other = next(one for one in TASKS if one != task)
            over = {"alone": f"{task}-{amount}", "alone-long": f"{task}-{amount}-long"}
            if other in _controls(regime):
                over["shuffled"] = f"{regime}-shuffled-{other}"
            out[f"{regime}/{task}"] = {key: _gain(rows, regime, task, name) for key, name in over.items()}
    return out


def _judge(rows: list[Table], settings: Table) -> Verdict:
    found = comparisons(rows)
    scarce = [found["scarce-understanding/understanding"]["shuffled"], found["scarce-drawing/drawing"]["shuffled"]]
    if all(effect.high < FEW for effect in scarce):
        word = "refuted"
    elif all(effect.low > 0 for effect in scarce):
        word = "supported"
    elif any(effect.low > 0 for effect in scarce):
        word = "narrowed"
    else:
        word = "underpowered"
    told = [
        f"{name}: " + ", ".join(f"{effect.points()} over {key}" for key, effect in one.items())
        for name, one in found.items()
    ]
    return Verdict(word, f"Joint training. {'; '.join(told)}.", {
        name: {key: [*effect] for key, effect in one.items()} for name, one in found.items()
    })  # fmt: skip


def _draw(canvas: Figure, rows: list[Table], verdict: Verdict) -> None:
    places = [
        ("scarce-understanding", "understanding"),
        ("scarce-drawing", "drawing"),
        *(("both-rich", t) for t in TASKS),
    ]
    for axes, (regime, task) in zip(canvas.subplots(1, len(places), sharey=True), places, strict=True):
        amount, other = REGIMES[regime][task], next(one for one in TASKS if one != task)
        names = {"alone": f"{task}-{amount}", "longer": f"{task}-{amount}-long", "joint": regime,
                 "shuffled": f"{regime}-shuffled-{other}"}  # fmt: skip
        bars(axes, {key: [row["right"][name][task] for row in rows] for key, name in names.items()}, "")
        axes.set_title(f"{task}\n{regime}", fontsize=8)


EXPERIMENT = Experiment(
    "C9",
    "Multimodal",
    SCALES,
    _design,
    _measure,
    _judge,
    _draw,
    "Right on held-out pictures: one task alone, for as many tokens, joint, and joint with the other task shuffled.",
)
