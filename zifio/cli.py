"""`zifio <verb>`: a table of verbs, each one's function imported only when chosen, so that help is instant.

A verb's function takes what its options are called. What it returns belongs on stdout: text, or with `--json`
anything that JSON can hold; everything else a run has to tell goes to stderr. Exit codes: 0 done, 1 a run
that diverged or a check that found something, 2 a mistake in the command or the recipe, 130 stopped by Ctrl-C.

Try it alone:

    python -m zifio.cli rl --help
"""

import argparse
import contextlib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, NoReturn

from zifio.verbs import STAGE, VERBS


class Parser(argparse.ArgumentParser):
    """argparse, with the way out in its errors."""

    example = ""

    def error(self, message: str) -> NoReturn:
        """Write usage, what is wrong, and an example to stderr; exit with 2."""
        message = message.replace("RECIPE.toml, key=value", "RECIPE.toml")
        known = [option for action in self._actions for option in action.option_strings]
        words = [word.partition("=")[0] for word in message.split() if word.startswith("-")]
        hints = [_did_you_mean(word, known) for word in words if word.rstrip(":") not in known]
        hint = " ".join(filter(None, hints)) or f"For example: {self.example}"
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}. {hint}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own by default); the exit code comes back."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        return _write(_help())
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        return _write(f"zifio {version('zifio')}")
    if words[0] not in VERBS:
        return _complain(_unknown(words[0]))
    arguments = vars(_parser(words[0]).parse_intermixed_args(words[1:]))
    try:
        result = _function(VERBS[words[0]].target)(**arguments)
    except KeyboardInterrupt:
        return _stopped(words)
    except (ValueError, RuntimeError, OSError) as error:
        return _explained(error)
    code, result = _finished(result)
    if result is None:
        return code
    return _write(json.dumps(result, indent=2, default=str) if arguments["as_json"] else str(result)) or code


def _finished(result: Any) -> tuple[int, Any]:
    """The exit code, and what belongs on stdout."""
    from zifio.log import Finished

    return result if isinstance(result, Finished) else (0, result)


def _parser(verb: str) -> Parser:
    """The parser of one verb; its names are the parameters of the verb's function."""
    entry = VERBS[verb]
    parser = Parser(
        prog=f"zifio {verb}",
        description=f"{entry.about[:1].upper()}{entry.about[1:]}.",
        epilog=f"example:\n  {entry.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.example = entry.example
    entry.arguments(parser)
    if entry.target == STAGE:
        parser.set_defaults(kind=verb)
    return parser


def _function(target: str) -> Callable[..., Any]:
    # OpenMP's threads spin while they wait: ruinous when anything else wants their core (a step of a nano model then
    # takes a hundred times as long), yet without any spinning two threads are no faster than one. So they spin briefly.
    # To be set before torch is imported; a value of the user's own stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _help() -> str:
    lines = [
        "zifio: the DeepSeek recipe, end to end, on the hardware you have.",
        "",
        "usage: zifio VERB ...",
        "",
    ]
    lines += [f"  {name:<15}{verb.about}" for name, verb in VERBS.items()]
    lines += ["", "`zifio VERB --help` tells the rest. Begin with:", "", f"  {VERBS['run'].example}"]
    return "\n".join(lines)


def _unknown(word: str) -> str:
    if word.endswith(".toml"):
        return f"zifio: wanted a verb, came a recipe. Did you mean 'zifio run {word}'?"
    hint = _did_you_mean(word, list(VERBS)) or "See zifio --help."
    return f"zifio: wanted a verb, one of {', '.join(VERBS)}; came {word!r}. {hint}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    """As zifio.config.suggestion, which would load pydantic here."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else ""


def _stopped(words: list[str]) -> int:
    """Say how to go on: the same command, without throwing away what it has done."""
    again = shlex.join(["zifio", *(word for word in words if word != "--fresh")])
    _complain("\nstopped" if words[0] == "chat" else f"\nstopped; resume with: {again}")
    return 130


def _explained(error: Exception) -> int:
    """Say an error that is meant for people and give its exit code; raise any other again."""
    from zifio.config import ConfigError

    if isinstance(error, ConfigError):
        return _complain(str(error))
    if isinstance(error, OSError):
        return _complain(f"{error}. Mend the file or the disk and run the same command again.")
    if isinstance(error, RuntimeError):
        from zifio.train.loop import Diverged

        if isinstance(error, Diverged):
            _complain(str(error))
            return 1
    raise error


def _complain(text: str) -> int:
    """Write to stderr, if anyone reads it; 2 comes back."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            _forsake(sys.stderr)
    return 2


def _write(text: str) -> int:
    """Write to stdout; a reader who left early (`| head`) is no error. 0 comes back."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _forsake(sys.stdout)
    return 0


def _forsake(stream: IO[str]) -> None:
    """Nobody reads it: what is still in its buffer must not fail at exit, as code 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
