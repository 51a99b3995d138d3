"""A local model under examination, with thinking budgets.

Each reply is drawn once. For every budget that its thinking exceeds, the thinking is cut at that many tokens, the end
of thinking is put behind it and the answer is drawn anew (budget forcing, arXiv:2501.19393). Since a reply is drawn
token by token, that is what the model would have said had its thinking been ended there; replies that think less stay
as they are. So the budgets of a curve share their draws, and differ by the budget alone.

Try it: `zifio eval runs/quickstart/r1/model --task chain_mod --n 4 'budgets=[8, 16, 32]'`
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any, NamedTuple

from zifio.checkpoint import model_digest
from zifio.config import ConfigError, Sampling
from zifio.engine.policy import LocalPolicy, load_policy
from zifio.evaluate.config import ExamConfig
from zifio.evaluate.replies import Ask, Failed, Frame, Said
from zifio.models.hub import resolve
from zifio.seed import stream_seed
from zifio.tasks.environment import Interactive
from zifio.tasks.episode import Reply, Start, started, told
from zifio.tasks.form import THINK, THOUGHT
from zifio.tasks.task import Problem


class _Drawn(NamedTuple):
    ask: Ask
    prompt: list[int]
    reply: Reply


class LocalSubject:
    """Implements `evaluate.replies.Subject` with our engine."""

    budget_by = "thinking cut there, its end forced, the answer drawn anew"
    has_policy_logps = True

    def __init__(self, model: str, exam: ExamConfig, problems: list[Problem], force: str) -> None:
        """Loads the model. Raises ConfigError when it cannot be read, or the longest problem leaves no room."""
        self.folder = resolve(model)
        self.policy = load_policy(self.folder, None, exam.engine, exam.device, exam.precision)
        self.frame = Frame(exam.system, exam.instruction)
        self.prices, self.budgets = exam.prices, exam.budgets
        self.answer_tokens, self.force = exam.answer_tokens, self.policy.tokenizer.encode(force)
        longest = max(len(self.policy.prompt(self.frame.messages(problem))) for problem in problems)
        self.sampling = _fitting(exam, self.policy, longest, len(self.force) + self.answer_tokens)

    def identity(self) -> dict[str, Any]:
        """The weights, and how thinking is cut."""
        cut = {"force": self.policy.tokenizer.decode(self.force), "answer_tokens": self.answer_tokens}
        return {"model": model_digest(self.folder), **(cut if self.budgets else {})}

    def close(self) -> None:
        """Give the engine's memory back."""
        self.policy.engine.release()

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """Replies in batches that fill the engine, each batch with all budgets of its replies."""
        pending: dict[str, dict[int, list[Ask]]] = {}
        for ask in asks:
            pending.setdefault(ask.problem.id, {}).setdefault(ask.place, []).append(ask)
        batch: list[list[list[Ask]]] = []
        for draws in map(list, map(dict.values, pending.values())):
            if batch and (len(draws) != len(batch[0]) or len(draws) * len(batch) >= self.policy.engine.max_rows):
                yield self._batch(batch)
                batch = []
            batch.append(draws)
        if batch:
            yield self._batch(batch)

    def _batch(self, asks_P_G: list[list[list[Ask]]]) -> list[tuple[Ask, Said] | Failed]:
        """As many draws of each problem, every draw with all its budgets. Their seconds are shared evenly."""
        began = time.perf_counter()
        conversations = [self.frame.messages(draws[0][0].problem) for draws in asks_P_G]
        seeds = [[asks[0].seed for asks in draws] for draws in asks_P_G]
        replies_P_G = self.policy.complete(conversations, len(asks_P_G[0]), self.sampling, seeds)
        found: list[_Drawn] = []
        long: list[_Drawn] = []
        for draws, replies, messages in zip(asks_P_G, replies_P_G, conversations, strict=True):
            prompt = self.policy.prompt(messages)
            for asks, reply in zip(draws, replies, strict=True):
                n_thinking = self._thinking_tokens(reply, prompt)
                has_end = not n_thinking or THOUGHT in reply.text or reply.finish == "stop"
                for ask in asks:
                    fits = ask.budget is None or (has_end and n_thinking <= ask.budget)
                    (found if fits else long).append(_Drawn(ask, prompt, reply))
        found += self._cut(long)
        share_s = (time.perf_counter() - began) / len(found)
        return [(drawn.ask, self._said(drawn, share_s)) for drawn in found]

    def _cut(self, long: list[_Drawn]) -> list[_Drawn]:
        """The replies with their thinking cut, its end forced and their answers drawn anew."""
        if not long:
            return []
        sampling = self.sampling.model_copy(update={"max_new_tokens": self.answer_tokens})
        heads = [drawn.reply.tokens[: drawn.ask.budget] + self.force for drawn in long]
        prompts = [drawn.prompt + head for drawn, head in zip(long, heads, strict=True)]
        seeds = [[stream_seed(drawn.ask.seed, "budget", drawn.ask.budget or 0)] for drawn in long]
        found, engine = [], self.policy.engine
        for drawn, head, [rest] in zip(long, heads, engine.generate(prompts, seeds, sampling), strict=True):
            end = -1 if rest.tokens and rest.tokens[-1] in engine.eos_ids else None
            answer = self.policy.tokenizer.decode(rest.tokens[:end]) if rest.text is None else rest.text
            logps = drawn.reply.logps[: drawn.ask.budget] + rest.logps  # of what the model itself chose
            finish = "length" if rest.finish == "length" else "stop"
            text = self.policy.tokenizer.decode(head) + answer
            found.append(_Drawn(drawn.ask, drawn.prompt, Reply(head + rest.tokens, text, logps, finish)))
        return found

    def _thinking_tokens(self, reply: Reply, prompt: list[int]) -> int:
        """Tokens up to the end of thinking, that end included; 0 of a reply that does not think.

        The chat template may have opened the thinking in the prompt.
        """
        decode, tokens = self.policy.tokenizer.decode, reply.tokens
        if THOUGHT not in reply.text:
            opened = THINK in reply.text or decode(prompt[-8:]).rstrip().endswith(THINK)
            return len(tokens) if opened else 0
        low, high = 0, len(tokens)  # the end is not in the first `low` tokens, and is in the first `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if THOUGHT in decode(tokens[:middle]) else (middle, high)
        return high

    def _said(self, drawn: _Drawn, seconds: float) -> Said:
        ask, prompt, reply = drawn
        return Said(
            text=reply.text,
            n_tokens=len(reply.tokens),
            n_prompt_tokens=len(prompt),
            n_thinking_tokens=self._thinking_tokens(reply, prompt),
            finish=reply.finish,
            seconds=seconds,
            cost=self.prices.cost(len(prompt), len(reply.tokens)) if self.prices else None,
            logp=float(sum(reply.logps)),
            seed=ask.seed,
        )


class LocalInTurns:
    """Implements `evaluate.replies.Subject` with our engine on a task that answers back, token by token as in RL."""

    budget_by = ""
    has_policy_logps = True

    def __init__(self, model: str, exam: ExamConfig, problems: list[Problem], task: Interactive) -> None:
        """Loads the model. Raises ConfigError when it cannot be read, or its chat template has no words for tools."""
        self.folder, self.task, self.prices = resolve(model), task, exam.prices
        self.policy = load_policy(self.folder, None, exam.engine, exam.device, exam.precision)
        self.frame = Frame(exam.system, exam.instruction)
        prompts = {p.id: self.policy.prompt(self.frame.messages(p), task.tools) for p in problems}
        self.n_prompt = {id: len(prompt) for id, prompt in prompts.items()}
        self.sampling = _fitting(exam, self.policy, max(self.n_prompt.values()), 0)

    def identity(self) -> dict[str, Any]:
        """The weights."""
        return {"model": model_digest(self.folder)}

    def close(self) -> None:
        """Give the engine's memory back."""
        self.policy.engine.release()

    def answer(self, asks: list[Ask]) -> Iterator[list[tuple[Ask, Said] | Failed]]:
        """Episodes in batches that fill the engine; those of a problem start from one prompt."""
        size = self.policy.engine.max_rows
        for start in range(0, len(asks), size):
            yield self._batch(asks[start : start + size])

    def _batch(self, asks: list[Ask]) -> list[tuple[Ask, Said] | Failed]:
        """All of these at once. Their seconds are shared evenly."""
        began = time.perf_counter()
        asks_P_G = [list(group) for _, group in groupby(asks, key=lambda ask: ask.problem.id)]
        starts_P_G = [[self._start(ask) for ask in group] for group in asks_P_G]
        replies_P_G = self.policy.converse(starts_P_G, self.sampling, self.task.max_turns, self.task.tools)
        share_s = (time.perf_counter() - began) / len(asks)
        played = zip(asks, chain.from_iterable(starts_P_G), chain.from_iterable(replies_P_G), strict=True)
        return [(ask, self._said(ask, start, reply, share_s)) for ask, start, reply in played]

    def _start(self, ask: Ask) -> Start:
        return Start(self.frame.messages(ask.problem), started(self.task, ask.problem, ask.seed), ask.seed)

    def _said(self, ask: Ask, start: Start, reply: Reply, seconds: float) -> Said:
        n_prompt = self.n_prompt[ask.problem.id] + len(reply.tokens) - reply.n_sampled
        return Said(
            text=reply.text,
            n_tokens=reply.n_sampled,
            n_prompt_tokens=n_prompt,
            finish=reply.finish,
            seconds=seconds,
            cost=self.prices.cost(n_prompt, reply.n_sampled) if self.prices else None,
            logp=float(sum(reply.logps)),
            seed=ask.seed,
            extra=told(start.messages, reply),
            environment=start.environment,
            fault=reply.fault,
        )


def _fitting(exam: ExamConfig, policy: LocalPolicy, longest: int, spare: int) -> Sampling:
    """The exam's sampling; where it does not say how long a reply may be, as long as the model's context allows.

    Raises ConfigError when a budget leaves no room for its answer.
    """
    context = policy.model.config.max_position_embeddings
    room, limit = context - longest, exam.sampling.max_new_tokens
    if "sampling" not in exam.model_fields_set or "max_new_tokens" not in exam.sampling.model_fields_set:
        limit = max(1, min(limit, room))
    most = max(exam.budgets, default=0)
    if most + spare > room and exam.budgets:
        raise ConfigError(
            f"budgets: wanted at most {room - spare} tokens, so that with the longest problem ({longest} tokens) and "
            f"an answer ({spare} tokens) they fit the model's context of {context}; came {most}. Lower it, or "
            "answer_tokens."
        )
    if most > limit:
        raise ConfigError(
            f"budgets: wanted at most sampling.max_new_tokens = {limit}, the longest reply that is drawn; came {most}. "
            "Raise sampling.max_new_tokens."
        )
    return exam.sampling.model_copy(update={"max_new_tokens": limit})
