"""Splitting a stream: the same whatever the chunks' borders, nothing lost, nothing early."""

from __future__ import annotations

import random

import pytest

from zifio.data.calls import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from zifio.serve.split import CallPiece, Phase, Piece, Splitter

FRAGMENTS = [
    "<think>", "</think>", "<thin", "<", ">", "\n", "\n\n", " ", "a", "é🐋", "</", "think>", "stop", "st", "op", "STOP",
    "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"x": 1}}', "{", CALLS_BEGIN, CALLS_END, CALL_BEGIN,
    CALL_END, CALL_SEP, f"{CALL_BEGIN}f{CALL_SEP}{{}}{CALL_END}", "<｜tool", "<tool_call>{}</tool_call>", "<answer>",
]  # fmt: skip
HERMES = '<tool_call>\n{"name": "f", "arguments": {"x": "</think>"}}\n</tool_call>'
DEEPSEEK = f'{CALLS_BEGIN}{CALL_BEGIN}f{CALL_SEP}{{"x": 1}}{CALL_END}{CALL_BEGIN}g{CALL_SEP}{{}}{CALL_END}{CALLS_END}'


def said(splitter: Splitter, chunks: list[str]) -> tuple[str, str, list[CallPiece]]:
    """(thinking, content, calls)."""
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.end()
    texts = {
        kind: "".join(piece.text for piece in pieces if isinstance(piece, Piece) and piece.kind == kind)
        for kind in ("reasoning", "content")
    }
    return texts["reasoning"], texts["content"], [piece for piece in pieces if isinstance(piece, CallPiece)]


def cut(text: str, draw: random.Random) -> list[str]:
    """The text in pieces of random lengths."""
    places = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(1, 12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("phase", ["start", "thinking", "content"])
@pytest.mark.parametrize("stops", [(), ("stop",), ("op", "</", "a\n")])
@pytest.mark.parametrize("has_tools", [False, True])
def test_borders_do_not_matter(phase: Phase, stops: tuple[str, ...], has_tools: bool):
    draw = random.Random(repr((phase, stops, has_tools)))
    for _ in range(80):
        text = "".join(draw.choices(FRAGMENTS, k=draw.randrange(12)))

        def splitter() -> Splitter:
            return Splitter(phase=phase, stops=stops, has_tools=has_tools)

        whole = said(splitter(), [text])
        assert said(splitter(), list(text)) == whole, text
        for _ in range(3):
            chunks = cut(text, draw)
            assert said(splitter(), chunks) == whole, chunks


def test_nothing_is_lost_but_marks_and_blanks():
    draw = random.Random(3)
    for _ in range(300):
        text = "".join(draw.choices(FRAGMENTS, k=draw.randrange(12)))
        thinking, content, calls = said(Splitter(), cut(text, draw))
        assert not calls
        expected = text.lstrip().removeprefix("<think>") if text.lstrip().startswith("<think>") else text
        if expected != text:
            expected = expected.replace("</think>", "", 1)
        assert (thinking + content).replace("\n", "") == expected.replace("\n", "").lstrip("\n") or (
            thinking + content
        ).split() == expected.split()


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("<think>6+1=7</think><answer>7</answer>", ("6+1=7", "<answer>7</answer>", [])),
        ("<think>\n6+1\n\n=7\n</think>\n\n It is\n", ("6+1\n\n=7", " It is\n", [])),
        (" \n<think></think>7", ("", "7", [])),
        ("It <think>is</think> 7", ("", "It <think>is</think> 7", [])),
        ("<think>cut </thi", ("cut </thi", "", [])),
        ("  ", ("", "  ", [])),
        (f"<think>a</think>\nwell\n{HERMES}\n", ("a", "well", [CallPiece("f", '{"x": "</think>"}')])),
        (f"{DEEPSEEK} then ", ("", "then ", [CallPiece("f", '{"x": 1}'), CallPiece("g", "{}")])),
        (
            f"<think>{HERMES}</think>",
            (HERMES.partition("</think>")[0], HERMES.partition("</think>")[2] + "</think>", []),
        ),
        ("<tool_call>{broken}</tool_call>!", ("", "<tool_call>{broken}</tool_call>!", [])),
        ('a <tool_call>{"name": "f"', ("", 'a<tool_call>{"name": "f"', [])),
    ],
)
def test_what_goes_where(text: str, wanted: tuple[str, str, list[CallPiece]]):
    assert said(Splitter(has_tools=True), list(text)) == wanted


def test_without_tools_calls_are_text():
    assert said(Splitter(), [HERMES]) == ("", HERMES, [])


def test_stop_strings_hold_behind_the_thinking():
    splitter = Splitter(stops=("7", "is"))
    assert said(splitter, ["<think>7 is</think>It i", "s 7"]) == ("7 is", "It ", [])
    assert splitter.stop == "is"


def test_text_comes_as_soon_as_it_is_certain():
    splitter = Splitter(phase="thinking", stops=("END",), has_tools=True)
    told = [splitter.feed(chunk) for chunk in ("one ", "two\n", "x</th", "ink>a", " b", "EN", "c", "<to", "y")]
    reasoning, content = (lambda t: [Piece("reasoning", t)]), (lambda t: [Piece("content", t)])
    assert told == [
        reasoning("one "), reasoning("two"), reasoning("\nx"), content("a"), content(" b"), [], content("ENc"), [],
        content("<toy"),
    ]  # fmt: skip
