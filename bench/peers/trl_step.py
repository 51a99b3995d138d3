"""TRL's worker: steps of GRPOTrainer, on the CPU in fp32 with its best settings there.

A step is what lies between two of the trainer's own callbacks: rollouts by transformers, rewards, gradients, AdamW.

Try it alone: `echo '{"go": 0}' | PEER_PYTHON bench/peers/trl_step.py WORK.json`
"""

from __future__ import annotations

import tempfile
import zlib
from typing import Any

from channel import Channel, Done, Job, run


def main(job: Job, channel: Channel) -> None:
    """Train for as long as rounds are asked for."""
    import torch

    torch.set_num_threads(job["threads"])
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    n_tokens = [0]

    def coin(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """1 or 0 by a coin that the text decides, so that every step learns; counts tokens on the way."""
        n_tokens[0] += sum(map(len, completion_ids))
        texts = [completion[0]["content"] for completion in completions]
        return [float(zlib.crc32(text.encode()) % 2 == 0) for text in texts]

    class Rounds(TrainerCallback):
        """Waits before each step and answers after it."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            channel.ready(trl.__version__, f"micro-batches of {job['micro_rows']} rows, {job['cache']} cache")

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            channel.wait()
            n_tokens[0] = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            channel.done(Done(n_tokens[0]))

    questions = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in job["questions"]])
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(output_dir=folder, **settings(job))
        trainer = trl.GRPOTrainer(job["model"], coin, config, questions, callbacks=[Rounds()])
        trainer.train()


def settings(job: Job) -> dict[str, Any]:
    """GRPO on policy, token mean over the batch, no KL, as zifio's worker; every field of the loss is set."""
    on_cpu = job["device"] == "cpu"
    n_rollouts = len(job["questions"]) * job["group"]
    rows = min(job["micro_rows"], n_rollouts)
    ends = {"min_new_tokens": job["max_new_tokens"]} if job["fixed"] else None
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": n_rollouts // rows,
        "num_generations": job["group"], "max_completion_length": job["max_new_tokens"], "num_iterations": 1,
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0,
        "generation_kwargs": ends, "cache_implementation": None if job["cache"] == "dynamic" else job["cache"],
        "loss_type": "dapo", "importance_sampling_level": "token", "scale_rewards": "group", "beta": 0.0,
        "epsilon": 0.2, "epsilon_high": 0.2, "delta": None, "mask_truncated_completions": False,
        "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_vllm": False, "disable_dropout": False,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused", "max_steps": 1_000_000, "shuffle_dataset": False, "seed": 0,
        "bf16": job["dtype"] == "bfloat16", "fp16": False, "gradient_checkpointing": False, "use_cpu": on_cpu,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
        "dataloader_pin_memory": not on_cpu, "save_strategy": "no", "logging_strategy": "no", "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
