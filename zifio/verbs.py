"""The verbs of `zifio`: where each one's function stands, and what it takes. Nothing of theirs is imported here.

Try it alone: `pytest tests/test_cli.py`
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Verb(NamedTuple):
    """One verb: where its function stands, what it does, a command that works, and its arguments."""

    target: str
    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]


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


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="MODEL|URL|RECIPE.toml", nargs="?", help="a model, an OpenAI-compatible endpoint, or a recipe"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="settings: sampling.temperature=0.6 'budgets=[64, 256]' 'scorers=[\"short\"]' endpoint.concurrency=16 "
        "prices.input=1 prices.output=4 (an unknown key lists them all); of a recipe: changes to its stage",
    )
    parser.add_argument(
        "--task", metavar="NAME[:key=value,...]", help="the task, as chain_sum:max_terms=4, a FILE.jsonl or a recipe"
    )
    parser.add_argument("--problems", metavar="N", type=int, help="held-out problems (default: all of a set, or 256)")
    parser.add_argument("--n", metavar="N", type=int, help="replies to each problem (default: 1)")
    parser.add_argument("--model", metavar="NAME", help="what the endpoint calls the model")
    parser.add_argument("--answers", metavar="FILE.jsonl", type=Path, help="score these recorded replies instead")
    parser.add_argument("--questions", metavar="FILE.jsonl", type=Path, help="write the questions here and stop")
    parser.add_argument("--stage", metavar="NAME", help="which stage of a recipe, when it has several of this kind")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder (default: runs/eval/NAME-TASK)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show what would be asked, stop")
    parser.add_argument("--fresh", action="store_true", help="throw away what is in the folder first")
    parser.set_defaults(kind="eval")
    _json_argument(parser)


def _claim_arguments(parser: argparse.ArgumentParser) -> None:
    for letter, which in (("a", "that is said to reach"), ("b", "that is reached")):
        parser.add_argument(letter, metavar=letter.upper(), type=Path, help=f"the evaluation of the model {which}")
    parser.add_argument(
        "--ratio", metavar="X", type=float, default=0.95, help="A reaches X of B (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the card goes (default: runs/claim/A-B)")
    _json_argument(parser)


def _contamination_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "training", metavar="TRAIN", nargs="+", type=Path, help="JSONL, text or parquet; .gz, .xz, .bz2"
    )
    parser.add_argument(
        "--against", metavar="TASK|FILE", required=True, help="a task, as for `zifio eval --task`, or a benchmark file"
    )
    parser.add_argument("--problems", metavar="N", type=int, help="of a task (default: all of a set, or 256)")
    parser.add_argument("--seed", type=int, default=0, help="of a task that draws its problems (default: 0)")
    _json_argument(parser)


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
    _device_argument(parser)
    _json_argument(parser)


def _draw_arguments(parser: argparse.ArgumentParser) -> None:
    _picture_arguments(parser, temperature=1.0)
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    parser.add_argument("-n", metavar="N", type=int, default=16, help="how many drawings (default: %(default)s)")
    parser.add_argument("--cfg", metavar="X", type=float, default=5.0, help="guidance (1: none; default: %(default)s)")
    parser.add_argument("--out", metavar="FILE.png", type=Path, default=Path("drawing.png"), help="(drawing.png)")
    parser.add_argument("--columns", metavar="N", type=int, help="drawings side by side (default: a square)")


def _see_arguments(parser: argparse.ArgumentParser) -> None:
    _picture_arguments(parser, temperature=0.0)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="PNG, JPEG, GIF, WebP or BMP")
    parser.add_argument("question", metavar="QUESTION", nargs="?", default="What is this?", help="(What is this?)")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="longest reply (default: 256, or what fits)")


def _picture_arguments(parser: argparse.ArgumentParser, temperature: float) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a Janus: a folder, or a name at the hub")
    parser.add_argument("--temperature", metavar="T", type=float, default=temperature, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    _json_argument(parser)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF file or a model folder")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to write, which must be new")


def _gather_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", choices=("digits", "emoji"), help="scikit-learn's digits, or Twemoji")
    from_ = "of emoji: a folder with npm's emoji-datasource-twitter unpacked"
    parser.add_argument("--from", metavar="FOLDER", type=Path, dest="folder", help=from_)
    parser.add_argument("--out", metavar="FILE.parquet", type=Path, required=True, help="the file to write")
    parser.add_argument("--side", metavar="N", type=int, default=32, help="pixels a side (default: 32)")


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Check the lines of a file and write a verdict for each.

A line is a JSON object: the model's text as "response", "output", "prediction" or "completion", and the right answer as
"gold" or "answer"; or "task" with "prompt" and "gold" where a task of ours is to check it:

  {"id": "q1", "gold": "\\\\frac{1}{2}", "response": "So the answer is \\\\boxed{0.5}."}
  {"task": "chain_sum", "prompt": "6+1-1+9", "gold": "15", "response": "<think></think><answer>15</answer>"}

Each gives a line, in order: {"line": 1, "id": "q1", "verdict": "right", "reward": 1.0, "parts": {"accuracy": 1.0,
"format": 1.0}, "reason": "", "seconds": 0.001}. The verdict is right, wrong or error: error where a line cannot be read
or its check broke, with the reason. Exit code 1 where there are errors. The same command goes on where it stopped."""
    parser.add_argument("path", metavar="FILE.jsonl", type=Path, help="a JSON object a line")
    parser.add_argument("--verifier", choices=("maths",), default="maths", help="what checks gold (default: maths)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the verdicts (default: FILE.verdicts.jsonl)")
    parser.add_argument("--fresh", action="store_true", help="write over verdicts that are there")
    parser.add_argument("--unordered", action="store_true", help="1, 2 without brackets is the same as 2, 1")
    parser.add_argument("--second-opinion", action="store_true", help="ask math-verify too, and tell where it differs")
    _json_argument(parser)


def _screen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", metavar="TASK", help="NAME, NAME:key=value,key=value, a .jsonl or .parquet file, or RECIPE.toml[:STAGE]"
    )
    parser.add_argument("--problems", metavar="N", type=int, default=32, help="attack so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same problems (default: 0)")
    parser.add_argument("--report", metavar="FILE.html", type=Path, help="write a page that shows what passed")
    _json_argument(parser)


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """A desk for labels by people: steps of a working, answers, pairs. Opens its page; with an
option it does that one thing instead. DB is a file (SQLite, made when it is not there) or a URL of PostgreSQL,
postgresql://user@host/name."""
    parser.add_argument("path", metavar="DB", help="the desk: a file, or a URL of PostgreSQL")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="the desk's rules: wanted=2 queue=convincing stop=every"
    )
    parser.add_argument(
        "--import",
        dest="import_path",
        metavar="FILE.jsonl",
        type=Path,
        help="items, replies, PRM800K, or TRL's formats",
    )
    parser.add_argument(
        "--prelabels", action="store_true", help="the imported labels are a machine's: hide them at first"
    )
    parser.add_argument(
        "--scores", metavar="FILE.jsonl", type=Path, help="a reward model's scores of items: id, scores"
    )
    parser.add_argument(
        "--export", dest="export_format", metavar="FORMAT", help="prm800k, stepwise, preference, unpaired, parquet"
    )
    parser.add_argument("--every", action="store_true", help="export every label, not the final one of each item")
    parser.add_argument("--first", metavar="N", type=int, help="export the N labels that were given first")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the export goes")
    parser.add_argument("--report", action="store_true", help="agreement, each labeller's care, speed and drift")
    parser.add_argument("--add-annotator", metavar="NAME", help="a new account; its token is shown once")
    parser.add_argument("--adjudicator", action="store_true", help="the new account settles disputes too")
    parser.add_argument("--new-token", metavar="NAME", help="another token for an account; the old one ends")
    parser.add_argument("--remove-annotator", metavar="NAME", help="their token ends, their labels stay")
    parser.add_argument("--rebuild", action="store_true", help="make the views again from the log")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, default=8017, help="(default: %(default)s)")
    _json_argument(parser)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        metavar="MODEL|key=value",
        nargs="*",
        help="model folders, GGUF files or names at the hub; settings: aliases.deepseek-chat=r1 engine.max_rows=16",
    )
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="the settings, models and aliases among them")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, help="(default: 8000, or the settings')")
    _device_argument(parser)
    parser.add_argument(
        "--engine",
        choices=("zifio", "vllm"),
        default="zifio",
        help="who computes: ours, or vLLM where it is installed; vllm.python=PATH names another Python that has it "
        "(default: %(default)s)",
    )
    _json_argument(parser)


def _board_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders; one may begin later")
    parser.add_argument(
        "--reference", metavar="RUN", nargs="+", default=(), type=Path, help="runs whose band is drawn behind"
    )
    parser.add_argument("--price-per-hour", metavar="X", type=float, help="of the machine; shows what a run has cost")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, default=8018, help="(default: %(default)s)")
    parser.set_defaults(as_json=False)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, also of a run that still goes on")
    _json_argument(parser)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """What a model or a recipe costs, before it runs: parameters, FLOPs, memory, hours, energy,
price; of a recipe, seconds and memory of every stage on this machine. With a task: will RL learn there?"""
    parser.add_argument(
        "subject",
        metavar="MODEL|RECIPE.toml|CLAIM",
        nargs="?",
        help="a preset (deepseek-v3, qwen3-30b-a3b, ...), a checkpoint or its config.json, a name at the hub, a "
        "recipe, a claim of the laboratory (C6)",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="assumptions: hardware=h200 mfu=0.4 layout.data=8 rl.reply_tokens=8192 (an unknown key lists them all); "
        "of a recipe: changes to it; of a claim: scale=cpu seeds=5 jobs=2",
    )
    parser.add_argument(
        "--task", metavar="NAME[:key=value,...]", help="will RL on this task learn? drawn from the model"
    )
    parser.add_argument("--stage", metavar="NAME", help="will this rl stage of the recipe learn?")
    parser.add_argument("--samples", metavar="N", type=int, help="replies that tell (default: 300)")
    parser.add_argument("--target", metavar="X", type=float, default=0.9, help="pass@1 to reach (default: %(default)s)")
    parser.add_argument("--against", metavar="RUN", type=Path, help="a run of the recipe: how right is the forecast?")
    parser.add_argument("--forecast", metavar="FILE", type=Path, help="one made before, as --json wrote it")
    parser.add_argument("--price-per-hour", metavar="X", type=float, help="of this machine, for a recipe")
    parser.add_argument("--figure", metavar="FILE.png", type=Path, help="draw it too")
    parser.add_argument("--probe", action="store_true", help="measure this machine, in at most a minute")
    parser.add_argument("--roads", action="store_true", help="efficiency against brute force, with sources")
    _json_argument(parser)


def _lab_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Claims about the recipe as experiments that can fail: prediction first, paired seeds, equal
compute by the ledger, a verdict computed from every seed. Runs from a checkout of the repository."""
    parser.add_argument("action", metavar="list|run|report", help="what to do")
    parser.add_argument("claims", metavar="CLAIM", nargs="*", help="C1, C2, ..., or all")
    parser.add_argument("--scale", choices=("smoke", "cpu", "gpu"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--seeds", metavar="N", type=int, help="so many seeds in place of the scale's own")
    parser.add_argument("--jobs", metavar="N", type=int, help="seeds side by side, a thread each (default: the cores)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/lab"), help="(default: %(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="build and check every recipe, show what would run, stop"
    )
    parser.add_argument("--fresh", action="store_true", help="throw away what these seeds have done")
    _json_argument(parser)


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="a GPU answers in bf16 (default: %(default)s)"
    )


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
        "teach a small model by the text or the logits of a larger one",
        f"zifio distill {QUICK} --out runs/try",
        _stage_arguments,
    ),
    "mark": Verb(
        STAGE,
        "mark the steps of drawn replies: by completions, a judge, the task, people",
        "zifio mark recipes/prm-rerank.toml --stage rollouts most=64 --out runs/try",
        _stage_arguments,
    ),
    "prm": Verb(
        STAGE,
        "train a process reward model on marked steps",
        "zifio prm recipes/prm-rerank.toml --stage prm steps=20 --out runs/try",
        _stage_arguments,
    ),
    "reward": Verb(
        STAGE,
        "train a reward model on preferences (Bradley-Terry)",
        "zifio reward recipes/smoke.toml --out runs/try",
        _stage_arguments,
    ),
    "dpo": Verb(
        STAGE,
        "train a model on preferences (DPO)",
        "zifio dpo recipes/smoke.toml --out runs/try",
        _stage_arguments,
    ),
    "vq": Verb(
        STAGE,
        "train a tokenizer of pictures",
        "zifio vq recipes/janus-nano.toml steps=20 --out runs/try",
        _stage_arguments,
    ),
    "classifier": Verb(
        STAGE,
        "train a classifier of pictures, to judge drawings",
        "zifio classifier recipes/janus-fashion.toml --out runs/try",
        _stage_arguments,
    ),
    "vision": Verb(
        STAGE,
        "train an encoder of pictures",
        "zifio vision recipes/janus-nano.toml steps=20 --out runs/try",
        _stage_arguments,
    ),
    "janus": Verb(
        STAGE,
        "train a model that reads pictures and draws",
        "zifio janus recipes/janus-nano.toml --stage adaptors steps=20 --out runs/try",
        _stage_arguments,
    ),
    "eval": Verb(
        "zifio.exam:run_eval",
        "measure a model, an endpoint or recorded replies on a task; or a recipe's models",
        f"zifio eval {QUICK} problems=64 --out runs/try --json",
        _eval_arguments,
    ),
    "claim": Verb(
        "zifio.evaluate.claim:claim",
        "say whether model A reaches a share of model B, or whether too few problems tell",
        "zifio claim runs/eval/ours-gsm8k runs/eval/theirs-gsm8k --ratio 0.95",
        _claim_arguments,
    ),
    "contamination": Verb(
        "zifio.evaluate.contamination:contamination",
        "look for a benchmark's problems in training files; exit code 1 when some are there",
        "zifio contamination train.jsonl --against chain_sum",
        _contamination_arguments,
    ),
    "screen": Verb(
        "zifio.tasks.screen:screen",
        "attack a reward before anyone trains on it",
        "zifio screen mine.jsonl:verifier=integer --report screen.html",
        _screen_arguments,
    ),
    "chat": Verb(
        CHAT,
        "talk to a model, its thinking shown apart",
        "zifio chat runs/quickstart/r1/model --prompt '(3+7+2+9)%10'",
        _chat_arguments,
    ),
    "serve": Verb(
        "zifio.serve.verb:serve",
        "serve models behind OpenAI's, DeepSeek's and Anthropic's interfaces",
        "zifio serve runs/quickstart/r1/model",
        _serve_arguments,
    ),
    "score": Verb(
        "zifio.tasks.score:score",
        "check anyone's outputs against the right answers",
        "zifio score outputs.jsonl --verifier maths --out verdicts.jsonl",
        _score_arguments,
    ),
    "label": Verb(
        "zifio.label.verb:label",
        "label steps, answers and pairs by hand: a page, its accounts, imports and exports",
        "zifio label desk.db --import items.jsonl",
        _label_arguments,
    ),
    "board": Verb(
        "zifio.board.verb:board",
        "a page that shows runs while they go on, beside one another",
        "zifio board runs/quickstart",
        _board_arguments,
    ),
    "doctor": Verb(
        "zifio.doctor.verb:doctor",
        "say what is wrong with a run, and what to try; exit code 1 when something is",
        "zifio doctor runs/quickstart",
        _doctor_arguments,
    ),
    "plan": Verb(
        "zifio.forecast.verb:plan",
        "say what a model or a recipe costs before it runs, and whether it can learn",
        "zifio plan deepseek-v3",
        _plan_arguments,
    ),
    "draw": Verb(
        "zifio.easel:draw",
        "let a model draw what words say",
        'zifio draw runs/janus-nano/janus/model "red circle above blue square" --cfg 2 --temperature 0.5 --out red.png',
        _draw_arguments,
    ),
    "see": Verb(
        "zifio.easel:see",
        "ask a model about a picture",
        'zifio see runs/janus-nano/janus/model picture.png "What is this?"',
        _see_arguments,
    ),
    "gather": Verb(
        "zifio.gather:gather",
        "pictures with texts from packages that carry them, as a file to train on",
        "zifio gather emoji --from node_modules/emoji-datasource-twitter --out emoji.parquet",
        _gather_arguments,
    ),
    "lab": Verb(
        "zifio.lab.verb:lab",
        "claims as experiments that can fail: list, run, report",
        "zifio lab run C1 --scale smoke",
        _lab_arguments,
    ),
    "convert": Verb(
        "zifio.convert:convert",
        "write a GGUF file as a folder that transformers opens",
        "zifio convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2",
        _convert_arguments,
    ),
}
