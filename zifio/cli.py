"""`zifio <verb>`: a table of verbs, each one's function imported only when chosen, so that help is instant.

A verb's function takes what its options are called. What it returns belongs on stdout: text, or with `--json`
anything that JSON can hold; everything else a run has to tell goes to stderr. Exit codes: 0 done, 1 a run
that diverged, 2 a mistake in the command or the recipe, 130 stopped by Ctrl-C.

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
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class Verb(NamedTuple):
    """One verb: where its function stands, what it does, a command that works, and its arguments."""

    target: str
    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]


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


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RECIPE.toml", type=Path, help="the recipe")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="changes to the recipe: seed=1 stage.r1-zero.steps=20",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the run folder (default: runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe, show what would run, stop")
    parser.add_argument("--fresh", action="store_true", help="throw away what is in the run folder first")
    _json_argument(parser)


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="NAME", help="which stage, when the recipe has several of this kind")
    _run_arguments(parser)


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a model folder (a Hugging Face checkpoint) or a GGUF file"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this and exit (otherwise: a question a line)")
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.6, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="longest reply (default: what fits the model)")
    parser.add_argument(
        "--tools", nargs="+", choices=("calculator", "python"), default=(), help="what the model may call"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same reply (default: 0)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="a GPU answers in bf16 (default: %(default)s)"
    )
    _json_argument(parser)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF file or a model folder")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to write, which must be new")


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", dest="as_json", action="store_true", help="write the result to stdout as JSON")


RECIPE, STAGE, CHAT = "zifio.recipe:run_recipe", "zifio.recipe:run_stage", "zifio.chat:chat"
QUICK = "recipes/quickstart.toml"
VERBS = {
    "run": Verb(
        RECIPE,
        "run a recipe; skip what is done, go on where it stopped",
        f"zifio run {QUICK}",
        _run_arguments,
    ),
    "pretrain": Verb(
        STAGE,
        "train a model from nothing on next tokens",
        f"zifio pretrain {QUICK} steps=50 --out runs/try",
        _stage_arguments,
    ),
    "sft": Verb(
        STAGE,
        "fine-tune a model on worked answers",
        f"zifio sft {QUICK} --stage cold-start steps=8 --out runs/try",
        _stage_arguments,
    ),
    "rl": Verb(
        STAGE,
        "reinforce what a verifier calls right (GRPO)",
        f"zifio rl {QUICK} --stage r1-zero steps=20 --out runs/try",
        _stage_arguments,
    ),
    "sample": Verb(
        STAGE,
        "draw answers and keep the right ones (rejection sampling)",
        f"zifio sample {QUICK} --stage traces problems=64 --out runs/try",
        _stage_arguments,
    ),
    "distill": Verb(
        STAGE,
        "teach a small model the answers of a larger one",
        f"zifio distill {QUICK} --out runs/try",
        _stage_arguments,
    ),
    "eval": Verb(
        STAGE,
        "measure models on problems they have not seen",
        f"zifio eval {QUICK} problems=64 --out runs/try --json",
        _stage_arguments,
    ),
    "chat": Verb(
        CHAT,
        "talk to a model, its thinking shown apart",
        "zifio chat runs/quickstart/r1/model --prompt '(3+7+2+9)%10'",
        _chat_arguments,
    ),
    "convert": Verb(
        "zifio.convert:convert",
        "write a GGUF file as a folder that transformers opens",
        "zifio convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2",
        _convert_arguments,
    ),
}


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
    if result is None:
        return 0
    return _write(json.dumps(result, indent=2, default=str) if arguments["as_json"] else str(result))


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
    lines += [f"  {name:<10}{verb.about}" for name, verb in VERBS.items()]
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
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text + "\n")
    return 2


def _write(text: str) -> int:
    """Write to stdout; a reader who left early (`| head`) is no error. 0 comes back."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
