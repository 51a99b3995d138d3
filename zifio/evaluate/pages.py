"""The results of an evaluation as Markdown for people.

Try it alone: `pytest tests/evaluate/test_examine.py`
"""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from zifio.evaluate.wording import percent, points_text, seconds_text

METHODS = {
    "pass_at_k": "pass@{k}",
    "majority_at_k": "majority@{k}",
    "best_of_k_logp": "best of {k} by log-prob",
    "best_of_k_short": "shortest of {k}",
    "best_of_k_long": "longest of {k}",
    "best_of_k_oracle": "best of {k} by the verdict",
}

_DIVERSITY = (
    "Distinct right: different right replies over right replies to a problem. Coverage: the share of the right answers "
    "there are that were found. Entropy: the mean of -log p over replies drawn from p; absent where nobody tells p. Of "
    "replies without a thinking budget."
)


def exam_page(results: dict[str, Any], has_curve: bool) -> str:
    """results.md: the figures by method and budget, what was left out, and what it took."""
    lines = [f"# {results['name']} on {results['task']}", "", counted(results), ""]
    arms = results.get("arms") or [results]
    for arm in arms:
        if "pass_at_k" not in arm:
            continue
        if len(arms) > 1:
            said = f"Thinking budget {arm['budget']} tokens" if arm["budget"] is not None else "No thinking budget"
            lines += [f"## {said}", ""]
            if arm["budget"] is not None and "budget_by" in results:
                lines += [f"How a budget is kept: {results['budget_by']}.", ""]
        lines += ["| figure | value | 95% interval |", "|---|---:|---:|", *_figure_lines(arm), "", *_notes(arm), ""]
    for found in results.get("rerank", {}).values():
        lines += _rerank_lines(found)
    if has_curve:
        lines += ["![Accuracy against thinking budget and number of replies](curve.png)", ""]
    if said := diversity_cells(results):
        lines += ["## Diversity", "", "| figure | value | 95% interval |", "|---|---:|---:|"]
        lines += [f"| {label} | {value} | {interval or '–'} |" for label, value, interval in said]
        lines += ["", _DIVERSITY, ""]
    lines += [
        "Intervals resample problems (clustered bootstrap). pass@k, majority@k and best-of-k are exact "
        "expectations over all choices of k replies; ties are broken by lot. Replies whose check broke are "
        "left out of every figure.",
        "",
    ]
    return "\n".join(lines)


def diversity_cells(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, value, interval) of how much there still is to say: distinct right answers, coverage, entropy.

    Of one reply to each problem the first two tell nothing.
    """
    found, said = results.get("diversity", {}), []
    for name, label in (("distinct_right", "distinct right"), ("coverage", "coverage")):
        if name in found and results["n"] > 1:
            low, high = found[f"{name}_interval"]
            of = found["coverage_possible"] if name == "coverage" else 1.0
            value = percent(found[name]) + (f" of {percent(of)}" if of < 1 else "")
            said.append((label, value, f"{percent(low)} to {percent(high)}"))
    for name, label, digits in (("reply_entropy", "nats a reply", 2), ("token_entropy", "nats a token", 3)):
        if name in found:
            said.append((label, f"{found[name]:.{digits}f}", ""))
    return said


def _rerank_lines(found: dict[str, Any]) -> list[str]:
    """Choices by a process reward model beside the majority's, and first errors."""
    lines = ["## Choosing by the steps' scores", ""]
    lines += ["| replies | majority | by | best | over majority | weighted vote | over majority |"]
    lines += ["|---:|---:|---|---:|---|---:|---|"]
    for row in found["table"]:
        best, weighted = (f"{percent(row[way])} | {points_text(row[f'{way}_gain'])}" for way in ("best", "weighted"))
        lines.append(f"| {row['k']} | {percent(row['majority'])} | {row['by']} | {best} | {weighted} |")
    if (located := found.get("localisation")) is not None:
        lines += ["", f"First errors are found with F1 {percent(located['f1'])} (as in ProcessBench)."]
    return [*lines, ""]


def exam_table(results: dict[str, Any]) -> Table:
    """The figures for the terminal, budgets side by side."""
    arms = [arm for arm in results.get("arms") or [results] if "pass_at_k" in arm]
    title = f"{results['name']} on {results['task']}: {counted(results)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("figure")
    for arm in arms:
        budget = arm["budget"]
        table.add_column("" if len(arms) == 1 else "no budget" if budget is None else f"{budget}", justify="right")
    for name, label in _named_cells(arms):
        cells = [_cell(arm, name) for arm in arms]
        table.add_row(label, *(f"{percent(c['mean'])} ({_interval(c)})" if c else "–" for c in cells))
    for label, value, interval in diversity_cells(results) if arms else []:
        cell = f"{value} ({interval})" if interval else value
        table.add_row(label, *(cell if arm["budget"] is None else "–" for arm in arms))
    return table


def counted(results: dict[str, Any]) -> str:
    """How much was measured, and what is left out."""
    arm = (results.get("arms") or [results])[-1]
    said = f"{arm['n_problems']} problems, {arm['n_replies']} replies"
    if arm["n_errors"]:
        said += f", {arm['n_errors']} of them left out because their check broke"
    if results.get("n_missing"):
        said += f"; {results['n_missing']} replies are missing"
    return said + "."


def _figure_lines(arm: dict[str, Any]) -> list[str]:
    lines = []
    for name, label in _named_cells([arm]):
        cell = _cell(arm, name)
        if cell:
            lines.append(f"| {label} | {percent(cell['mean'])} | {_interval(cell)} |")
    return lines


def _notes(arm: dict[str, Any]) -> list[str]:
    """Lengths and what it took, in one paragraph."""
    said = []
    if "wilson" in arm:
        low, high = arm["wilson"]
        said.append(f"Wilson interval of pass@1, one reply a problem: {percent(low)} to {percent(high)}.")
    if "mean_tokens" in arm:
        thinking = f", {arm['mean_thinking_tokens']:.0f} of them thinking" if "mean_thinking_tokens" in arm else ""
        said.append(
            f"A reply takes {arm['mean_tokens']:.0f} tokens{thinking}; {percent(arm['share_cut_off'])} cut off."
        )
    if "mean_turns" in arm:
        failed = f", {percent(arm['share_calls_failed'])} of the calls in vain" if "share_calls_failed" in arm else ""
        said.append(
            f"An episode has {arm['mean_turns']:.1f} turns; {percent(arm['share_calls_tools'])} call tools{failed}."
        )
    if "tokens_per_solved" in arm:
        cost = f", {arm['cost_per_solved']:.4g} in money" if "cost_per_solved" in arm else ""
        time = f", {seconds_text(arm['seconds_per_solved'])}" if "seconds_per_solved" in arm else ""
        said.append(f"A right answer takes {arm['tokens_per_solved']:.0f} tokens{time}{cost}.")
    return said


def _named_cells(arms: list[dict[str, Any]]) -> list[tuple[tuple[str, str], str]]:
    """((method, k), what it is called) of everything that any of these has a figure of."""
    found = []
    names = [name for arm in arms for name in arm if name.endswith("_at_k") or name.startswith("best_of_k_")]
    for name in dict.fromkeys([*(name for name in METHODS if name in names), *names]):
        ks = sorted({int(k) for arm in arms for k in arm.get(name, {})})
        label = METHODS.get(name, "best of {k} by " + name.removeprefix("best_of_k_"))
        found += [((name, str(k)), label.format(k=k)) for k in ks if k > 1 or name == "pass_at_k"]
    return found


def _cell(arm: dict[str, Any], name: tuple[str, str]) -> dict[str, Any] | None:
    return arm.get(name[0], {}).get(name[1])


def _interval(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{percent(low)} to {percent(high)}"
