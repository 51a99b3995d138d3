"""A local model as a policy: messages in; text, tokens and log-probs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zifio.config import ConfigError, Sampling
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.config import EngineConfig
from zifio.engine.dialogue import Dialogue
from zifio.engine.engine import Engine
from zifio.engine.pictures import asks_for_drawing, drawing, looked_at, painted_urls, picture_prompt
from zifio.engine.request import Completion
from zifio.models.count import forward_flops, vision_flops, vq_flops
from zifio.models.decoder import Decoder
from zifio.models.device import Device, Precision, find_device, sampling_precision
from zifio.models.hub import resolve
from zifio.models.janus import Janus
from zifio.models.weights import load_model
from zifio.tasks.environment import tools_of
from zifio.tasks.episode import Episode, Message, Reply, Start, conversation
from zifio.tasks.task import Task


class LocalPolicy:
    """Implements `tasks.episode.Policy` and `Player` with our engine."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: ChatTokenizer,
        max_rows: int | None = None,
        settings: EngineConfig | None = None,
        precision: Precision = "fp32",
    ) -> None:
        """`max_rows` goes before the settings' own; `precision` is the engine's.

        Raises ConfigError when the model cannot do what they want.
        """
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, tokenizer.eos_id, max_rows, settings, tokenizer.decode, precision)
        self.longest: int | None = None
        """Most tokens of an episode in turns, where that is less than the model's context."""
        self.opening: Callable[[list[Message]], list[int]] | None = None
        """Tokens that a reply is made to begin with; they are part of it, but count as not sampled."""

    def complete(
        self, conversations: list[list[Message]], n: int, sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """n replies to each conversation; reply j to conversation p draws from `seeds[p][j]` alone."""
        assert all(len(group) == n for group in seeds), "one seed per reply"
        if any(asks_for_drawing(c) or any(m.get("pictures") for m in c) for c in conversations):
            return self._with_pictures(conversations, sampling, seeds)
        openings = [self.opening(c) if self.opening else [] for c in conversations]
        prompts = [self.prompt(c) + opening for c, opening in zip(conversations, openings, strict=True)]
        completions_P_G = self.engine.generate(prompts, seeds, sampling)
        return [
            [self._reply(completion, opening) for completion in group]
            for group, opening in zip(completions_P_G, openings, strict=True)
        ]

    def _with_pictures(
        self, conversations: list[list[Message]], sampling: Sampling, seeds: list[list[int]]
    ) -> list[list[Reply]]:
        """Replies about pictures, or drawings; of a conversation all of which is text, a text."""
        prompts = [picture_prompt(self.model, self.tokenizer, c) for c in conversations]
        looked = [looked_at(self.model, prompt) for prompt in prompts]  # pictures are held until all is said
        out: list[list[Reply]] = [[] for _ in conversations]
        for draws in (False, True):
            places = [place for place, c in enumerate(conversations) if asks_for_drawing(c) == draws]
            tokens, part = [looked[place][0] for place in places], [seeds[place] for place in places]
            if not places:
                continue
            if draws:
                assert isinstance(self.model, Janus), "`picture_prompt` has refused others"
                how = sampling.model_copy(update={"max_new_tokens": self.model.shape.vq_config.n_tokens, "stop": ()})
                drawings = [drawing(one, self.tokenizer, sampling.guidance) for one in tokens]
                found = [self._drawn(group) for group in self.engine.generate(tokens, part, how, drawings)]
            else:
                completions = self.engine.generate(tokens, part, sampling)
                found = [[self._reply(one, []) for one in group] for group in completions]
            for place, group in zip(places, found, strict=True):
                out[place] = group
        return out

    def _drawn(self, completions: list[Completion]) -> list[Reply]:
        """Drawings, each of which is whole, as data URLs."""
        urls = painted_urls(self.model, [one.tokens for one in completions])
        return [Reply(one.tokens, url, one.logps, "stop") for one, url in zip(completions, urls, strict=True)]

    def converse(
        self, starts_P_G: list[list[Start]], sampling: Sampling, max_turns: int, tools: list[dict[str, Any]]
    ) -> list[list[Reply]]:
        """Episodes in turns, all at once and token by token (`engine/dialogue.py`).

        Raises ConfigError when a prompt leaves no room, or when the chat template has no words for a tool's output.
        """
        if tools:
            self.tokenizer.encode_between([{"role": "tool", "content": "0"}])
        prompts = [self.prompt(group[0].messages, tools) if group else [] for group in starts_P_G]
        context = self.model.config.max_position_embeddings
        longest = context if self.longest is None else min(self.longest, context)
        return Dialogue(self.engine, self.tokenizer, sampling, max_turns, longest).play(starts_P_G, prompts)

    def prompt(self, conversation: list[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The tokens after which the model replies, pictures numbered from 0 among them; `tools` are offered where the
        chat template does that."""
        return picture_prompt(self.model, self.tokenizer, conversation, tools).tokens

    def _reply(self, completion: Completion, opening: list[int]) -> Reply:
        """What the engine drew, behind what the reply was made to begin with."""
        finish, drawn = completion.finish, completion.tokens
        assert finish == "stop" or finish == "length", "a batch is neither refused in part nor cancelled"
        if completion.text is None:
            end = -1 if drawn and drawn[-1] in self.engine.eos_ids else len(drawn)
            text = self.tokenizer.decode(opening + drawn[:end])
        else:
            text = (self.tokenizer.decode(opening) if opening else "") + completion.text
        experts = completion.experts_NLA
        sampled = [False] * len(opening) + [True] * len(drawn) if opening else []
        logps = [0.0] * len(opening) + completion.logps
        tokens = opening + drawn
        return Reply(tokens, text, logps, finish, None if experts is None else experts.numpy(), sampled)


def sampling_flops(
    policy: LocalPolicy, task: Task, episodes_P_G: Sequence[Sequence[Episode]], guidance: float = 1.0
) -> float:
    """FLOPs of reading the prompts and drawing the replies, as if every reply read its own prompt; of drawings also of
    the blank prompts beside them, where they are guided, and of painting."""
    total, tools, model = 0.0, tools_of(task), policy.model
    for group in episodes_P_G:
        problem = group[0].problem
        n_prompt = len(policy.prompt(conversation(problem), tools))
        flops = forward_flops(model.config, [n_prompt + len(e.reply.tokens) for e in group])
        total += flops * (2 if problem.draws and guidance != 1 else 1)
        if isinstance(model, Janus):
            vq, vision = model.shape.vq_config, model.shape.vision_config
            total += len(problem.pictures) * vision_flops(vision)
            total += problem.draws * len(group) * (vq_flops(vq) - vq_flops(vq, paints=False))
    return total


def load_policy(
    folder: str | Path,
    max_rows: int | None = None,
    settings: EngineConfig | None = None,
    device: Device = "cpu",
    precision: Precision = "fp32",
) -> LocalPolicy:
    """The model and tokenizer of a Hugging Face folder or a GGUF file as a policy; `precision` counts on a GPU only.

    Raises what `open_model` and `find_device` raise.
    """
    where = find_device(device, str(folder))
    model, tokenizer = open_model(folder)
    return LocalPolicy(model.to(where), tokenizer, max_rows, settings, sampling_precision(precision, where))


def open_model(folder: str | Path) -> tuple[Decoder, ChatTokenizer]:
    """The model and tokenizer of a Hugging Face folder or a GGUF file.

    It may also be the name of a model at the Hugging Face hub (`models.hub`). Raises ConfigError when either cannot be
    read, when the tokenizer has more tokens than the model has rows, or when the model writes nothing.
    """
    model, tokenizer = open_decoder(folder)
    if model.config.num_labels is not None:
        raise ConfigError(
            f"{folder}: wanted a model that writes, came one that scores ({model.config.num_labels} labels). Name the "
            "model that it was made from."
        )
    return model, tokenizer


def open_decoder(folder: str | Path) -> tuple[Decoder, ChatTokenizer]:
    """As `open_model`, whether the model writes or scores."""
    folder = resolve(folder)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    check_fit(model, tokenizer, str(folder))
    return model, tokenizer


def check_fit(model: Decoder, tokenizer: ChatTokenizer, where: str) -> None:
    """Raise ConfigError when the tokenizer can produce an id that the model has no embedding for."""
    rows = model.config.vocab_size or 0
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {rows} embedding rows; "
            "they do not belong together. Use the tokenizer that the model was trained with."
        )
