"""Tests for a program that may lie: they run in one process, the program in another; only plain values pass.

A task has this very file run in the sandbox. There it forks: the child is the **candidate**, which runs the program;
the parent, the **examiner**, reads the tests afterwards and calls the candidate's functions through a socket. So the
program never sees the tests, and cannot reach whatever decides:

- it cannot redefine `assert`, `check`, builtins or modules of the tests: they live in the other process
- what it returns arrives as a plain value (numbers, text, containers of them), decoded strictly: an object whose `==`
  is always true arrives as an opaque handle, equal to nothing
- ending early, by exit code 0, `os._exit` or a signal, ends only the candidate: an unanswered call is a failure
- it has no way to the examiner's stdout, where the result goes: its own streams are /dev/null, the examiner's memory
  and files are closed to it (not dumpable; the sandbox forbids tracing), and the word that must come before a result
  is read after the fork
- the examiner imports nothing from the folder that the program can write to

It does not hold against a program that knows the answers by heart, nor, where there is no sandbox, against one that
attacks the examiner from outside.

Standard library only, and nothing else of zifio. Try it alone: `pytest tests/tasks/test_examiner.py`
"""

import ctypes
import json
import os
import socket
import sys
import time
import types
from typing import Any

_LONGEST_MESSAGE = 16 * 2**20
_LONGEST_ITERATOR = 10**6
_MOST_DIGITS = 10**5
_PLAIN = (type(None), bool, int, float, str)
_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TYPES = {one.__name__: one for one in (bool, int, float, complex, str, bytes, dict, *_CONTAINERS.values())}


class Fault(Exception):
    """The program failed: it raised, died, or answered nonsense."""


class _Wire:
    """Messages through a socket, each a length and JSON."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode(errors="surrogatepass")
        self.end.sendall(len(data).to_bytes(8, "little") + data)

    def receive(self) -> Any:
        length = int.from_bytes(self._take(8), "little")
        if length > _LONGEST_MESSAGE:
            raise Fault("gave a value too large to compare")
        return json.loads(self._take(length).decode(errors="surrogatepass"))

    def _take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.end.recv(min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class _Handle:
    """In the examiner: a thing that stayed with the candidate. It may be called, walked through, read and set; it
    equals itself alone."""

    def __init__(self, examiner: "_Examiner", number: int) -> None:
        self.__dict__.update(_examiner=examiner, _number=number)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._examiner.ask("call", self._number, list(args), options)

    def __getattr__(self, name: str) -> Any:
        return self._examiner.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._examiner.ask("set", self._number, name, value)

    def __iter__(self) -> Any:
        return iter(self._examiner.ask("list", self._number))


def _pack(value: Any, keep: Any) -> Any:
    """A value in JSON: plain values as they are, containers with their kind, everything else by what `keep` says."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is complex:
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if kind is type and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    if kind is range:
        return ["range", value.start, value.stop, value.step]
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, dict):
        return ["dict", [[_pack(key, keep), _pack(held, keep)] for key, held in dict.items(value)]]
    for name, base in _CONTAINERS.items():
        if isinstance(value, base):
            return [name, [_pack(held, keep) for held in base.__iter__(value)]]
    return ["handle", keep(value)]


def _unpack(data: Any, found: Any) -> Any:
    """The value again, of Python's own types whatever was sent; handles by what `found` says."""
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise Fault("answered nonsense")
        return data
    name, *rest = data
    if name in _CONTAINERS:
        return _CONTAINERS[name](_unpack(held, found) for held in rest[0])
    if name == "dict":
        return {_unpack(key, found): _unpack(held, found) for key, held in rest[0]}
    if name == "complex":
        return complex(*rest)
    if name == "bytes":
        return bytes.fromhex(rest[0])
    if name == "type":
        return _TYPES[rest[0]]
    if name == "range":
        return range(*rest)
    if name == "handle":
        return found(int(rest[0]))
    raise Fault("answered nonsense")


class _Candidate:
    """The child: it does what it is asked with the program it is given."""

    def __init__(self, wire: _Wire) -> None:
        self.wire, self.held, self.space = wire, [], {"__name__": "program"}

    def serve(self) -> None:
        """Answer until nobody asks."""
        while True:
            order, *rest = self.wire.receive()
            try:
                result = [True, _pack(getattr(self, order)(*rest), self.keep)]
            except BaseException as error:  # whatever the program raises, exits included
                result = [False, f"raised {type(error).__name__}: {error}"[:300]]
            self.wire.send(result)

    def keep(self, value: Any) -> int:
        """The number of a thing that stays here."""
        self.held.append(value)
        return len(self.held) - 1

    def _open(self, data: Any) -> Any:
        return _unpack(data, self.held.__getitem__)

    def load(self, program: str) -> None:
        """Run the program."""
        exec(compile(program, "program.py", "exec"), self.space)

    def name(self, name: str) -> Any:
        """What the program calls by this name."""
        return self.space[name]

    def call(self, number: int, args: Any, options: Any) -> Any:
        """The result of a call."""
        return self.held[number](*self._open(args), **self._open(options))

    def get(self, number: int, name: str) -> Any:
        """An attribute."""
        return getattr(self.held[number], name)

    def set(self, number: int, name: str, value: Any) -> None:
        """Set an attribute."""
        setattr(self.held[number], name, self._open(value))

    def list(self, number: int) -> Any:
        """All that a thing yields, up to a limit."""
        items = []
        for item in self.held[number]:
            items.append(item)
            if len(items) > _LONGEST_ITERATOR:
                raise ValueError("an iterator without end")
        return items


class _Examiner:
    """The parent: it asks, runs the tests, and says how they went."""

    def __init__(self, wire: _Wire, child: int) -> None:
        self.wire, self.child = wire, child

    def ask(self, order: str, *rest: Any) -> Any:
        """The candidate's answer. Raises Fault where it has none."""
        packed = [_pack(one, _number_of) for one in rest]
        try:
            self.wire.send([order, *packed])
            well, answer = self.wire.receive()
            if not well:
                raise Fault(str(answer))
            return _unpack(answer, lambda number: _Handle(self, number))
        except Fault:
            raise
        except (EOFError, OSError):
            raise Fault(f"ended before it answered{self._death()}") from None
        except Exception as error:  # what it sent cannot be read
            raise Fault(f"answered nonsense ({type(error).__name__})") from None

    def _death(self) -> str:
        """How the candidate ended; nothing when it only stopped talking."""
        for _ in range(100):
            pid, status, usage = os.wait4(self.child, os.WNOHANG)
            if pid and os.WIFSIGNALED(status):
                seconds = usage.ru_utime + usage.ru_stime
                return f", by signal {os.WTERMSIG(status)} after {seconds:.1f} s of processor time"
            if pid:
                return f", with exit code {os.WEXITSTATUS(status)}"
            time.sleep(0.002)
        return ""

    def examine(self, program: str, preamble: str, names: list[str], tests: list[str]) -> tuple[str, str]:
        """("right" | "wrong" | "broken", why)."""
        space: dict[str, Any] = {"__name__": "tests"}
        sources = {f"<test {number}>": test for number, test in enumerate(tests)}
        try:
            exec(compile(preamble, "<preamble>", "exec"), space)
            compiled = [compile(test, name, "exec") for name, test in sources.items()]
        except Exception as error:
            return "broken", f"the tests: {error!r}"
        try:
            self.ask("load", program)
            space.update({name: self.ask("name", name) for name in names})
        except Fault as fault:
            return "wrong", f"the program {fault}"
        for code in compiled:
            try:
                exec(code, space)
            except AssertionError as error:
                return "wrong", f"failed: {_line(sources, error)}"
            except Exception as error:
                return "wrong", f"at {_line(sources, error)}: {'' if isinstance(error, Fault) else 'raised '}{error}"
        return "right", ""


def _number_of(value: Any) -> int:
    """The number of a handle; nothing else of the tests can be sent."""
    if not isinstance(value, _Handle):
        raise Fault(f"cannot be given a {type(value).__name__}")
    return value.__dict__["_number"]


def _line(sources: dict[str, str], error: BaseException) -> str:
    """The innermost line of the tests where this was raised."""
    line, trace = "", error.__traceback__
    while trace is not None:
        source = sources.get(trace.tb_frame.f_code.co_filename)
        if source is not None:
            line = source.splitlines()[trace.tb_lineno - 1].strip()[:200]
        trace = trace.tb_next
    return line


def _be_candidate(end: socket.socket) -> None:
    """The child's whole life; its streams lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        _Candidate(_Wire(end)).serve()
    except EOFError:
        os._exit(0)


def _main() -> None:
    """In the sandbox: a JSON object comes by stdin; its secret word and the result go to stdout."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the candidate must not raise anything in here
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE
        sys.exit("not to be hidden")
    sys.path = [folder for folder in sys.path if folder.startswith(sys.base_prefix)]
    sys.set_int_max_str_digits(_MOST_DIGITS)
    mine, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        mine.close()
        _be_candidate(theirs)
    theirs.close()
    told = json.loads(sys.stdin.read())
    outcome, why = _Examiner(_Wire(mine), child).examine(
        told["program"], told["preamble"], told["names"], told["tests"]
    )
    os.write(1, (told["word"] + json.dumps([outcome, why])).encode())
    os._exit(0)


if __name__ == "__main__":
    _main()
