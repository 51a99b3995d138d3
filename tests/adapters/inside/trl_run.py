"""Runs where TRL is installed: steps of GRPOTrainer on zifio's tasks, with a tiny model that was first taught to call.

What was found goes to stdout as JSON, for tests/adapters/test_trl_adapter.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import get_json_schema

from zifio.adapters.trl import environment_factory, reward_func, rows
from zifio.tasks.catalog import named_task
from zifio.tasks.environment import Message, conversation, demonstration
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Task, Verdict, render_response

TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja").read_text()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of these texts, with Qwen's template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(SPECIAL)
    made.add_tokens(MARKS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def for_template(messages: list[Message]) -> list[Message]:
    """With arguments as tables, which is how this template wants them."""
    told = json.loads(json.dumps(messages))
    for message in told:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return told


def taught(conversations: list[list[Message]], tools: list[Any], steps: int) -> tuple[Any, Any]:
    """A model that knows these conversations by heart, more or less, and its tokenizer."""
    tokenizer = tokenizer_of([TEMPLATE, json.dumps(tools), *map(json.dumps, conversations)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=2048, **sizes,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    batch = tokenizer.apply_chat_template(
        [for_template(one) for one in conversations],
        tools=tools or None, padding=True, padding_side="right", return_tensors="pt", return_dict=True,
    )  # fmt: skip
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model, tokenizer


def trained(
    model: Any, tokenizer: Any, task: Task, count: int, steps: int, factory: Any = None, **settings: Any
) -> dict[str, Any]:
    """Steps of GRPO: what was said and earned, what TRL logged, and whether the weights moved and stayed numbers."""
    reward, seen = reward_func(task, tokenizer), []

    def watched(completions: list[Any], problem: list[Any], **columns: Any) -> list[float | None]:
        rewards = reward(completions, problem, **columns)
        raw = tokenizer.batch_decode(columns["completion_ids"], skip_special_tokens=True)
        seen.extend(map(list, zip(problem, completions, raw, rewards, strict=True)))
        return rewards

    before = [weight.detach().clone() for weight in model.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to=[], max_steps=steps, num_generations=4,
            per_device_train_batch_size=8, learning_rate=1e-4, logging_steps=1, save_strategy="no", seed=1,
            disable_tqdm=True, gradient_checkpointing=False, **settings,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model, reward_funcs=watched, args=arguments, train_dataset=Dataset.from_list(rows(task, count)),
            processing_class=tokenizer, environment_factory=factory,
        )  # fmt: skip
        trainer.train()
        logs = [log for log in trainer.state.log_history if "reward" in log]
    after = [weight.detach() for weight in trainer.model.parameters()]
    return {
        "seen": seen,
        "logs": logs,
        "finite": all(bool(torch.isfinite(weight).all()) for weight in after),
        "moved": any(not torch.equal(*pair) for pair in zip(before, after, strict=True)),
    }


def with_tools() -> dict[str, Any]:
    """The calculator, by a model that was shown how to call it for two problems of four."""
    task = named_task("calculator:min_digits=1,max_digits=1")
    factory = environment_factory(task)
    tools = [get_json_schema(factory().calculator)]
    conversations = [demonstration(task, task.problem("train", n, 0), True) for n in range(2)]
    model, tokenizer = taught(conversations, tools, steps=150)
    out = trained(
        model, tokenizer, task, 2, 2, factory, max_tool_calling_iterations=task.max_turns - 1, max_completion_length=160
    )  # fmt: skip
    return out | {"schema": tools, "ours": task.tools}


class Fragile(ChainSum):
    """A task whose check breaks on every second problem."""

    def score(self, problem: Problem, response: str) -> Verdict:
        """Or raises."""
        if problem.id.endswith("/1"):
            raise OSError("the check is broken")
        return super().score(problem, response)


def single() -> dict[str, Any]:
    """Single questions, with a check that breaks on one of two; the model answers right, more or less."""
    task = Fragile(min_terms=2, max_terms=3)
    problems = [task.problem("train", n, 0) for n in range(2)]
    conversations = [
        [*conversation(problem), {"role": "assistant", "content": render_response("", problem.gold)}]
        for problem in problems
    ]
    model, tokenizer = taught(conversations, [], steps=30)
    return trained(model, tokenizer, task, 2, 2, max_completion_length=24)


def game() -> dict[str, Any]:
    """A game through the one tool `say`, as a model would use it, without a trainer."""
    task = named_task("tic_tac_toe:goal=draw")
    row = rows(task, 1)[0]
    environment = environment_factory(task)()
    environment.reset(**row)
    heard = environment.say(text="<think></think><answer>10</answer>")
    said = [[{"role": "assistant", "content": "I lost"}]]
    rewards = reward_func(task)(said, [row["problem"]], environments=[environment])
    return {"schema": get_json_schema(environment.say), "heard": heard, "rewards": rewards}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {"with_tools": with_tools, "single": single, "game": game}
    found = {name: part() for name, part in parts.items()}
    Path(json.loads(sys.argv[1])["file"]).write_text(json.dumps(found))
