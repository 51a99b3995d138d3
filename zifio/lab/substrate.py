"""Stages as plain tables, for `run.py` files: the same words everywhere, so that equal bases have equal digests.

Sizes: XS 2 layers of width 64 (0.1 M parameters), XXS for smoke, M 6 layers of width 256. At XS a base and one arm of
RL take half a minute of one core.

Try it alone: `zifio lab run all --scale gpu --dry-run`
"""

from __future__ import annotations

from typing import Any

from zifio.lab.design import Table

SIZES: dict[str, Table] = {
    "XXS": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "XS": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
    "S": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 320},
    "M": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 640},
}
CHECKPOINT = "Qwen/Qwen2.5-0.5B"
"""What `gpu` scales begin with in place of a base from nothing."""
_REPLY = 32
_ROWS = {"row_tokens": 96, "micro_tokens": 8192}


def llama(size: str, context: int = 96) -> Table:
    """A dense model of one of SIZES."""
    rest = {"rope_theta": 1000.0, "max_position_embeddings": context, "initializer_range": 0.05}
    return {"model_type": "llama", **SIZES[size], **rest}


def tokenizer() -> Table:
    """The first stage of every recipe from nothing."""
    return {"kind": "tokenizer", "name": "tokenizer"}


def muon(lr: float = 0.02, **other: Any) -> Table:
    """How bases learn: strong decay, a cosine from the start (LOG.md, 2026-11-23)."""
    plain = {"kind": "muon", "lr": lr, "adamw_lr_scale": 0.25, "weight_decay": 1.0}
    return plain | {"warmup_steps": 20, "schedule": "cosine", "final_lr": 0.05} | other


def adam(lr: float, **other: Any) -> Table:
    """How everything after the base learns; slow second moments and a low clip keep solved tasks solved."""
    plain = {"lr": lr, "betas": [0.9, 0.99], "clip": 0.2, "weight_decay": 0.0}
    return plain | {"warmup_steps": 3, "schedule": "cosine", "hold": 0.5, "final_lr": 0.1} | other


CUDA: Table = {
    "device": "cuda", "precision": "bf16", "rows": {"row_tokens": 512, "micro_tokens": 16384},
    "sampling": {"temperature": 1.0, "max_new_tokens": 192}, "optim": adam(2e-6),
}  # fmt: skip
"""What every stage on a GPU overrides, with room for a real tokenizer's texts."""


def pretrain(name: str, task: Table, model: Table, steps: int, documents: int, p_cot: float, **other: Any) -> Table:
    """A base, which learns on replies alone: prompts are random digits."""
    return {
        "kind": "pretrain", "name": name, "task": task, "model": model, "steps": steps, "documents": documents,
        "p_cot": p_cot, "loss_on": "reply", "optim": muon(warmup_steps=min(20, steps // 4)), "rows": _ROWS,
        "sampling": {"max_new_tokens": _REPLY},
    } | other  # fmt: skip


def taught(name: str, steps: int, documents: int, **other: Any) -> Table:
    """A real checkpoint that has read worked documents of the recipe's task, for its form: a base of the same name."""
    plain = {"kind": "sft", "name": name, "from": CHECKPOINT, "documents": documents, "steps": steps}
    return plain | other | {"optim": adam(1e-5)}


def rl(name: str, start: str, steps: int, prompts: int, **other: Any) -> Table:
    """GRPO with groups of 16, no gate: what it would refuse is what is to be seen."""
    return {
        "kind": "rl", "name": name, "from": start, "steps": steps, "prompts": prompts, "group": 16, "gate": False,
        "optim": adam(1e-3), "rows": _ROWS, "sampling": {"temperature": 1.0, "max_new_tokens": _REPLY},
    } | other  # fmt: skip


def sft(name: str, start: str, data: str, steps: int, sequences: int = 64, **other: Any) -> Table:
    """Fine-tuning on given conversations."""
    return {
        "kind": "sft", "name": name, "from": start, "data": data, "steps": steps, "sequences": sequences,
        "optim": adam(1e-3), "rows": _ROWS, "sampling": {"max_new_tokens": _REPLY},
    } | other  # fmt: skip


def distill(name: str, start: str, teacher: str, method: str, steps: int, **other: Any) -> Table:
    """A student of `teacher`."""
    return {
        "kind": "distill", "name": name, "from": start, "teacher": teacher, "method": method, "steps": steps,
        "sequences": 64, "optim": adam(1e-3), "rows": _ROWS, "sampling": {"max_new_tokens": _REPLY},
    } | other  # fmt: skip


def sample(name: str, start: str, problems: int, n: int = 1, **other: Any) -> Table:
    """Replies to learn from."""
    plain = {"kind": "sample", "name": name, "from": start, "problems": problems, "n": n}
    return plain | {"sampling": {"max_new_tokens": _REPLY}} | other


def for_eval(device: Table) -> Table:
    """Of a scale's overrides those that an `eval` or `sample` stage has too."""
    return {key: value for key, value in device.items() if key not in ("rows", "optim")}


def examine(name: str, models: list[str], problems: int, n: int, **other: Any) -> Table:
    """Held-out problems, by gold unless another task is given."""
    plain = {"kind": "eval", "name": name, "models": models, "problems": problems, "n": n, "ks": [1]}
    return plain | {"sampling": {"max_new_tokens": _REPLY}} | other


def guard(task: Table, every: int, problems: int, n: int = 4) -> Table:
    """Looks by gold at a stage whose own verifier is another one; it warns and never acts."""
    return {"task": task, "every": every, "problems": problems, "n": n}


def look(every: int, problems: int, n: int = 4) -> Table:
    """Looks at held-out problems along the way, by the stage's own task; a stage without one has the recipe's, gold."""
    return {"every": every, "problems": problems, "n": n}
