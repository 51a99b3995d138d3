"""A server of chat completions on this machine that misbehaves as it is told. Run alone, it answers sums."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[dict[str, Any], int], Any]
"""(request, how many have come with this seed and prompt) -> what `Handler` sends."""


def completion(text: str | None, thinking: str | None = None, **more: Any) -> dict[str, Any]:
    """What a well-behaved server answers."""
    message = {"role": "assistant", "content": text}
    if thinking is not None:
        message[more.pop("key", "reasoning_content")] = thinking
    choice = {"index": 0, "message": message, "finish_reason": more.pop("finish", "stop")}
    if "logps" in more:
        choice["logprobs"] = {"content": [{"token": "x", "logprob": value} for value in more.pop("logps")]}
    usage = {"prompt_tokens": 7, "completion_tokens": 5} | more.pop("usage", {})
    return {"id": "1", "model": "served-name", "choices": [choice], "usage": usage, **more}


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's behaviour says: a dict is a completion, bytes the body of a 200, or a special case."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.server.decide(request, self.path, self.headers.get("Authorization"))
        if isinstance(answer, dict):
            self.reply(200, json.dumps(answer).encode())
        elif isinstance(answer, bytes):
            self.reply(200, answer)
        elif answer[0] == "status":
            _, status, headers, body = answer
            self.reply(status, body, headers)
        elif answer[0] == "hang":
            time.sleep(answer[1])
            self.close_connection = True
        elif answer[0] == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif answer[0] == "trickle":  # a byte now and then, for ever
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Counts, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def decide(self, request: dict[str, Any], path: str, key: str | None) -> Any:
        asked = request.get("messages", request.get("prompt"))
        name = json.dumps([request.get("seed"), asked, request.get("max_tokens")])
        with self._lock:
            self.requests.append(request)
            self.paths.append(path)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self._counts[name] = count = self._counts.get(name, 0) + 1
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            return self.behaviour(request, count)
        finally:
            with self._lock:
                self.busy -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


@contextmanager
def serving(behaviour: Behaviour) -> Generator[Server, None, None]:
    """A server in a thread of this process."""
    server = Server(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def adder(request: dict[str, Any], _: int) -> dict[str, Any]:
    """Right for three seeds of four, in the shape that sums want."""
    prompt = request["messages"][-1]["content"]
    found = re.fullmatch(r"\(([0-9+]+)\)%10", prompt.splitlines()[0])
    assert found, prompt
    total = sum(map(int, found[1].split("+"))) % 10
    answer = total if request.get("seed", 0) % 4 else (total + 1) % 10
    return completion(f"<answer>{answer}</answer>", thinking=f"it ends in {answer}")


def slow_adder(request: dict[str, Any], count: int) -> dict[str, Any]:
    """As `adder`, after a while."""
    time.sleep(0.02)
    return adder(request, count)


if __name__ == "__main__":
    slow = Server(slow_adder)
    sys.stdout.write(slow.url + "\n")
    sys.stdout.flush()
    slow.serve_forever()
