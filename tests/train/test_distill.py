"""Distillation on logits and by hints: first losses against plain formulas, what makes a step, resume, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ADAM, SHORT_SUMS, Sevens, context, deepseek, llama, logits_of, metrics, run, save_base, save_brief

from zifio.checkpoint import model_digest
from zifio.config import ConfigError, build
from zifio.data.sources import write_jsonl
from zifio.data.tokenizer import load_tokenizer
from zifio.engine.policy import open_model
from zifio.models.count import forward_flops
from zifio.models.weights import load_model
from zifio.tasks.episode import conversation
from zifio.train.config import DistillStage
from zifio.train.distill import Mixture
from zifio.train.hints import Hints, hint_share
from zifio.train.rl import Rollouts
from zifio.train.stage import conversation_sequence
from zifio.train.teacher import LocalTeacher

TASK = Sevens()
SHARED: dict[str, Any] = {
    "teacher": "teacher", "from": "base", "steps": 4, "sequences": 6, "checkpoint_every": 2, "optim": ADAM,
    "rows": {"row_tokens": 64, "micro_tokens": 128}, "sampling": {"max_new_tokens": 6},
}  # fmt: skip
FORWARD = SHARED | {"method": "forward_kl", "data": "data"}
REVERSE = SHARED | {"method": "reverse_kl"}
GKD = SHARED | {"method": "gkd", "data": "data", "student_share": 0.34}
HINTS = SHARED | {"method": "hints", "data": "data", "hints": {"group": 3, "until": 0.5}}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher with experts, a dense base of the same tokenizer, and seven traces that pass for the teacher's."""
    folder = tmp_path_factory.mktemp("models")
    teacher, base = save_base(folder / "teacher", deepseek(), seed=3), save_base(folder / "base", llama(), seed=4)
    problems = [SHORT_SUMS.problem("train", index, seed=1) for index in range(7)]
    rows = [
        {"problem": p.id, "prompt": p.prompt, "gold": p.gold, "response": SHORT_SUMS.document(p, shows_working=True)}
        for p in problems
    ]
    write_jsonl(folder / "data.jsonl", [row | {"model": model_digest(teacher)} for row in rows])
    return {"teacher": teacher, "base": base, "data": folder / "data.jsonl"}


def here(settings: dict[str, Any], folder: Path, paths: dict[str, Path], **changes: Any) -> dict[str, float]:
    """One tiny stage."""
    return run("distill", settings | changes, context(folder, TASK, **paths))


def stage_of(settings: dict[str, Any], **changes: Any) -> DistillStage:
    """Its settings alone."""
    return build(DistillStage, {"kind": "distill", "name": "tiny", **settings, **changes}, "test")


def mixture(settings: dict[str, Any], folder: Path, paths: dict[str, Path]) -> Mixture:
    """Where its text comes from."""
    from zifio.train.sft import read_conversations

    stage = stage_of(settings)
    model, tokenizer = open_model(paths["base"])
    teacher = LocalTeacher(load_model(paths["teacher"]), stage.top_k, stage.temperature)
    rows = [] if stage.data is None else read_conversations(paths["data"])
    return Mixture(stage, context(folder, TASK, **paths), model, tokenizer, teacher, rows)


def test_the_names_of_methods_are_presets():
    """Explicit values go before them, as forward KL on the student's own text."""
    shares = {name: (s.student_share, s.beta) for name, s in (
        ("forward", stage_of(FORWARD)), ("reverse", stage_of(REVERSE)), ("gkd", stage_of(GKD | {"student_share": 0.5})),
        ("own", stage_of(SHARED, method="forward_kl", student_share=1.0)),
    )}  # fmt: skip
    assert shares == {"forward": (0.0, 0.0), "reverse": (1.0, 1.0), "gkd": (0.5, 0.5), "own": (1.0, 0.0)}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_first_loss_on_given_text_is_the_forward_divergence(temperature: float, paths, tmp_path: Path):
    """The mean over the replies' tokens of sum_v p log(p / q), and the tail of top-k as the metric says."""
    changes = {"sequences": 7, "temperature": temperature}
    here(FORWARD, tmp_path / "whole", paths, **changes)
    here(FORWARD, tmp_path / "top", paths, **changes, top_k=4)
    teacher, (student, tokenizer) = load_model(paths["teacher"]), open_model(paths["base"])
    total = rest = n = 0.0
    for index in range(7):
        problem = SHORT_SUMS.problem("train", index, seed=1)
        sequence = conversation_sequence(tokenizer, problem.prompt, SHORT_SUMS.document(problem, shows_working=True))
        with torch.no_grad():
            p, q = (
                (logits_of(model, torch.tensor([sequence.tokens]))[0].double() / temperature).softmax(-1)
                for model in (teacher, student)
            )
        for t in range(1, len(sequence.tokens)):
            if sequence.weight[t]:
                total += (p[t - 1] * (p[t - 1].log() - q[t - 1].log())).sum().item()
                rest += 1 - p[t - 1].topk(4).values.sum().item()
                n += 1
    whole, top = metrics(tmp_path / "whole")[0], metrics(tmp_path / "top")[0]
    assert whole["loss"] == pytest.approx(total / n, rel=1e-4) and whole["loss"] == whole["divergence"]
    assert 0 < top["divergence"] < whole["divergence"]
    assert top["teacher_rest"] == pytest.approx(rest / n, rel=1e-4) and "teacher_rest" not in whole


def test_a_step_is_the_exact_mixture_with_equal_weights(paths, tmp_path: Path):
    """Two of six sequences are the student's own; every reply token counts the same, and prompts count nothing."""
    data = mixture(GKD, tmp_path, paths).step(3)
    assert sum(batch.n_sequences for batch in data.updates[0]) == 6
    weights = torch.cat([batch.columns["teacher_weight"].flatten() for batch in data.updates[0]])
    assert all("cross_entropy_weight" not in batch.columns for batch in data.updates[0])
    counted = weights[weights != 0]
    torch.testing.assert_close(counted, torch.full_like(counted, 1 / len(counted)))
    lengths = [(w != 0).sum().item() for batch in data.updates[0] for w in batch.columns["teacher_weight"]]
    assert sum(lengths) == len(counted) and 2 <= data.metrics["completions/mean_length"] <= 6
    assert data.metrics["epoch"] == 4 * 4 / 7


def test_own_replies_are_new_with_every_step_and_the_same_again(paths, tmp_path: Path):
    """A pure function of the model and the step."""

    def tokens(step: int) -> list[list[int]]:
        return [row for batch in source.step(step).updates[0] for row in batch.tokens_BT.tolist()]

    source = mixture(REVERSE, tmp_path, paths)
    first = tokens(0)
    assert tokens(1) != first and tokens(0) == first


@pytest.mark.parametrize("settings", [REVERSE, REVERSE | {"top_k": 6}, GKD | {"student_share": 1.0, "data": None}])
def test_on_policy_steps_bring_the_student_to_its_teacher(settings: dict[str, Any], paths, tmp_path: Path):
    """By the loss itself, and by a look at both models' distributions on text that was never trained on."""
    settings = {key: value for key, value in settings.items() if value is not None}
    here(settings, tmp_path, paths, steps=50, sequences=16, checkpoint_every=1000, optim=ADAM | {"lr": 0.01})
    lines = metrics(tmp_path)
    assert lines[-1]["divergence"] < 0.5 * lines[0]["divergence"]
    teacher, before, after = (load_model(folder) for folder in (paths["teacher"], paths["base"], tmp_path / "model"))
    problem = SHORT_SUMS.problem("held-out", 0, seed=9)
    prompt = load_tokenizer(paths["base"]).encode_chat(conversation(problem), generation_prompt=True)[0]
    with torch.no_grad():
        p, q, r = (logits_of(m, torch.tensor([prompt]))[0, -1].log_softmax(-1) for m in (teacher, before, after))
    assert (r.exp() * (r - p)).sum() < 0.6 * (q.exp() * (q - p)).sum()


@pytest.mark.parametrize("settings", [FORWARD, REVERSE, GKD, HINTS], ids=lambda s: s["method"])
def test_resume_is_exact(settings: dict[str, Any], paths, tmp_path: Path):
    """Own replies behind a checkpoint are those that would have come, drawn by the weights that it holds."""
    totals = here(settings, tmp_path, paths, steps=6)
    files = [tmp_path / name for name in ("metrics.jsonl", "model/model.safetensors")]
    before = [file.read_bytes() for file in files]
    shutil.rmtree(tmp_path / "model")  # as if it had been killed in its last step, the checkpoint of step 4 behind it
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    again = here(settings, tmp_path, paths, steps=6)
    assert [file.read_bytes() for file in files] == before
    assert {**again, "seconds": 0} == {**totals, "seconds": 0}


def test_the_ledger_counts_the_teacher_apart_and_within(paths, tmp_path: Path):
    """A forward pass of the teacher over all text, one of the student over what it drew, three for training."""
    source, totals = mixture(GKD, tmp_path / "source", paths), here(GKD, tmp_path / "run", paths, steps=1)
    batches = source.step(0).updates[0]
    lengths = [length for batch in batches for length in batch.lengths]
    teacher, student = source.teacher.model.config, source.policy.model.config
    assert totals["teacher_flops"] == forward_flops(teacher, lengths)
    drawn = totals["flops"] - totals["teacher_flops"] - 3 * forward_flops(student, lengths)
    own = round(metrics(tmp_path / "run")[0]["completions/mean_length"] * 2)
    assert forward_flops(student, [own]) < drawn < forward_flops(student, lengths)
    assert "teacher_flops" not in here(HINTS, tmp_path / "hints", paths)


def test_adapters_learn_from_logits_too(paths, tmp_path: Path):
    here(GKD, tmp_path, paths, lora={"rank": 2}, steps=2)
    assert (tmp_path / "adapter").is_dir()
    before, after = load_model(paths["base"]).state_dict(), load_model(tmp_path / "model").state_dict()
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert any(not torch.equal(before[name], after[name]) for name in before)


# Hints ---------------------------------------------------------------------------------------------------------------


def test_hints_shrink_evenly_and_are_gone_after_their_share_of_the_steps():
    stage = stage_of(HINTS, steps=20, hints={"group": 3, "start": 0.8, "until": 0.5})
    assert [hint_share(stage, step) for step in (0, 5, 10, 19)] == pytest.approx([0.8, 0.4, 0.0, 0.0])


def test_rollouts_begin_with_the_teachers_words_and_learn_only_their_own(paths):
    """The verifier sees the whole reply; the tokens given have no weight, no log-prob and no advantage."""
    stage = stage_of(HINTS)
    model, tokenizer = open_model(paths["base"])
    hints = Hints(stage, tokenizer, share=0.7)
    problem = SHORT_SUMS.problem("train", 0, seed=1)
    response = SHORT_SUMS.document(problem, shows_working=True)
    row = {"problem": problem.id, "prompt": problem.prompt, "gold": problem.gold, "response": response}
    learned = hints.learn(1, row)
    rollouts = Rollouts(stage.as_rl(), 5, TASK, model, tokenizer, given=[learned])
    rollouts.policy.opening = hints.opening
    trace = tokenizer.encode(response)
    n_given = int(0.7 * len(trace))
    for group in rollouts.drawing.draw(0, rollouts.policy).episodes_P_G:
        for episode in group:
            reply = episode.reply
            assert episode.problem == learned and reply.tokens[:n_given] == trace[:n_given]
            assert reply.text.startswith(tokenizer.decode(trace[:n_given])) and reply.n_sampled <= 6
            assert reply.sampled == [False] * n_given + [True] * reply.n_sampled
            assert reply.logps[:n_given] == [0.0] * n_given and all(logp < 0 for logp in reply.logps[n_given:])
            sequence = rollouts._sequence(episode, {"policy_weight": 1.0})
            assert sum(sequence.columns["policy_weight"]) == reply.n_sampled
    hints.share = 1.0
    assert hints.opening(conversation(learned)) == trace, "never the end token: something is left to be said"


def test_trained_with_hints(paths, tmp_path: Path):
    """Shares and rewards are in the metrics; the sampler's log-probs are the trainer's, hints or not."""
    totals = here(HINTS, tmp_path, paths)
    lines = metrics(tmp_path)
    assert [line["hints/share"] for line in lines] == pytest.approx([0.9, 0.45, 0.0, 0.0])
    assert all("reward" in line and line["n_verifier_errors"] == 0 for line in lines)
    gaps = [line.get("sampling/sampling_logp_difference/max", 0.0) for line in lines]
    assert max(gaps) < 1e-5 and totals["flops"] > 0
    assert load_model(tmp_path / "model").config.model_type == "llama"


# Refusals ------------------------------------------------------------------------------------------------------------


def test_logits_of_another_tokenizer_are_refused_and_text_is_not(paths, tmp_path: Path):
    other = save_brief(tmp_path / "other", llama())
    with pytest.raises(ConfigError, match=r'own tokenizer.*entries differ.*method = "traces"'):
        here(FORWARD, tmp_path / "run", {**paths, "teacher": other})
    rows = [{"prompt": "1+2", "response": "<think>1+2=3</think><answer>3</answer>", "model": model_digest(other)}]
    write_jsonl(tmp_path / "text.jsonl", rows)
    text = {**SHARED, "data": "data", "steps": 1}
    here(text, tmp_path / "text", {**paths, "teacher": other, "data": tmp_path / "text.jsonl"})


@pytest.mark.parametrize(
    "settings, message",
    [
        (SHARED | {"method": "forward_kl"}, "data: wanted the teacher's traces.*student_share = 1"),
        (SHARED, "data: wanted the teacher's traces, came nothing"),
        (REVERSE | {"data": "data"}, "data: wanted none"),
        (SHARED | {"data": "data", "beta": 0.3}, "beta counts with method forward_kl, reverse_kl, gkd only"),
        (FORWARD | {"hints": {"group": 2}}, "hints counts with method hints only"),
        (FORWARD | {"task": {"name": "splits"}}, "it draws none"),
        (HINTS | {"sequences": 7}, "not divisible by hints.group=3"),
        (HINTS | {"short_first": 0.5}, "short_first"),
        (HINTS | {"from": None, "model": {"model_type": "llama"}}, "a base that RL can start from"),
        (FORWARD | {"documents": 5}, "documents"),
        (HINTS | {"sampling": {"temperature": 0}}, "temperature=0 draws the same reply"),
    ],
    ids=str,
)
def test_mistakes_are_told(settings: dict[str, Any], message: str):
    settings = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        stage_of(settings)


def test_text_that_the_teacher_cannot_read_is_refused(paths, tmp_path: Path):
    """Given text and own replies alike."""
    short = save_base(tmp_path / "short", llama(max_position_embeddings=16), seed=5)
    for settings in (FORWARD, REVERSE | {"sampling": {"max_new_tokens": 20}}):
        with pytest.raises(
            ConfigError, match=r"max_position_embeddings=16 is shorter than the .* the teacher is to read"
        ):
            here(settings, tmp_path / settings["method"], {**paths, "teacher": short})


def test_hints_want_traces_of_their_teacher_with_the_right_answer(paths, tmp_path: Path):
    row = {"prompt": "1+2", "response": "3", "problem": "a", "model": model_digest(paths["teacher"])}
    write_jsonl(tmp_path / "data.jsonl", [row])
    with pytest.raises(ConfigError, match="row 1: gold: wanted text"):
        here(HINTS, tmp_path / "run", {**paths, "data": tmp_path / "data.jsonl"})
    write_jsonl(tmp_path / "data.jsonl", [row | {"gold": "3", "model": "0123456789ab"}])
    with pytest.raises(ConfigError, match="row 1: model: wanted traces of the teacher"):
        here(HINTS, tmp_path / "run", {**paths, "data": tmp_path / "data.jsonl"})
