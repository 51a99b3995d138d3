"""How a reply says its answer: between tags, in a box, or on its last line; how to ask for it, write it and read it.

What stands before the end of the thinking (`</think>`) is no answer, whatever it looks like. A reply that gives
several answers gives none: reading is strict, so that listing answers does not pay.

Try it alone:

    python -c "from zifio.tasks.form import *; print(final_answer('so <answer>15</answer>', 'tags'))"
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from zifio.tasks.task import Verdict

Form = Literal["tags", "boxed", "free"]

ASK: dict[Form, str] = {
    "tags": "Work it out step by step, then give the final answer alone between <answer> and </answer>.",
    "boxed": "Work it out step by step, then put the final answer alone inside \\boxed{}.",
    "free": 'Work it out step by step, then end with a line that reads "The answer is" and the final answer.',
}
OPEN, CLOSE = "<answer>", "</answer>"
_BOX = "\\boxed{"
THINK, THOUGHT = "<think>", "</think>"
_LEAD = re.compile(r"(?:.*\banswer\b\**(?:\s+is\b|\s*[:=])|#{4})[\s:=*]*", re.IGNORECASE)
_BRACE = re.compile(r"[{}]")
_LONGEST_LINE = 4096


class Thought(NamedTuple):
    """A reply's thinking apart from the rest."""

    thinking: str
    rest: str
    is_open: bool
    """Whether a thinking has begun that does not end."""


def split_thinking(text: str) -> Thought:
    """The last end of thinking counts; a thinking that never ends goes to the end of the text.

    A chat template may have opened the thinking in the prompt, so its opening tag may be missing.
    """
    before, closed, rest = text.rpartition(THOUGHT)
    if closed:
        return Thought(before.removeprefix(THINK), rest, THINK in rest)
    before, opened, thinking = text.partition(THINK)
    return Thought(thinking, before, True) if opened else Thought("", text, False)


def wrap(working: str, answer: str, form: Form) -> str:
    """A reply that gives this answer, after its working where there is one."""
    said = {"tags": f"{OPEN}{answer}{CLOSE}", "boxed": f"{_BOX}{answer}}}", "free": f"The answer is {answer}."}[form]
    return f"{working}\n{said}" if working else said


def final_answer(response: str, form: Form) -> tuple[str, str]:
    """(answer, what keeps the reply from giving one): one of them is empty, or both where an empty answer is given."""
    thought = split_thinking(response)
    if thought.is_open:
        return "", "the thinking has no end"
    return {"tags": between_tags, "boxed": _in_box, "free": _on_last_line}[form](thought.rest)


def judged(response: str, form: Form, fault: Callable[[str], str]) -> Verdict:
    """The verdict on a response: `fault(answer)` says what is wrong with the answer it gives, "" when nothing is."""
    answer, unread = final_answer(response, form)
    if unread:
        return Verdict("wrong", 0.0, {"accuracy": 0.0, "format": 0.0}, unread)
    wrong = fault(answer)
    accuracy = 0.0 if wrong else 1.0
    return Verdict("wrong" if wrong else "right", accuracy, {"accuracy": accuracy, "format": 1.0}, wrong)


def boxes(text: str) -> list[str]:
    """What stands in each \\boxed{}, outermost ones only, in order. Linear in the length."""
    found, at = [], text.find(_BOX)
    while at >= 0:
        start = at + len(_BOX)
        depth, end = 1, start
        for brace in _BRACE.finditer(text, start):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = brace.start()
                break
        else:
            return found  # this one never closes, so no later one counts
        found.append(text[start:end])
        at = text.find(_BOX, end)
    return found


def unboxed(text: str) -> str:
    """The text with every box opened."""
    for inside in boxes(text):
        text = text.replace(f"{_BOX}{inside}}}", inside, 1)
    return text


def between_tags(reply: str) -> tuple[str, str]:
    """(answer, what keeps it from standing between one pair of tags at the end of the reply)."""
    if reply.count(OPEN) != 1 or reply.count(CLOSE) != 1:
        return "", "not one pair of answer tags"
    start, end = reply.index(OPEN) + len(OPEN), reply.index(CLOSE)
    if end < start or not reply.rstrip().endswith(CLOSE):
        return "", "the answer's tags are not the end"
    return reply[start:end].strip(), ""


def _in_box(reply: str) -> tuple[str, str]:
    found = [" ".join(inside.split()) for inside in boxes(reply)]
    if not found:
        return "", "no closed \\boxed{}"
    if len(set(found)) > 1:
        return "", f"{len(set(found))} different boxed answers"
    return found[0], ""


def _on_last_line(reply: str) -> tuple[str, str]:
    lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
    if not lines:
        return "", "no answer"
    if len(lines[-1]) > _LONGEST_LINE:
        return "", f"a last line of {len(lines[-1])} characters"
    leads = [_LEAD.match(line) for line in lines if len(line) <= _LONGEST_LINE]
    said = [lead.string[lead.end() :].strip("* \t").removesuffix(".").strip("* \t$") for lead in leads if lead]
    if len(set(said)) > 1:
        return "", f"{len(set(said))} different answers"
    if said and leads[-1]:
        return said[0], ""
    return ("", "the answer is not on the last line") if said or len(lines) > 1 else (lines[0].removesuffix("."), "")
