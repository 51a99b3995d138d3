"""A reply's parts: in the order in which they were written, however its tokens come together."""

from __future__ import annotations

import random

from zifio.engine.request import Completion, Event
from zifio.serve.parts import Part, Parts
from zifio.serve.reply import Voice

CALL = '<tool_call>\n{"name": "dive", "arguments": {"deep": 9}}\n</tool_call>'
TEXT = f"<think>\nHow deep?\n</think>\n\nI dive. {CALL}\n{CALL}\nNow I rise. {CALL}"
WRITTEN = [
    ("thinking", "", "How deep?"), ("text", "", "I dive."), ("call", "dive", '{"deep": 9}'),
    ("call", "dive", '{"deep": 9}'), ("text", "", "Now I rise."), ("call", "dive", '{"deep": 9}'),
]  # fmt: skip


def parts_of(text: str, sizes: list[int], finish: str = "stop", parallel: bool = True) -> tuple[list[Part], str]:
    """The parts of a reply whose characters are its tokens, in runs of such sizes, and what a stream adds up to."""
    voice = Voice(0, lambda tokens: "".join(map(chr, tokens)), 0, has_tools=True, parallel=parallel)
    parts, said, at = Parts(), "", 0
    for size in [*sizes, len(text)]:
        tokens = [ord(character) for character in text[at : at + size]]
        at += size
        done = Completion(tokens, finish=finish) if at >= len(text) else None  # type: ignore[arg-type]
        steps = parts.feed(voice.feed(Event(0, tokens, [-1.0] * len(tokens), done)))
        said += "".join(step.text for step in steps if step.what == "more")
        if done is not None:
            break
    return parts.parts, said


def test_parts_do_not_depend_on_how_tokens_come():
    for seed in range(20):
        chance = random.Random(seed)
        sizes = [chance.choice((1, 1, 2, 5, 60)) for _ in range(len(TEXT))] if seed else []
        parts, said = parts_of(TEXT, sizes)
        assert [(part.kind, part.name, part.text) for part in parts] == WRITTEN, sizes
        assert [part.place for part in parts] == list(range(6)) and len({part.id for part in parts}) == 6
        assert said == "".join(text for _, _, text in WRITTEN) and not any(part.is_cut for part in parts)


def test_where_one_call_is_wanted_the_others_are_left_out():
    kinds = [part.kind for part in parts_of(TEXT, [], parallel=False)[0]]
    assert kinds == ["thinking", "text", "call", "text"]


def test_a_cut_reply_says_within_what_and_an_empty_one_has_a_text():
    parts, _ = parts_of(TEXT[:30], [], "length")
    assert [(part.kind, part.is_cut) for part in parts] == [("thinking", False), ("text", True)]
    for finish in ("stop", "length"):
        ((part,), said) = parts_of("", [], finish)
        assert (part.kind, part.text, part.is_cut, said) == ("text", "", finish == "length", "")
