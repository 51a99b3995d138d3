"""Runs where verifiers is installed: its own validation of a task, and rollouts against a model that is served here.

The model answers right, or wrong, or breaks the check, as asked. What was found goes to stdout as JSON, for
tests/adapters/test_verifiers.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from zifio.tasks.catalog import named_task
from zifio.tasks.environment import Message, demonstration
from zifio.tasks.game import best_moves, read_position
from zifio.tasks.task import render_response

MODULE = """from zifio.adapters.verifiers import ZifioEnv, ZifioTaskset

__all__ = ["ZifioEnv", "ZifioTaskset"]
"""


class Model(ThreadingHTTPServer):
    """Chat completions as a stream, which is how verifiers asks."""

    daemon_threads = True

    def __init__(self, answer: Callable[[list[Message]], Message]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One completion."""

    server: Model

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        message = self.server.answer(request["messages"])
        calls = [
            {"index": n, "id": f"call-{n}", "type": "function", "function": call["function"]}
            for n, call in enumerate(message.get("tool_calls", []))
        ]
        delta = {"role": "assistant", "content": message["content"], **({"tool_calls": calls} if calls else {})}
        finish = "tool_calls" if calls else "stop"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for choices, more in (
            ([{"index": 0, "delta": delta, "finish_reason": None}], {}),
            ([{"index": 0, "delta": {}, "finish_reason": finish}], {}),
            ([], {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}),
        ):
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "ours", "choices": choices}
            self.wfile.write(f"data: {json.dumps(chunk | more)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def right(name: str, count: int) -> Callable[[list[Message]], Message]:
    """Says what the task's own demonstration says at that point; in a game a best move."""
    task = named_task(name)
    problems = {problem.prompt: problem for problem in (task.problem("train", n, 0) for n in range(count))}

    def answer(messages: list[Message]) -> Message:
        if task.name == "tic_tac_toe":
            move = best_moves(*read_position(messages[-1]["content"]))[0] + 1
            return {"content": render_response("", str(move))}
        shown = demonstration(task, problems[messages[0]["content"]], True)
        return shown[len(messages)]

    return answer


def wrong(messages: list[Message]) -> Message:
    """What is right nowhere."""
    return {"content": render_response("", "no")}


def command(name: str, *arguments: str) -> str:
    """Run a command of verifiers' and give what it said."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]  # for uv
    known = os.environ | {
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join([*sys.path, "."]),
        "NO_KEY": "none",
    }
    path = Path(sys.executable).with_name(name)
    done = subprocess.run([str(path), "zifio-tasks", *arguments], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def validated(asked: dict[str, Any]) -> dict[str, Any]:
    """`vf-validate`: the right answer is right, and nothing said is not."""
    task, count = asked["task"], str(asked["count"])
    where = ["--runtime.type", "subprocess", "--no-rich", "-o", "valid"]
    told = command("vf-validate", "--taskset.task.of", task, "-n", count, *where)
    return json.loads(told[told.index("{") :])


def rolled_out(asked: dict[str, Any], answer: Callable[[list[Message]], Message], where: str) -> dict[str, Any]:
    """`vf-eval` against our model: the traces, short, and what the model was asked."""
    model = Model(answer)
    command(
        "vf-eval", "--env.taskset.task.of", asked["task"], "-n", str(asked["count"]), "-r", "1", "-m", "ours",
        "--client.base-url", f"http://127.0.0.1:{model.server_address[1]}/v1", "--client.api-key-var", "NO_KEY",
        "--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess", "--no-push", "--no-rich",
        "-o", where,
    )  # fmt: skip
    model.shutdown()
    (file,) = Path(where).glob("*/traces.jsonl")
    return {"episodes": [json.loads(line) for line in file.read_text().splitlines()], "requests": model.requests}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """All of it for one task."""
    os.chdir(asked["folder"])
    Path("zifio_tasks.py").write_text(MODULE)
    if asked["broken"]:
        return {"broken": rolled_out(asked, wrong, "broken")}
    answer = right(asked["task"], asked["count"])
    return {
        "validated": validated(asked),
        "right": rolled_out(asked, answer, "right"),
        "wrong": rolled_out(asked, wrong, "wrong"),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
