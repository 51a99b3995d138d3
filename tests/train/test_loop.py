"""The loop: a golden curve, resume after real kills bit for bit, damaged checkpoints, divergence, Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import KILLED, PRETRAIN, RL, Sevens, context, deepseek, metrics, run, save_base

from zifio.checkpoint import load_checkpoint
from zifio.config import ConfigError
from zifio.models.weights import load_model
from zifio.train.loop import Diverged
from zifio.train.optim import Optimizer

GOLDEN = Path(__file__).parent / "golden"
FILES = ("metrics.jsonl", "model/model.safetensors", "model/config.json", "model/tokenizer.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with an MTP module and a tokenizer."""
    return save_base(tmp_path_factory.mktemp("base"), deepseek(num_nextn_predict_layers=1))


def here(kind: str, folder: Path, base: Path, **changes: Any) -> dict[str, float]:
    """The tiny stage in this process."""
    settings, task = {"pretrain": (PRETRAIN, tiny.SHORT_SUMS), "rl": (RL, Sevens())}[kind]
    return run(kind, settings | changes, context(folder, task, tokenizer=base, base=base))


# Compared with a stored curve: changes only when the mathematics does. To write it anew after such a change:
# ZIFIO_GOLDEN=write pytest tests/train/test_loop.py -k golden


OPTIONS = {"advantage": "none", "aggregate": "constant", "clip_low": 0.1, "clip_high": 0.3, "kl_weight": 0.05}


@pytest.mark.parametrize(
    "kind, steps, changes, name",
    [("pretrain", 30, {}, "pretrain"), ("rl", 5, {}, "rl"), ("rl", 5, OPTIONS, "rl-options")],
)
def test_golden_curve(kind: str, steps: int, changes: dict[str, Any], name: str, base: Path, tmp_path: Path):
    here(kind, tmp_path, base, steps=steps, **changes)
    keys = ("loss", "grad_norm", "cross_entropy", "mtp_cross_entropy", "balance_loss", "kl", "clip_ratio", "reward",
            "entropy", "n_tokens")  # fmt: skip
    found = {key: [line[key] for line in metrics(tmp_path) if key in line] for key in keys}
    found = {key: values for key, values in found.items() if values}
    path = GOLDEN / f"{name}.json"
    if os.environ.get("ZIFIO_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert golden.keys() <= found.keys() and len(golden["loss"]) == steps
    for key, values in golden.items():
        assert found[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
    if kind == "pretrain":
        assert golden["cross_entropy"][-1] < golden["cross_entropy"][0] - 0.5, "it learns"


class Child:
    """The tiny stage in a process of its own, which may be killed at any moment."""

    forks = multiprocessing.get_context("forkserver")

    def __init__(self, kind: str, folder: Path, base: Path) -> None:
        self.folder = folder
        self.process: ForkServerProcess = self.forks.Process(
            target=tiny.run_tiny, args=(kind, str(folder), str(base)), daemon=True
        )
        self.process.start()

    def kill_after(self, lines: int, delay_s: float) -> None:
        """SIGKILL once metrics.jsonl has so many lines, and a moment later."""
        path = self.folder / "metrics.jsonl"
        while self.process.is_alive() and (not path.exists() or path.read_bytes().count(b"\n") < lines):
            time.sleep(0.002)
        time.sleep(delay_s)
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.end() == KILLED, "the process was through before it could be killed"

    def end(self) -> int | None:
        """Wait for it; its exit code comes back."""
        self.process.join(timeout=120)
        return self.process.exitcode


@pytest.fixture(autouse=True)
def one_thread():
    """Results repeat bit for bit for one number of threads; children use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def forkserver():
    """Children are forked from a small server that has imported everything once."""
    Child.forks.set_forkserver_preload(["tiny", "torch._dynamo"])  # which optimizers import when first made
    before = os.environ.get("PYTHONPATH")
    here = str(Path(tiny.__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, str(Path(here).parent), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Child]:
    """Both stages from first to last, started together."""
    return {kind: Child(kind, tmp_path_factory.mktemp(kind), base) for kind in ("pretrain", "rl")}


def tear(path: Path) -> None:
    """Cut a file in half, as a crash of the machine may."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newest(folder: Path) -> Path:
    """The newest checkpoint of a stage."""
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_killed_and_resumed_is_bit_for_bit_the_same(kind: str, base: Path, uninterrupted: dict[str, Child], tmp_path):
    """kill -9 three times at random moments; the newest checkpoint torn and the metrics too; then to the end."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for first, last in ((1, 5), (7, 11), (13, 18)):
        Child(kind, tmp_path, base).kill_after(rng.randint(first, last), rng.uniform(0, 0.02))
    steps = [int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*")]
    assert len(steps) in (2, 3) and not any(step % 3 for step in steps)  # 3: killed before the oldest was removed
    damaged = newest(tmp_path)
    tear(damaged / "model.safetensors")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "lo')
    assert Child(kind, tmp_path, base).end() == 0
    assert uninterrupted[kind].end() == 0
    whole = uninterrupted[kind].folder
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), f"{file} differs; moments drawn by {seed}"
    assert [line["step"] for line in metrics(whole) if "loss" in line] == list(range(1, 21)), "a signal in every step"


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_another_process_computes_the_very_same(kind: str, base: Path, uninterrupted: dict[str, Child], tmp_path: Path):
    """And checkpoints change nothing: none here, six there."""
    here(kind, tmp_path, base, checkpoint_every=100)
    assert uninterrupted[kind].end() == 0
    assert not (tmp_path / "checkpoints").exists()
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (uninterrupted[kind].folder / file).read_bytes(), file


class Stop(Exception):
    """Raised by a test in the middle of a step."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, kind: str, folder: Path, base: Path, **changes: Any) -> None:
    """Run, and fall over in the optimizer of this step."""
    plain = Optimizer.step

    def falling(self: Optimizer, now: int, n_steps: int) -> float:
        if now == step:
            raise Stop
        return plain(self, now, n_steps)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", falling)
        with pytest.raises(Stop):
            here(kind, folder, base, **changes)


ASYNC = {"asynchronous": True, "old_logps": "trainer", "correction": {}}
CURRICULUM = {"curriculum": {"option": "max_terms", "start": 3, "low": 0.3, "high": 0.4}}


@pytest.mark.parametrize(
    "changes",
    [CURRICULUM, {"asynchronous": True}, ASYNC | CURRICULUM | {"max_rounds": 2},
     {"loss": "rloo", "kl_weight": 0.05, "curriculum": CURRICULUM["curriculum"]}],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_what_a_stage_remembers_survives(changes: dict[str, Any], base: Path, tmp_path: Path, monkeypatch):
    """Fallen over in the middle of a step between checkpoints and gone on: difficulty and pending rollouts are kept."""
    here("rl", tmp_path / "whole", base, steps=8, **changes)
    stop_at(monkeypatch, 4, "rl", tmp_path / "run", base, steps=8, **changes)
    assert newest(tmp_path / "run").name == "step-000003"
    stop_at(monkeypatch, 7, "rl", tmp_path / "run", base, steps=8, **changes)
    assert newest(tmp_path / "run").name == "step-000006"
    here("rl", tmp_path / "run", base, steps=8, **changes)
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    if "curriculum" in changes:
        moves = [line["curriculum/max_terms"] for line in metrics(tmp_path / "whole")]
        assert len(set(moves)) > 1, "it moved"
        state = json.loads((newest(tmp_path / "run") / "state.json").read_text())["memory"]
        pending = state["next"]["metrics"] if changes.get("asynchronous") else {}
        assert pending == {} or pending["curriculum/max_terms"] == moves[6]


def test_an_edited_checkpoint_is_named_and_the_one_before_used(base: Path, tmp_path: Path, monkeypatch, capfd):
    here("pretrain", tmp_path / "whole", base, steps=8)
    stop_at(monkeypatch, 7, "pretrain", tmp_path / "run", base, steps=8)
    checkpoint = newest(tmp_path / "run")
    assert checkpoint.name == "step-000006"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"step": 7}))
    capfd.readouterr()
    here("pretrain", tmp_path / "run", base, steps=8)
    told = capfd.readouterr().err
    assert "step-000006" in told and "state.json is torn or was edited" in told
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_all_checkpoints_damaged_is_an_error_and_nothing_is_lost(base: Path, tmp_path: Path, monkeypatch):
    stop_at(monkeypatch, 7, "pretrain", tmp_path, base, steps=8)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        tear(checkpoint / "optimizer.safetensors")
    with pytest.raises(ConfigError, match=r"all 2 checkpoints are damaged.*optimizer\.safetensors.*--fresh"):
        here("pretrain", tmp_path, base, steps=8)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_kill_before_the_first_checkpoint_begins_anew(base: Path, tmp_path: Path, monkeypatch):
    here("pretrain", tmp_path / "whole", base, steps=4)
    stop_at(monkeypatch, 2, "pretrain", tmp_path / "run", base, steps=4)
    assert len(metrics(tmp_path / "run")) == 3, "a look before the first step, and two steps"
    here("pretrain", tmp_path / "run", base, steps=4)
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_ctrl_c_ends_the_step_saves_and_resumes_exactly(kind: str, base: Path, tmp_path: Path, monkeypatch):
    here(kind, tmp_path / "whole", base, steps=7, checkpoint_every=100)
    plain = Optimizer.step

    def interrupting(self: Optimizer, now: int, n_steps: int) -> float:
        if now == 4:
            signal.raise_signal(signal.SIGINT)
        return plain(self, now, n_steps)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        # RL makes two updates a step, and a second Ctrl-C stops at once
        patch.setattr(Optimizer, "step", interrupting if kind == "pretrain" else once(interrupting, plain))
        with pytest.raises(KeyboardInterrupt):
            here(kind, tmp_path / "run", base, steps=7, checkpoint_every=100)
    assert signal.getsignal(signal.SIGINT) is handler
    assert newest(tmp_path / "run").name == "step-000005"
    here(kind, tmp_path / "run", base, steps=7, checkpoint_every=100)
    for file in FILES:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def once(first: Any, later: Any) -> Any:
    """The first function until it has seen step 4, the later one from then on."""
    seen = []

    def step(self: Optimizer, now: int, n_steps: int) -> float:
        function = later if 4 in seen else first
        seen.append(now)
        return function(self, now, n_steps)

    return step


def poison(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    """From step `at` on (counted from 0) one weight of the last norm is no number any more."""
    plain = Optimizer.step

    def step(self: Optimizer, now: int, n_steps: int) -> float:
        lr = plain(self, now, n_steps)
        if now == at - 1:
            self.named["norm.weight"].data[3] = value
        return lr

    monkeypatch.setattr(Optimizer, "step", step)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(kind: str, value: float, base: Path, tmp_path, monkeypatch):
    """The last checkpoint is kept and good, and the message says what to try."""
    poison(monkeypatch, 7, value)
    what = {"pretrain": "the loss is nan", "rl": r"norm\.weight is no longer finite"}[kind]  # all its replies are equal
    with pytest.raises(Diverged, match=rf"tiny: {what} at step 8\..* kept.*optim\.lr \(now 0\.00") as error:
        here(kind, tmp_path, base, **({"updates": 1} if kind == "rl" else {}))
    assert "optim.warmup_steps (now 4)" in str(error.value) and "optim.clip (now 1)" in str(error.value)
    assert newest(tmp_path).name == "step-000006"
    model = load_model(base)
    assert load_checkpoint(tmp_path / "checkpoints", model) is not None
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [line["step"] for line in metrics(tmp_path)][-1] == 7
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("at", [6, 20])
def test_weights_that_are_no_numbers_are_never_kept(at: int, base: Path, tmp_path: Path, monkeypatch):
    """Poisoned in the very step behind which a checkpoint is due, or in the last one, which no loss follows."""
    poison(monkeypatch, at, float("nan"))
    with pytest.raises(Diverged, match=rf"norm\.weight is no longer finite at step {at}\."):
        here("pretrain", tmp_path, base)
    assert newest(tmp_path).name == f"step-{3 * ((at - 1) // 3):06d}"
    assert not (tmp_path / "model").exists()


def test_rl_of_a_broken_model_stops_though_no_reward_ever_differs(tmp_path: Path):
    """Every reply of a model with a NaN in it is the same, so no loss is ever computed."""
    folder = save_base(tmp_path / "base", deepseek())
    model = load_model(folder)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    from zifio.models.weights import save_model

    save_model(model, folder)
    with pytest.raises(Diverged, match=r"norm\.weight is no longer finite at step 1\."):
        here("rl", tmp_path / "run", folder)


def test_an_infinite_gradient_stops_before_it_does_harm(base: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Optimizer, "clip", lambda self: float("inf"))
    with pytest.raises(Diverged, match=r"the gradient's norm is inf at step 1\."):
        here("pretrain", tmp_path, base)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model that a stage has made."""
    return load_model(folder / "model").state_dict()


@pytest.mark.parametrize("kind", ["pretrain", "rl"])
def test_micro_batches_change_speed_and_not_results(kind: str, base: Path, tmp_path: Path):
    """Six steps with one micro-batch each or with several: equal weights, equal biases to the bit, equal metrics."""
    changes: dict[str, Any] = (
        {"steps": 6, "optim": tiny.ADAM | {"eps": 1e-4}, "group": 6} if kind == "rl" else {"steps": 6}
    )
    for name, micro_tokens in (("one", 10_000), ("many", 1)):
        here(kind, tmp_path / name, base, rows={"row_tokens": 48, "micro_tokens": micro_tokens}, **changes)
    one, many = (weights(tmp_path / name) for name in ("one", "many"))
    for name, tensor in one.items():
        if "bias" in name:
            assert torch.equal(tensor, many[name]), name
            if "mtp" not in name or kind == "pretrain":
                assert tensor.abs().max() > 0
        else:
            torch.testing.assert_close(many[name], tensor, atol=2e-5, rtol=1e-3)
    for a, b in zip(*(metrics(tmp_path / name) for name in ("one", "many")), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-5), key


def test_what_stands_in_the_folder_of_a_finished_stage(base: Path, tmp_path: Path):
    totals = here("pretrain", tmp_path, base, steps=5)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 4, 5, 5], "a look at 0, 4 and the last step"
    looks = [line for line in lines if "held_out/sum" in line]
    assert [look["step"] for look in looks] == [0, 4, 5] and len({look["held_out/sum"] for look in looks}) == 3
    assert totals["look_flops"] == 30.0
    steps = [line for line in lines if "loss" in line]
    assert totals["tokens"] == sum(line["n_tokens"] for line in steps)
    assert totals["flops"] == steps[-1]["flops"] > steps[0]["flops"] > 0
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timing] == [1, 2, 3, 4, 5]
    assert all(line["tokens_per_s"] > 0 and line["peak_rss_bytes"] > 10**7 for line in timing)
    assert totals["seconds"] >= sum(line["step_s"] for line in timing) > 0
    for line in steps:
        for layer in (0, 1):
            shares = [line[f"expert_load/{layer}/{expert}"] for expert in range(8)]
            assert sum(shares) == pytest.approx(1) and max(shares) * 8 == pytest.approx(
                line[f"expert_load/{layer}/max_over_mean"]
            )
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id == 2
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.config.eos_token_id == 2
    shutil.rmtree(tmp_path)


def test_a_document_longer_than_the_context_is_refused_at_once(base: Path, tmp_path: Path):
    short = {**PRETRAIN["model"], "max_position_embeddings": 12}
    with pytest.raises(ConfigError, match=r"max_position_embeddings=12 is shorter than the \d+ tokens of a document"):
        here("pretrain", tmp_path, base, model=short)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the tokenizer has 22 tokens, the model only 10 embedding rows"):
        here("pretrain", tmp_path, base, model={**PRETRAIN["model"], "vocab_size": 10})
