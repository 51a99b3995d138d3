"""transformers' worker: `generate`, `generate_batch` (continuous batching), and its model under a plain training loop.

Where it leaves a choice that matters on this machine (cache, experts, rows of a micro-batch), each is tried on a small
piece of the work and the fastest is taken; the note says which.

Try it alone: `echo '{"go": 0}' | PEER_PYTHON bench/peers/transformers_text.py WORK.json`
"""

from __future__ import annotations

import itertools
from typing import Any

from channel import Channel, Done, Job, fastest, rounds, run

STATIC = {"dynamic": None, "static": "static"}


def main(job: Job, channel: Channel) -> None:
    """Do the job by its kind."""
    import torch

    torch.set_num_threads(job["threads"])
    {"rollouts": rollouts, "startup": startup, "pretrain": pretrain}[job["kind"]](job, channel)


def load(job: Job) -> Any:
    """The model of the job's folder, with torch's fused attention."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, job["dtype"])
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa").to(job["device"])


def version() -> str:
    """transformers'."""
    import transformers

    return transformers.__version__


def experts_of(model: Any, learns: bool = False) -> list[str]:
    """The forms of its experts that a model may take; one that changes nothing for a dense model.

    To learn in the form batched_mm copies the weights for each token: tens of gigabytes, so it is not tried.
    """
    if not hasattr(model.config, "n_routed_experts"):
        return [""]
    return ["eager", "grouped_mm"] if learns else ["eager", "batched_mm", "grouped_mm"]


def set_experts(model: Any, form: str) -> None:
    """Take this form of the experts."""
    if form:
        model.set_experts_implementation(form)


class Text:
    """Replies by `generate`, all prompts in one batch with padding on the left."""

    def __init__(self, job: Job, model: Any) -> None:
        import torch

        self.job, self.model = job, model.eval()
        if job["fixed"]:
            model.generation_config.eos_token_id = None
        prompts = [p for p in job["prompts"] for _ in range(job["group"])]
        self.width = max(map(len, prompts))
        pad = job["pad_id"]
        self.tokens = torch.tensor([[pad] * (self.width - len(p)) + p for p in prompts]).to(job["device"])
        self.mask = torch.tensor([[0] * (self.width - len(p)) + [1] * len(p) for p in prompts]).to(job["device"])

    def __call__(self, cache: str, n_new: int, round_: int = 0) -> list[int]:
        """The length of every reply."""
        import torch

        torch.manual_seed(round_)
        draw = {"do_sample": True, "temperature": 1.0, "top_k": 0} if self.job["temperature"] else {"do_sample": False}
        with torch.inference_mode():
            out = self.model.generate(
                self.tokens, attention_mask=self.mask, max_new_tokens=n_new, pad_token_id=self.job["pad_id"],
                cache_implementation=STATIC[cache], **draw,
            )  # fmt: skip
        return [until_end(row, self.job) for row in out[:, self.width :].tolist()]


def until_end(tokens: list[int], job: Job) -> int:
    """Length of a reply with its end token, where it may end."""
    if job["fixed"] or job["eos_id"] not in tokens:
        return len(tokens)
    return tokens.index(job["eos_id"]) + 1


def rollouts(job: Job, channel: Channel) -> None:
    """Replies to prompts, by `generate` or, where the job says so, by `generate_batch`."""
    model = load(job)
    if job.get("continuous"):
        return continuous(job, channel, model)
    text = Text(job, model)
    n_new = job["max_new_tokens"]
    if job.get("compile"):
        import torch

        model.forward = torch.compile(model.forward)
        text("static", n_new)
        note = "static cache, torch.compile"
        best = "static"
    else:
        ways = list(itertools.product(STATIC, experts_of(model)))

        def small(cache: str, form: str) -> None:
            set_experts(model, form)
            text(cache, min(n_new, 16))

        names = {f"{cache} cache {form}".strip(): (cache, form) for cache, form in ways}
        note = fastest({name: lambda way=way: small(*way) for name, way in names.items()})
        best, form = names[note]
        set_experts(model, form)

    def once(round_: int) -> Done:
        lengths = text(best, n_new, round_ + 1)
        return Done(sum(lengths), lengths)

    channel.ready(version(), note)
    rounds(channel, once)


def continuous(job: Job, channel: Channel, model: Any) -> None:
    """Replies by continuous batching on paged memory; equal prompts share their blocks."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    prompts = [p for p in job["prompts"] for _ in range(job["group"])]
    page = 32
    per_row = -(-(max(map(len, prompts)) + job["max_new_tokens"]) // page)
    memory: dict[str, Any] = {}
    if job["device"] == "cpu":  # on a GPU it sizes them itself
        memory = {"page_size": page, "num_blocks": (per_row + 1) * len(prompts), "max_batch_tokens": 1024}
    settings = ContinuousBatchingConfig(**memory)
    never = -1
    generation = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=job["max_new_tokens"], pad_token_id=job["pad_id"],
        eos_token_id=never if job["fixed"] else job["eos_id"],
    )  # fmt: skip

    def once(round_: int) -> Done:
        out = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=settings, persistent_manager=True
        )
        lengths = [len(one.generated_tokens) for one in out.values()]
        return Done(sum(lengths), lengths)

    channel.ready(version(), "generate_batch")
    rounds(channel, once)


def startup(job: Job, channel: Channel) -> None:
    """Load and make one token; the parent holds the watch."""
    Text(job, load(job))("dynamic", 1)
    channel.ready(version())
    channel.wait()


class Training:
    """Its model under a plain loop: forward, backward, clip, fused AdamW."""

    def __init__(self, job: Job, model: Any) -> None:
        import torch

        self.job, self.model = job, model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
        self.call = torch.compile(model) if job.get("compile") else model
        self.sequences = sorted(job["sequences"], key=lambda one: -len(one["tokens"]))
        self.counted = sum(sum(1 for w in one["weight"][1:] if w) for one in self.sequences)

    def batches(self, layout: str, rows: int) -> list[dict[str, Any]]:
        """Micro-batches of so many rows: one padded sequence a row, the longest first, or packed rows of which
        transformers tells the sequences apart by their positions."""
        if layout == "padded":
            laid = [[one] for one in self.sequences]
        else:
            laid = first_fit(self.sequences, self.job["row_tokens"])
        return [self._batch(laid[at : at + rows], layout) for at in range(0, len(laid), rows)]

    def _batch(self, laid: list[list[dict[str, Any]]], layout: str) -> dict[str, Any]:
        import torch

        tokens, labels, positions = [], [], []
        for row in laid:
            tokens.append([t for one in row for t in one["tokens"]])
            first_hidden = [[0, *one["weight"][1:]] for one in row]  # nothing predicts the first token of a sequence
            weights = [w for one in first_hidden for w in one]
            labels.append([t if w else -100 for t, w in zip(tokens[-1], weights, strict=True)])
            positions.append([i for one in row for i in range(len(one["tokens"]))])
        width = max(map(len, tokens))
        gap = [width - len(row) for row in tokens]
        made = {
            "input_ids": [row + [self.job["pad_id"]] * n for row, n in zip(tokens, gap, strict=True)],
            "labels": [row + [-100] * n for row, n in zip(labels, gap, strict=True)],
        }
        if layout == "packed":
            made["position_ids"] = [row + list(range(n)) for row, n in zip(positions, gap, strict=True)]
        elif any(gap):
            made["attention_mask"] = [[1] * (width - n) + [0] * n for n in gap]
        return {key: torch.tensor(value).to(self.job["device"]) for key, value in made.items()}

    def step(self, batches: list[dict[str, Any]]) -> None:
        """One optimizer step; the loss is the mean over all counted tokens."""
        import torch

        for batch in batches:
            self.call(**batch, num_items_in_batch=self.counted, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def first_fit(sequences: list[dict[str, Any]], row_tokens: int) -> list[list[dict[str, Any]]]:
    """The sequences, longest first, each into the first row with room."""
    rows: list[list[dict[str, Any]]] = []
    room: list[int] = []
    for one in sequences:
        length = len(one["tokens"])
        place = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[place].append(one)
        room[place] -= length
    return rows


def pretrain(job: Job, channel: Channel) -> None:
    """Optimizer steps on given sequences, laid out and cut as is fastest here."""
    training = Training(job, load(job))
    full = all(len(one["tokens"]) == job["row_tokens"] for one in job["sequences"])
    made: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    layouts = ["padded"] if full else ["padded", "packed"]
    for layout, form in itertools.product(layouts, experts_of(training.model, learns=True)):
        for n_tokens in job["micro_tokens"]:
            batches = training.batches(layout, max(1, n_tokens // job["row_tokens"]))
            made[f"{layout}, {form} experts, micro-batches of {n_tokens} tokens"] = form, batches

    def learn(name: str) -> None:
        form, batches = made[name]
        set_experts(training.model, form)
        training.step(batches)

    if job.get("compile"):  # only what compiles as a whole, else every try takes minutes
        made = {name: way for name, way in made.items() if "padded, grouped_mm" in name}
    best = fastest({name: lambda name=name: learn(name) for name in made})
    n_tokens = sum(len(one["tokens"]) for one in job["sequences"])

    def once(round_: int) -> Done:
        learn(best)
        return Done(n_tokens)

    channel.ready(version(), best + (", torch.compile" if job.get("compile") else ""))
    rounds(channel, once)


if __name__ == "__main__":
    run(main)
