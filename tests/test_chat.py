"""Chat with an untrained model: what goes where, and what fits."""

import io
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import deepseek, save_brief

from zifio import cli
from zifio.chat import chat, split_reply
from zifio.config import ConfigError
from zifio.data.template import ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, save_tokenizer, train_tokenizer
from zifio.models.config import LlamaConfig
from zifio.models.decoder import Decoder
from zifio.models.weights import save_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model over ten digits and a plus, context 32."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(alphabet="0123456789+="), []))
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    save_model(Decoder(config), folder)
    return folder


@pytest.mark.parametrize(
    "text, thinking, answer",
    [
        ("<think>6+1=7</think><answer>7</answer>", "6+1=7", "7"),
        ("<think></think><answer>7</answer>", "", "7"),
        ("<think>6+1", "6+1", ""),
        ("<think>\nwell\n</think>\n\nIt is 7.", "well", "It is 7."),
        ("It is 7.", "", "It is 7."),
        ("", "", ""),
    ],
)
def test_split_reply(text: str, thinking: str, answer: str):
    assert split_reply(text) == (thinking, answer)


def test_json_and_seeds(model: Path):
    first = chat(model, "3+7", 1.0, 8, as_json=True, seed=3)
    assert first == chat(model, "3+7", 1.0, 8, as_json=True, seed=3)
    assert first["question"] == "3+7" and first["finish"] in ("stop", "length") and 1 <= first["tokens"] <= 8
    assert len({str(chat(model, "3+7", 1.0, 8, as_json=True, seed=seed)) for seed in range(5)}) > 1


def test_the_answer_alone_on_stdout(model: Path, capsys: pytest.CaptureFixture[str]):
    expected = chat(model, "3+7", 0.0, 8, as_json=True)
    capsys.readouterr()
    words = ["chat", str(model), "--prompt", "3+7", "--temperature", "0", "--max-new-tokens", "8"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out == expected["answer"] + "\n"
    assert "cut after 8 tokens" in captured.err or expected["finish"] == "stop"


def test_piped_lines(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+1\n\n2+2\n"))
    turns = chat(model, None, 0.0, 4, as_json=True)
    assert [turn["question"] for turn in turns] == ["1+1", "2+2"]


def test_replies_fit_the_context(model: Path):
    turn = chat(model, "3+7", 1.0, None, as_json=True)
    assert turn["tokens"] <= 32 - len("3+7")
    with pytest.raises(ConfigError, match="max_new_tokens=100 does not fit"):
        chat(model, "3+7", 1.0, 100)
    with pytest.raises(ConfigError):
        chat(model, "1+" * 40, 1.0, None)


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["chat", str(tmp_path / "nothing"), "--prompt", "1"]) == 2
    assert cli.main(["chat", str(model), "--prompt", "What?"]) == 2
    assert cli.main(["chat", str(model), "--prompt", "1", "--temperature", "-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "nothing" in lines[0] and "'W'" in lines[1] and "temperature" in lines[2]


def test_on_a_terminal(model: Path):
    """It asks, tells a question that does not fit and goes on, and ends at an empty line."""
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "zifio.cli", "chat", str(model), "--max-new-tokens", "4"]
    talk = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True)
    os.close(theirs)
    shown = ""
    for wanted, typed in (("> ", "1+1\n"), ("> ", "What?\n"), ("> ", "\n")):
        while wanted not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 10_000).decode()
        os.write(ours, typed.encode())
        if typed == "\n":
            assert "'W'" in shown
        shown = ""
    assert talk.wait(timeout=60) == 0
    os.close(ours)


def test_tools_are_called_and_shown_with_the_thinking(tmp_path: Path):
    """An untrained model opens a call now and then; whatever it writes there is answered, if only with an error."""
    folder = save_brief(tmp_path / "model", deepseek())
    found = [chat(folder, "1+2", 1.0, 60, True, seed, tools=["calculator"]) for seed in range(12)]
    assert any("→ error" in record["thinking"] for record in found)
    plain = [chat(folder, "1+2", 1.0, 60, True, seed) for seed in range(12)]
    assert not any("→" in record["thinking"] for record in plain)


def test_a_model_without_words_for_tools_says_so(model: Path):
    with pytest.raises(ConfigError, match="tool"):
        chat(model, "1+2", tools=["calculator"])
