"""Tiny shapes, models, tokenizers and stages that many tests share. Everything here takes milliseconds."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zifio.config import build
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, chat_tokenizer, save_tokenizer, train_tokenizer
from zifio.models.config import AnyConfig
from zifio.models.decoder import Decoder
from zifio.models.families import (
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Yarn,
)
from zifio.models.hybrids import DeepseekV32Config, HybridConfig, Qwen3NextConfig
from zifio.models.janus import Janus
from zifio.models.janus_config import JanusConfig
from zifio.models.vq import Vq
from zifio.models.weights import save_model
from zifio.tasks.environment import Call, Environment, Message, Observation, Turn, conversation
from zifio.tasks.sums import ChainSum
from zifio.tasks.task import Problem, Verdict
from zifio.train.classifier import classifier
from zifio.train.config import DistillStage, PretrainStage, RlStage, SftStage
from zifio.train.distill import distill
from zifio.train.feedback import DpoStage, MarkStage, PrmStage, RewardStage, SampleStage
from zifio.train.janus import janus as janus_stage
from zifio.train.loop import Look, Trainer
from zifio.train.mark import mark
from zifio.train.picture_config import ClassifierStage, JanusStage, VisionStage, VqStage
from zifio.train.preference import dpo, reward
from zifio.train.pretrain import pretrain
from zifio.train.prm import prm
from zifio.train.rl import rl
from zifio.train.sample import sample
from zifio.train.sft import sft
from zifio.train.stage import Context
from zifio.train.vision import vision
from zifio.train.vq import vq

KINDS = {
    "pretrain": (PretrainStage, pretrain),
    "rl": (RlStage, rl),
    "sft": (SftStage, sft),
    "sample": (SampleStage, sample),
    "distill": (DistillStage, distill),
    "mark": (MarkStage, mark),
    "prm": (PrmStage, prm),
    "reward": (RewardStage, reward),
    "dpo": (DpoStage, dpo),
    "vq": (VqStage, vq),
    "classifier": (ClassifierStage, classifier),
    "vision": (VisionStage, vision),
    "janus": (JanusStage, janus_stage),
}
SHORT_SUMS = ChainSum(min_terms=2, max_terms=4)
ADAM, MUON = {"kind": "adamw", "lr": 3e-3}, {"kind": "muon", "lr": 3e-3}


def deepseek(**changes: Any) -> DeepseekV3Config:
    """Two layers, the first dense, the second with eight experts in four groups."""
    fields: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
        "max_position_embeddings": 96, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
        "v_head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
        "topk_group": 2, "routed_scaling_factor": 2.5, "initializer_range": 0.15,
    }  # fmt: skip
    return DeepseekV3Config(**(fields | changes))


def deepseek_v2(**changes: Any) -> DeepseekV2Config:
    """As `deepseek`, with V2's softmax gate and the greedy choice of V2-Lite."""
    fields = deepseek().model_dump(exclude={"model_type", "norm_topk_prob", "num_nextn_predict_layers"})
    return DeepseekV2Config(**(fields | changes))


GROUPED: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 96, "initializer_range": 0.15,
}  # fmt: skip


def llama(**changes: Any) -> LlamaConfig:
    """Two dense layers whose four query heads share two key/value heads."""
    return LlamaConfig(**(GROUPED | changes))


def qwen2(**changes: Any) -> Qwen2Config:
    """As `llama`, with biases on queries, keys and values."""
    return Qwen2Config(**(GROUPED | changes))


def qwen3(**changes: Any) -> Qwen3Config:
    """As `llama`, with normed queries and keys, whose heads are wider than the model divided by their number."""
    return Qwen3Config(**(GROUPED | {"head_dim": 10} | changes))


def qwen3_moe(**changes: Any) -> Qwen3MoeConfig:
    """As `qwen3` in four layers: dense, experts, dense, dense although the step says experts."""
    fields = {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_experts": 8}
    fields |= {"num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 10}
    return Qwen3MoeConfig(**(GROUPED | fields | changes))


MILD: dict[str, Any] = {"initializer_range": 0.05, "rms_norm_eps": 1e-4}
"""Where the rule's outputs are small, its norm makes them large again, with what they were rounded by."""


def qwen3_next(**changes: Any) -> Qwen3NextConfig:
    """Four layers, the last of gated attention, the second dense; four heads of values share two of keys."""
    fields = {"num_hidden_layers": 4, "mlp_only_layers": [1], "num_experts": 8, "num_experts_per_tok": 3}
    fields |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20, "head_dim": 16}
    fields |= {"linear_key_head_dim": 6, "linear_value_head_dim": 5} | MILD
    return Qwen3NextConfig(**(GROUPED | fields | changes))


def deepseek_v32(**changes: Any) -> DeepseekV32Config:
    """As `deepseek`, with an indexer that keeps 12 tokens; of so many heads that no two tokens score 0."""
    fields = deepseek(q_lora_rank=10).model_dump(exclude={"model_type"})
    fields |= {"index_n_heads": 16, "index_head_dim": 6, "index_topk": 12}
    return DeepseekV32Config(**(fields | changes))


def hybrid(**changes: Any) -> HybridConfig:
    """Four layers of all kinds of mixers; a window of 7 tokens, an indexer that keeps 9."""
    fields: dict[str, Any] = {
        "num_hidden_layers": 4, "head_dim": 10, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
        "layer_types": ["linear_attention", "full_attention", "sliding_attention", "indexed_attention"],
        "sliding_window": 7, "index_topk": 9,
    }  # fmt: skip
    return HybridConfig(**(GROUPED | fields | MILD | changes))


def janus(text: AnyConfig | None = None, **changes: Any) -> JanusConfig:
    """Pictures of 16 pixels a side as 16 patches; drawings of as many pixels as 16 of 24 codes."""
    text = text or llama()
    vision: dict[str, Any] = {
        "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0, "image_size": 16,
        "patch_size": 4, "num_image_tokens": 16, "projection_dim": text.hidden_size,
    }  # fmt: skip
    vq: dict[str, Any] = {
        "embed_dim": 4, "num_embeddings": 24, "latent_channels": 8, "base_channels": 32, "num_patches": 4,
        "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "projection_dim": text.hidden_size,
        "image_token_embed_dim": text.hidden_size,
    }  # fmt: skip
    parts = {"vision_config": vision | changes.pop("vision", {}), "vq_config": vq | changes.pop("vq", {})}
    return JanusConfig(**({"text_config": text, "image_token_id": 39} | parts | changes))


def shaken(model: torch.nn.Module, seed: int) -> torch.Generator:
    """Random norms and biases; returns what they were drawn with, to draw on."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(".bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
    return generator


def made_janus(shape: JanusConfig | None = None, seed: int = 1) -> Janus:
    """A model that reads and draws, with random norms and biases."""
    model = Janus(shape or janus(), seed)
    shaken(model, seed)
    return model


def picture_characters() -> ChatTokenizer:
    """The tokenizer of captions, with the tokens for pictures."""
    alphabet = "abcdefghijklmnopqrstuvwxyz ?:W+=0123456789%()"
    return chat_tokenizer(train_tokenizer(TokenizerConfig(alphabet=alphabet, pictures=True), []))


def scene_janus(seed: int = 1, **text: Any) -> Janus:
    """A model over the tokens of `picture_characters` that reads and draws pictures of 32 pixels, in 64 tokens."""
    size = {"vocab_size": picture_characters().vocab_size, "max_position_embeddings": 256}
    vision = {"image_size": 32, "num_image_tokens": 64}
    return made_janus(janus(llama(**(size | text)), vision=vision, vq={"num_patches": 8}), seed)


def save_with_pictures(folder: Path, model: Decoder | Vq) -> Path:
    """A model with the tokenizer of captions, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    save_tokenizer(picture_characters(), folder)
    return folder


def pixels_like(n: int, side: int = 16, seed: int = 4) -> Tensor:
    """Random pictures, [n, 3, side, side], from -1 to 1."""
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


EVERY_FAMILY: dict[str, AnyConfig] = {
    "llama": llama(),
    "llama-biased": llama(attention_bias=True),
    "llama-tied": llama(tie_word_embeddings=True),
    "qwen2": qwen2(),
    "qwen2-tied": qwen2(tie_word_embeddings=True),
    "qwen3": qwen3(),
    "qwen3-biased": qwen3(attention_bias=True),
    "qwen3-moe": qwen3_moe(),
    "qwen3-moe-plain": qwen3_moe(decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=False),
    "v2-greedy": deepseek_v2(),
    "v2-grouped": deepseek_v2(q_lora_rank=10, topk_method="group_limited_greedy", rope_scaling=Yarn(mscale=0.7)),
    "v3": deepseek(),
    "v3-low-rank-query": deepseek(q_lora_rank=10, n_shared_experts=2, num_nextn_predict_layers=1),
    "qwen3-next": qwen3_next(),
    "v3.2": deepseek_v32(),
}
"""Tiny shapes that together use every switch of every family."""


def made(config: AnyConfig, seed: int = 1) -> Decoder:
    """A decoder with random norms and biases; those of routers make some scores negative."""
    model = Decoder(config, seed)
    generator = shaken(model, seed)
    with torch.no_grad():
        for router in model.routers():
            if router.e_score_correction_bias is not None:
                router.e_score_correction_bias.normal_(0.0, 0.6, generator=generator)
    return model


def lively(config: DeepseekV3Config | LlamaConfig, eos_id: int, seed: int = 1, push: float = 1.4) -> Decoder:
    """A model that ends its replies now and then: the end token has about `push` more logits than others."""
    model = made(config, seed)
    tokens = tokens_like(4, 20, vocab=min(40, config.vocab_size or 40))
    with torch.no_grad():
        mean_D = model(tokens, torch.arange(20).expand(4, -1)).hidden_BTD.mean(dim=(0, 1))
        model.lm_head.weight *= 0.5
        model.lm_head.weight[eos_id] += push * mean_D / mean_D.square().sum()
    return model


def logits_of(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """Logits of whole sequences, one a row, without cache."""
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    return model.logits(model(tokens_BT, positions_BT).hidden_BTD)


def tokens_like(*shape: int, seed: int = 3, vocab: int = 40) -> Tensor:
    """Random token ids of this shape."""
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def characters(alphabet: str = "0123456789+-=") -> ChatTokenizer:
    """The tokenizer of sums: 22 tokens."""
    return ChatTokenizer(train_tokenizer(TokenizerConfig(alphabet=alphabet), []))


def save_base(folder: Path, config: AnyConfig, seed: int = 1, alphabet: str = "0123456789+-=") -> Path:
    """A model folder with an untrained model and the tokenizer of sums, or of these characters."""
    tokenizer = characters(alphabet)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(made(config.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed), folder)
    save_tokenizer(tokenizer, folder)
    return folder


class Sevens(ChainSum):
    """A task that an untrained model gets right now and then: say a 7. Its format wants a digit in front."""

    min_terms: int = 2
    max_terms: int = 4

    def score(self, problem: Problem, response: str) -> Verdict:
        """Right when there is a 7 in it."""
        right = "7" in response
        parts = {"accuracy": float(right), "format": float(response[:1].isdigit()), "process": 0.0}
        return Verdict("right" if right else "wrong", float(right), parts)


class Parrot:
    """An environment that answers every turn with the length of its text, until `turns` were said."""

    def __init__(self, turns: int = 3, role: str = "tool", instant: bool = True, seconds: float = 0.0) -> None:
        self.turns, self.role, self.instant, self.seconds = turns, role, instant, seconds
        self.seen: list[Turn] = []

    def step(self, turn: Turn) -> Observation:
        """The answer; every second one is said to have failed."""
        time.sleep(self.seconds)
        self.seen.append(turn)
        if len(self.seen) >= self.turns:
            return Observation(done=True)
        content = f"{len(turn.text)}={len(self.seen)}"
        return Observation(({"role": self.role, "content": content},), n_calls=1, n_failures=len(self.seen) % 2)

    def verdict(self, text: str) -> Verdict | None:
        """None: the task says what it came to."""
        return None


class Chatter(Sevens):
    """As `Sevens`, played in turns with a parrot."""

    max_turns: int = 4
    n_turns: int = 3
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "1", "parameters": {}}}]

    def start(self, problem: Problem, seed: int) -> Environment:
        """A parrot of its own."""
        return Parrot(self.n_turns)

    def demonstration(self, problem: Problem, shows_working: bool) -> list[Message]:
        """A call, what comes of it, and the answer."""
        turn = Turn("", (Call("1", "1"),)).message()
        answer = Turn(self.document(problem, shows_working)).message()
        return [*conversation(problem), turn, {"role": "tool", "content": "1"}, answer]


def tool_characters() -> ChatTokenizer:
    """The tokenizer of sums, with the tokens for tools."""
    return chat_tokenizer(train_tokenizer(TokenizerConfig(alphabet="0123456789+-="), [], with_tools=True))


def brief(config: AnyConfig, seed: int = 1) -> Decoder:
    """A model over the tokens of `tool_characters` that ends its turns after a few tokens."""
    tokenizer = tool_characters()
    changes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    return lively(config.model_copy(update=changes), tokenizer.eos_id, seed, push=2.0)  # type: ignore[arg-type]


def save_brief(folder: Path, config: AnyConfig) -> Path:
    """That model with its tokenizer, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(brief(config), folder)
    save_tokenizer(tool_characters(), folder)
    return folder


def counting_look(*_: Any) -> Look:
    """An evaluation that reports the sum of all weights: any change in the model shows."""
    return lambda model, step: ({"sum": sum(p.sum().item() for p in model.parameters())}, 10.0)


def context(folder: Path, task: Any = SHORT_SUMS, seed: int = 5, **paths: Path) -> Context:
    """A context whose names of models and data are the keywords."""
    return Context(folder, seed, task, lambda name: paths[name], lambda name: paths[name], counting_look)


def run(kind: str, settings: dict[str, Any], context: Context) -> dict[str, float]:
    """One stage from its settings, as a recipe would run it; returns its totals."""
    config, function = KINDS[kind]
    return function(build(config, {"kind": kind, "name": "tiny", **settings}, "test"), context)


PRETRAIN: dict[str, Any] = {
    "model": deepseek(num_nextn_predict_layers=1).model_copy(update={"vocab_size": None}).model_dump(exclude_none=True),
    "steps": 20, "documents": 8, "p_cot": 0.5, "checkpoint_every": 3, "rows": {"row_tokens": 48, "micro_tokens": 96},
    "optim": MUON | {"warmup_steps": 4, "schedule": "cosine"}, "balance": {"bias_speed": 0.01},
    "held_out": {"every": 4},
}  # fmt: skip
RL: dict[str, Any] = {
    "from": "base", "gate": False, "steps": 20, "prompts": 4, "group": 6, "updates": 2, "checkpoint_every": 3,
    "optim": ADAM | {"lr": 3e-4, "warmup_steps": 4}, "sampling": {"max_new_tokens": 6, "temperature": 0.7},
    "rows": {"row_tokens": 40, "micro_tokens": 120}, "balance": {"bias_speed": 0.01},
}  # fmt: skip


def run_tiny(kind: str, folder: str, base: str, settings: dict[str, Any] | None = None) -> None:
    """PRETRAIN or RL from and in these folders, with changes; made to be the target of a process."""
    default = {"pretrain": PRETRAIN, "rl": RL}[kind]
    task = {"pretrain": SHORT_SUMS, "rl": Sevens()}[kind]
    torch.set_num_threads(1)
    run(kind, default | (settings or {}), context(Path(folder), task, tokenizer=Path(base), base=Path(base)))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stopped(Exception):
    """As if the run had been ended from outside."""


@contextmanager
def stopped_behind(step: int | None = None) -> Generator[None, None, None]:
    """Within, training ends right behind the checkpoint of this step, or behind its first one; it must get there."""
    save = Trainer._save

    def stops(self: Trainer, at: int, totals: dict[str, float]) -> None:
        save(self, at, totals)
        if step in (None, at):
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "_save", stops)
        yield


def in_one_and_in_two(
    kind: str, settings: dict[str, Any], folder: Path, behind: int | None = None, task: Any = SHORT_SUMS, **paths: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """A stage run whole in `folder`/whole, and in two parts in `folder`/halves, which is to come to the same to the
    byte; the totals of both."""
    whole, halves = folder / "whole", folder / "halves"
    totals = run(kind, settings, context(whole, task, **paths))
    with stopped_behind(behind):
        run(kind, settings, context(halves, task, **paths))
    resumed = run(kind, settings, context(halves, task, **paths))
    assert_one_run(whole, halves)
    return totals, resumed


def assert_one_run(whole: Path, halves: Path) -> None:
    """Both wrote the same metrics and weights, to the byte."""
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes(), name


KILLED = -int(signal.SIGKILL)
