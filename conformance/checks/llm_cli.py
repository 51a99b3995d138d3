"""`llm`, the command line: a model configured in its file, prompts, schemas, tools, its log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from checking import CAPITAL, FOLDER, KEY, SUM, TEXT, THINKS, URL, WEATHER, check, is_weather, run

MODELS = f"""
- model_id: text
  model_name: {TEXT}
  api_base: {URL}/v1
  api_key_name: zifio
  supports_schema: true
  supports_tools: true
- model_id: thinks
  model_name: {THINKS}
  api_base: {URL}/v1
  api_key_name: zifio
  reasoning: true
- model_id: missing
  model_name: no-such-model
  api_base: {URL}/v1
  api_key_name: zifio
"""
WORDS = "def weather(city: str) -> str:\n    'The weather in a city.'\n    return 'sunny in ' + city\n"


def llm(*words: str, fails: bool = False) -> str:
    """What `llm` writes to stdout; to stderr when it is to fail."""
    command = [str(Path(sys.executable).parent / "llm"), *words]
    variables = os.environ | {"LLM_USER_PATH": str(FOLDER)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, stdin=subprocess.DEVNULL)
    assert bool(done.returncode) == fails, done.stderr[-400:]
    return done.stderr if fails else done.stdout


def ask(*words: str, model: str = "text", n: int = 12, fails: bool = False) -> str:
    """A greedy prompt of at most `n` new tokens."""
    return llm("-m", model, "-o", "temperature", "0", "-o", "max_tokens", str(n), *words, fails=fails)


@check("models")
def models() -> None:
    """The models of its file."""
    listed = llm("models", "list")
    assert all(f": {name}" in listed for name in ("text", "thinks", "missing")), listed


@check("whole")
def whole() -> None:
    """One answer."""
    assert "Paris" in ask("--no-stream", CAPITAL)


@check("stream")
def stream() -> None:
    """The same in a stream, and its usage in llm's log."""
    assert ask(CAPITAL) == ask("--no-stream", CAPITAL)
    (logged,) = json.loads(llm("logs", "list", "--json", "-n", "1"))
    assert logged["input_tokens"] > 0 and logged["output_tokens"] > 0, logged


@check("thinking")
def thinking() -> None:
    """The answer comes without its thinking, which the log counts."""
    text = ask(SUM, model="thinks", n=60)
    assert text.strip() and "<think>" not in text, text


@check("tools")
def tools() -> None:
    """A tool is offered; whatever a small model makes of it, the conversation goes on."""
    text = ask("--functions", WORDS, "--chain-limit", "2", "What is the weather in Rome?", n=30)
    assert text.strip(), text


@check("schema")
def schema() -> None:
    """JSON that fits."""
    assert is_weather(json.loads(ask("--schema", json.dumps(WEATHER), "Rome, 3 days", n=40)))


@check("errors")
def errors() -> None:
    """What is wrong is told on the terminal."""
    assert "no-such-model" in ask("hi", model="missing", fails=True)
    assert "1000000" in ask("hi", n=10**6, fails=True)


if __name__ == "__main__":
    (FOLDER / "extra-openai-models.yaml").write_text(MODELS)
    (FOLDER / "keys.json").write_text(json.dumps({"zifio": KEY}))
    run()
