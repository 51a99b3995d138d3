"""The card beside a parquet file of labels: what is in it, who labelled by which rules, how far they agreed.

Try it alone: `zifio label desk.db --export parquet --out labels.parquet`
"""

from pathlib import Path

from zifio.config import ConfigError
from zifio.label.desk import Desk
from zifio.label.report import report

_TAGS = "tags: [reasoning, process-supervision, human-labels]"
_COLUMNS = {
    "id, kind, role, problem, source": "the item: its name, what it is (steps, answer, pair), work, gold or "
    "screening, and where it comes from",
    "prompt, steps, alternatives, response, a, b, answer": "what was labelled; alternatives are other texts for each "
    "step",
    "gold, outcome, scores": "the right answer, the verifier's verdict and a process reward model's scores",
    "finish, ratings, alternative_ratings, value, stance": "the label: found_error, solution, bad_problem, give_up; "
    "-1, 0, 1 for each step, and for each alternative to it; right, wrong, a, b, tie, both_bad; and in a word",
    "correction, note, flagged": "what the labeller wrote beside it",
    "annotator, phase, timestamp, ms": "whose label, before (blind) or after (revised) the machine's or to settle a "
    "dispute (adjudication), when, and how long it took",
    "queue, saw_verdict": "which queue the item came from, and whether the verifier's verdict was seen first",
}


def card_place(beside: Path) -> Path:
    """README.md beside `beside`, as a dataset's folder has it.

    Raises ConfigError where another is there than an earlier card of the same file.
    """
    card = beside.with_name("README.md")
    there = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if card.exists() and not {_TAGS, _names(beside)} <= set(there.splitlines()):
        raise ConfigError(
            f"{card}: wanted no README.md, or an earlier card of {beside.name}, came another one, which is kept. Write "
            "the parquet file to a folder of its own."
        )
    return card


def _names(file: Path) -> str:
    return f"  data_files: {file.name}"


def write_card(desk: Desk, beside: Path, n_rows: int) -> Path:
    """Write the card of `beside` to its place, which comes back. Raises ConfigError where something else is there."""
    card = card_place(beside)
    with desk.store.read() as connection:
        settings = desk.store.settings(connection).model_dump(mode="json")
    found = report(desk.store)
    people, found["annotators"] = found["annotators"], []  # a card names nobody
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        _names(beside),
        _TAGS,
        "---",
        "",
        f"# {beside.stem}",
        "",
        f"{n_rows} labels made at zifio's labelling desk by {len(people)} people, whom `annotator` tells apart.",
        "",
        *(f"- {line}" for line in str(found).splitlines() if "Cohen" not in line),
        "",
        "Agreement is of blind labels, with 95 % intervals from resampling items.",
        "",
        "## Rules",
        "",
        *(f"- `{key} = {value}`" for key, value in settings.items()),
        "",
        "## Columns",
        "",
        *(f"- {names}: {about}" for names, about in _COLUMNS.items()),
        "",
    ]
    card.write_text("\n".join(lines), encoding="utf-8")
    return card
