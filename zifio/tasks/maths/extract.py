r"""Where in a response the answer stands.

Looked for in this order, after the thinking: <answer> tags, \boxed, a `####` line, "the answer is ...", and a last line
that is nothing but an answer, or has one number in it. A response that states several answers states none: who lists
all the numbers from 1 to 100 has not solved anything.

Try it alone: `python -c "from zifio.tasks.maths.extract import find; print(find('So the answer is 5.'))"`
"""

import re
from dataclasses import dataclass

from zifio.tasks.form import split_thinking
from zifio.tasks.maths.scan import LONGEST, Unreadable, group

MOST_STATED = 20
MOST_MARKS = 200  # boxes, tags and the like, equal ones included
_TAGS = re.compile(r"<answer>|</answer>")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(.*)$", re.MULTILINE)
_PHRASE = re.compile(
    r"(?:\b(?:answer|result|solution)\s*(?:is|are|equals|:|=)"
    r"|^[ \t>*_#]*(?:final\s+)?A(?:nswer)?[*_]*\s*:)[*_]*\s*:?",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(r"[.!?](?=\s+[A-Z*(]|\s*$)|\n|<")
_NUMBER = re.compile(r"(?<![\w.,/^])[-−]?\s?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?(?![\w/^])")
_EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3}|__?)(?=\S)(.+?)(?<=\S)\1(?![\w(*])")
_LEADING = re.compile(
    r"^(?:(?:so|thus|hence|therefore|it is|is|that is|i\.e\.|just|simply|exactly)\b[,:]?\s*)+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Found:
    """The answers that a response states, and whether it marked them as such; `fault` says why there is none."""

    stated: tuple[str, ...] = ()
    """The last one first. More than one only when they differ as text; whether they agree is for the checker to say."""
    marked: bool = False
    """Whether tags, a box, `####` or "the answer is" marked it."""
    fault: str = ""


def find(response: str) -> Found:
    """The answer, or answers, of a response."""
    _, text, is_open = split_thinking(response)
    if is_open:
        return Found(fault="the thinking does not end")
    if any(sum(1 for _ in marks.finditer(text)) > MOST_MARKS for marks in (_TAGS, _BOXED, _HASHES, _PHRASE)):
        return Found(fault=f"more than {MOST_MARKS} answers")
    tagged = _tagged(text)
    if tagged is None:
        return Found(fault="the answer's tags do not match")
    tagged = [_boxes(inner)[-1] if len(_boxes(inner)) == 1 and _is_box(inner) else inner for inner in tagged]
    marked = [*_boxes(_TAGS.sub(" ", text) if not tagged else _outside_tags(text)), *_hashes(text)]
    stated = [*marked, *tagged]
    if stated:
        return _stated(stated, True)
    phrases = [_clean(_cut(text[found.end() : found.end() + 2 * LONGEST])) for found in _PHRASE.finditer(text)]
    phrases = [phrase for phrase in phrases if phrase]
    if phrases:
        return _stated(phrases, True)
    return _last_line(text)


def _stated(texts: list[str], marked: bool) -> Found:
    """Without repetitions, the last one first."""
    kept = list(dict.fromkeys(clean for text in reversed(texts) if (clean := _clean(text))))
    if not kept:
        return Found(fault="an empty answer")
    if len(kept) > MOST_STATED:
        return Found(fault=f"more than {MOST_STATED} different answers")
    return Found(tuple(kept), marked)


def _tagged(text: str) -> list[str] | None:
    """What stands between answer tags; None when they do not open and close in turn."""
    inside, start = [], -1
    for found in _TAGS.finditer(text):
        if (found[0] == "<answer>") != (start < 0):
            return None
        if start < 0:
            start = found.end()
        else:
            inside.append(text[start : found.start()])
            start = -1
    return None if start >= 0 else inside


def _outside_tags(text: str) -> str:
    return re.sub(r"<answer>.*?</answer>", " ", text, flags=re.DOTALL)


def _boxes(text: str) -> list[str]:
    r"""The contents of every \boxed that closes; nested braces belong to it."""
    inside = []
    for found in _BOXED.finditer(text):
        rest = text[found.end() : found.end() + LONGEST + 2]
        try:
            inside.append(group(rest, 0)[0])
        except Unreadable:
            one = re.match(r"\d(?!\d)|[A-Za-z](?![A-Za-z])", rest)
            if one:
                inside.append(one[0])
    return inside


def _is_box(text: str) -> bool:
    """Whether there is nothing but one box."""
    text = text.strip().strip("$").strip()
    found = _BOXED.match(text)
    if found is None:
        return False
    try:
        return group(text, found.end())[1] == len(text)
    except Unreadable:
        return False


def _hashes(text: str) -> list[str]:
    return [found[1] for found in _HASHES.finditer(text)]


def _cut(text: str) -> str:
    """Up to the end of the sentence, or of the mathematics in it."""
    text = text.lstrip(" \t*_:")
    text = text.lstrip("\n") if text.startswith("\n") else text
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("\\(", "\\)")):
        if text.startswith(opening):
            end = text.find(closing, len(opening))
            if end > 0:
                return text[len(opening) : end]
    end = _SENTENCE.search(text)
    return text[: end.start()] if end else text


def _clean(text: str) -> str:
    """Without marks of emphasis, a closing full stop, or what only introduces it."""
    text = _EMPHASIS.sub(r"\2", text.strip().strip("`")).strip()
    text = re.sub(r"(?:\*\*|__)?(?<!\\)[.,;:]*(?:\*\*|__)?$", "", text).strip()
    return _LEADING.sub("", text).strip()


def _last_line(text: str) -> Found:
    """The last line, when it is an answer and nothing else, or has a single number in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return Found(fault="an empty response")
    line = _clean(lines[-1])
    if not line or len(line) > LONGEST:
        return Found(fault="no answer in the last line")
    if not re.search(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}\s+[A-Za-z]{2,}", line):
        return Found((_right_side(line),), False)
    numbers = [re.sub(r"[\s$]", "", found) for found in _NUMBER.findall(line)]
    plain = {number.replace(",", "") for number in numbers}
    if len(plain) == 1 and not re.search(r"\b(?:or|either|maybe|perhaps|not|between)\b", line, re.IGNORECASE):
        return Found((numbers[-1],), False)
    many = "no answer" if not plain else f"{len(plain)} numbers"
    return Found(fault=f"{many} in the last line, and none of them marked as the answer")


def _right_side(line: str) -> str:
    """`3 * 4 = 12` as it is: its equation is checked too; `Total: 12` without its title."""
    found = re.fullmatch(r"[A-Za-z][A-Za-z ]{2,40}:\s*(.+)", line)
    return found[1] if found else line
