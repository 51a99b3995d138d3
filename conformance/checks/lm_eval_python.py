"""lm-eval, three ways: chat and text completions scored, and log-likelihoods held against transformers' own.

The log-likelihoods of the same tasks come once through the server and once from lm-eval's `hf` model on the same
weights; sample by sample they may differ by what fp32 loses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from checking import FOLDER, KEY, TEXT, THINKS, URL, check, run, sums

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(FOLDER / "hub"), "OPENAI_API_KEY": KEY}

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

MODELS = json.loads(os.environ["CONFORMANCE_FOLDERS"])
"""The folder of each model, as transformers opens it."""
MOST_APART, MOST_APART_A_TOKEN = 1e-4, 1e-5
FACTS = {
    "The capital of France is": [" Paris", " Rome", " the moon"],
    "Water freezes at a temperature of": [" zero degrees", " ninety degrees", " one mile"],
    "The opposite of hot is": [" cold", " warm", " Tuesday"],
    "A week has": [" seven days", " nine days", " a hundred days"],
    "She opened the door and": [" walked in.", " flew to the sun.", " colorless green ideas."],
    "2, 4, 6, 8,": [" 10", " 11", " fish"],
    "Die Hauptstadt von Österreich ist": [" Wien", " Bonn", " 鯨"],
    "def add(a, b):\n    return": [" a + b", " a * b", " None\n\n\n"],
}
STORY = "The whale dives deep, and stays below for an hour. Nobody on deck knows where it will come up again. " * 3


def write(task: str, rows: list[dict[str, Any]], **settings: Any) -> str:
    """A task of rows, from files alone. YAML reads JSON."""
    (FOLDER / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(FOLDER / f"{task}.jsonl")}}}
    settings = {"task": task, **source, "test_split": "test", **settings}
    (FOLDER / f"{task}.yaml").write_text(json.dumps(settings))
    return task


@cache
def evaluated(model: str, arguments: str, tasks: str, has_template: bool = False) -> tuple[Any, dict[str, list[Any]]]:
    """(results, every sample in its order), each by task."""
    found: Any = simple_evaluate(
        model, arguments, list(tasks.split(",")), batch_size=1, device="cpu", bootstrap_iters=0,
        apply_chat_template=has_template, task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
    )  # fmt: skip
    ordered = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in found["samples"].items()}
    return found["results"], ordered


def generation(task: str, before: str = "", behind: str = "") -> str:
    """The task of sums, the digit between the answer's tags wanted."""
    digit = {"function": "regex", "regex_pattern": "<answer>(\\d)", "group_select": 0}
    return write(
        task,
        [{"question": before + question + behind, "answer": answer} for question, answer in sums(20)],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n"], "do_sample": False, "temperature": 0, "max_gen_toks": 64},
        filter_list=[{"name": "digit", "filter": [digit, {"function": "take_first"}]}],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


def score(model: str, path: str, task: str, arguments: str = "", has_template: bool = False) -> str:
    """The share of right answers, through the server."""
    base = f"model={THINKS},base_url={URL}/v1/{path},num_concurrent=4,max_retries=1{arguments}"
    results, samples = evaluated(model, base, task, has_template)
    share = results[task]["exact_match,digit"]
    assert len(samples[task]) == 20 and share >= 0.5, f"{share:.0%} right"
    return f"{share:.0%} of {len(samples[task])} sums right"


@check("whole")
def chat() -> str:
    """Chat completions."""
    return score("local-chat-completions", "chat/completions", generation("sums_chat"), has_template=True)


@check("completions")
def completions() -> str:
    """Text completions, of the text that the chat template makes."""
    task = generation("sums_text", "<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜>")
    return score("local-completions", "completions", task, ",tokenizer_backend=None,tokenized_requests=False")


def numbers(samples: list[dict[str, Any]]) -> Iterator[tuple[float, str]]:
    """Every log-likelihood, and whether its text was the likeliest."""
    for sample in samples:
        for response in sample["resps"]:
            one = response[0] if isinstance(response[0], list | tuple) else (response[0], "")
            yield float(one[0]), str(one[1])


def compared(name: str, task: str, tasks: str, most: float = MOST_APART) -> str:
    """The largest difference between the server's log-likelihoods and those of transformers; all tasks run at once."""
    tokenizer = f"tokenizer={MODELS[name]},tokenizer_backend=huggingface"
    ours = evaluated(
        "local-completions", f"model={name},base_url={URL}/v1/completions,{tokenizer},max_length=127", tasks
    )
    theirs = evaluated("hf", f"pretrained={MODELS[name]},dtype=float32,max_length=127", tasks)
    pairs = list(zip(numbers(ours[1][task]), numbers(theirs[1][task]), strict=True))
    apart = max(abs(mine[0] - other[0]) for mine, other in pairs)
    assert pairs and all(mine[1] == other[1] for mine, other in pairs), "another text is the likeliest"
    assert apart <= most, f"{apart:.1e} apart"
    assert len({mine[0] for mine, _ in pairs}) > len(pairs) / 2  # numbers that tell something
    return f"{name}: {len(pairs)} log-likelihoods, at most {apart:.1e} apart"


def choices(task: str, rows: list[dict[str, Any]]) -> str:
    """A task that chooses by log-likelihood."""
    return write(
        task,
        rows,
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice="{{choices}}",
        doc_to_target=0,
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def english() -> str:
    """The tasks for a model that reads English."""
    facts = [{"text": text, "choices": each} for text, each in FACTS.items()]
    story = write(
        "story", [{"text": STORY}], output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )  # fmt: skip
    return f"{choices('facts', facts)},{story}"


@check("log-likelihood")
def loglikelihood() -> str:
    """Of choices, for both models."""
    before, behind = "<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜><answer>"
    digits = [{"text": before + question + behind, "choices": list("0123456789")} for question, _ in sums(8)]
    task = choices("digits", digits)
    return f"{compared(TEXT, 'facts', english())}; {compared(THINKS, task, task)}"


@check("perplexity")
def perplexity() -> str:
    """Of a whole text: a sum over many tokens, each of which may add to the difference."""
    n = len(AutoTokenizer.from_pretrained(MODELS[TEXT])(STORY).input_ids)
    return f"{compared(TEXT, 'story', english(), n * MOST_APART_A_TOKEN)} over {n} tokens"


if __name__ == "__main__":
    run()
