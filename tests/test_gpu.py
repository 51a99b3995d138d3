"""On one GPU: the CPU's greedy text, the trainer's log-probs, graphs that do not show, and RL.

Run: pytest -m gpu tests/test_gpu.py -s
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    RL,
    Sevens,
    context,
    deepseek,
    lively,
    llama,
    logits_of,
    metrics,
    qwen3_moe,
    run,
    save_base,
    tokens_like,
)

from zifio.config import Sampling
from zifio.engine.config import EngineConfig
from zifio.engine.engine import Engine
from zifio.engine.request import Completion
from zifio.evaluate.run import make_look
from zifio.log import say
from zifio.models.config import AnyConfig
from zifio.models.decoder import Decoder
from zifio.models.device import find_device
from zifio.train.logp import token_logp
from zifio.train.loop import Look

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU"),
    pytest.mark.filterwarnings("default"),  # of other people's libraries on other people's machines
]
EOS = 2
CASES: dict[str, AnyConfig] = {
    "llama": llama(max_position_embeddings=160),
    "qwen3-moe": qwen3_moe(max_position_embeddings=160),
    "deepseek": deepseek(num_nextn_predict_layers=1, max_position_embeddings=160),
}
PROMPTS = [tokens_like(n, seed=n).tolist() for n in (1, 40, 4, 70)]
SEEDS = [[10 * p + g for g in range(5)] for p in range(4)]
SAMPLING = Sampling(max_new_tokens=60)


def on_gpu(name: str) -> Decoder:
    """A tiny model that ends its replies now and then, on the GPU."""
    return lively(CASES[name], EOS, push=0.0).to(find_device("cuda", "test"))


def tokens(done: list[list[Completion]]) -> list[list[list[int]]]:
    """What was said."""
    return [[completion.tokens for completion in group] for group in done]


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_the_cpus(name: str, latent: bool):
    sampling, settings = Sampling(temperature=0, max_new_tokens=40), EngineConfig(latent_cache=latent)
    on_cpu = lively(CASES[name], EOS, push=0.0)
    expected = Engine(on_cpu, EOS, settings=settings).generate(PROMPTS, SEEDS, sampling)
    found = Engine(on_gpu(name), EOS, settings=settings).generate(PROMPTS, SEEDS, sampling)
    assert tokens(found) == tokens(expected)


def gaps(model: Decoder, done: list[list[Completion]], precision: str) -> torch.Tensor:
    """|sampler's log-prob - trainer's| of every token."""
    found = []
    for prompt, group in zip(PROMPTS, done, strict=True):
        for completion in group:
            whole = torch.tensor([prompt + completion.tokens], device="cuda")
            positions = torch.arange(whole.shape[1], device="cuda")[None]
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                logits = model.logits(model(whole, positions).hidden_BTD)
                logp = token_logp(logits, whole)[0, len(prompt) :]
            found.append((logp.cpu() - torch.tensor(completion.logps)).abs())
    return torch.cat(found)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision, most", [("fp32", 1e-4), ("bf16", 0.1)])
@pytest.mark.parametrize("name", CASES)
def test_log_probs_are_the_trainers(name: str, precision: Any, most: float, graphs: bool):
    """The greatest gap in fp32; in bf16 the mean one, which is reported."""
    model = on_gpu(name)
    engine = Engine(model, EOS, settings=EngineConfig(cuda_graphs=graphs), precision=precision)
    gap = gaps(model, engine.generate(PROMPTS, SEEDS, SAMPLING), precision)
    say(f"{name}, {precision}, graphs {graphs}: log-prob gap mean {gap.mean():.2e}, greatest {gap.max():.2e}")
    assert (gap.max() if precision == "fp32" else gap.mean()) < most


@pytest.mark.parametrize("special", [{}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"latent_cache": True}, {"max_rows": 3}, {"speculate": True}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_graphs_do_not_show(name: str, settings: dict[str, Any], special: dict[str, Any]):
    model, sampling = on_gpu(name), Sampling(max_new_tokens=60, **special)
    if settings.get("speculate") and not len(model.mtp):
        pytest.skip("no module to draft with")
    engines = [Engine(model, EOS, settings=EngineConfig(cuda_graphs=on, **settings)) for on in (False, True)]
    without, with_graphs = (engine.generate(PROMPTS, SEEDS, sampling) for engine in engines)
    assert tokens(without) == tokens(with_graphs)
    assert engines[1]._graphs is not None and engines[1]._graphs._recorded


def test_graphs_follow_the_weights():
    """Changed in place, and after the memory was given back."""
    for precision in ("fp32", "bf16"):
        model = on_gpu("deepseek")
        engine = Engine(model, EOS, precision=precision)
        engine.generate(PROMPTS, SEEDS, SAMPLING)
        for release in (False, True):
            if release:
                engine.release()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.05)
            found = engine.generate(PROMPTS, SEEDS, SAMPLING)
            fresh = Engine(model, EOS, settings=EngineConfig(cuda_graphs=False), precision=precision)
            gap = gaps(model, found, precision)
            assert gap.mean() < (1e-5 if precision == "fp32" else 0.1)
            if precision == "fp32":
                assert tokens(found) == tokens(fresh.generate(PROMPTS, SEEDS, SAMPLING))


def test_routing_is_recorded():
    model = on_gpu("deepseek")
    done = Engine(model, EOS, settings=EngineConfig(record_routing=True)).generate(PROMPTS, SEEDS, SAMPLING)
    experts = done[1][0].experts_NLA
    assert experts is not None and experts.is_cpu and len(experts) == 40 + len(done[1][0].tokens) - 1


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}, {"asynchronous": True}, {"kl_weight": 0.1}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [llama(), deepseek(num_nextn_predict_layers=1)], ids=["llama", "deepseek"])
def test_rl_learns(config: AnyConfig, precision: str, changes: dict[str, Any], tmp_path: Path):
    """Looks, gaps between sampler and trainer, and a folder that a CPU opens."""
    base = save_base(tmp_path / "base", config)
    stage = RL | {
        "steps": 4, "device": "cuda", "precision": precision, "held_out": {"every": 2}, "balance": {}, **changes,
        "updates": 1,
    }  # fmt: skip

    def look(s: Any, tokenizer: Any, task: Any) -> Look:
        return make_look(4, 2, s.sampling, 1, task, tokenizer, s.precision)

    run("rl", stage, replace(context(tmp_path / "run", Sevens(), base=base), look=look))
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    name = "sampling/sampling_logp_difference/mean"
    gap = [line[name] for line in lines if name in line]
    say(f"{config.model_type}, {precision}, {changes}: log-prob gap {gap}")
    assert len(lines) == 4 and any("held_out/pass_at_1" in line for line in metrics(tmp_path / "run"))
    if "asynchronous" not in changes:
        assert gap and max(gap) < (1e-4 if precision == "fp32" else 0.05)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_logits_are_the_cpus():
    for name in CASES:
        whole = tokens_like(2, 30)
        expected = logits_of(lively(CASES[name], EOS, push=0.0), whole)
        model = on_gpu(name)
        positions = torch.arange(30, device="cuda").expand(2, -1)
        found = model.logits(model(whole.cuda(), positions).hidden_BTD)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)
