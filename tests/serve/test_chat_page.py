"""The chat page in a real Chromium, on a real server: what streams, stops, branches, calls and is held to a schema, and
that nothing is lost, nothing foreign runs, and everybody can read it."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from browser import violations
from playwright.sync_api import Browser, BrowserContext, Locator
from served import DIVE, WHALE, Here, endless, serving

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def here() -> Generator[Here, None, None]:
    """Two models that never end a reply by themselves."""
    with serving(made=endless(), beside={"other": endless(2)}) as server:
        yield server


class Talker:
    """Somebody before the page."""

    def __init__(self, context: BrowserContext, url: str, **settings: str | bool) -> None:
        context.set_default_timeout(WAIT_MS)
        self.page = context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda one: None if one.url.startswith(url) else self.outside.append(one.url))
        self.page.on("request", lambda one: self.asked.append(one.post_data_json) if one.method == "POST" else None)
        self.page.goto(url)
        self.page.wait_for_selector("#ask:visible, #login:visible")
        self.set(**settings)

    def set(self, **settings: str | bool) -> None:
        """Change settings as the form has them."""
        if settings:
            self.page.locator("#open-settings").press("Enter")
            for summary in self.page.locator("#form details:not([open]) summary").all()[::-1]:
                summary.press("Enter")
        for name, value in settings.items():
            field = self.page.locator(f"#form [name={name}]")
            if isinstance(value, bool):
                field.set_checked(value)
            elif field.evaluate("one => one.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        if settings:
            self.page.locator("#close-settings").press("Enter")

    def say(self, text: str) -> None:
        """Type it and send it."""
        self.page.locator("#text").fill(text)
        self.page.locator("#text").press("Enter")

    def begins(self) -> None:
        """Wait for the beginning of a reply."""
        self.page.wait_for_function("() => document.querySelector('.reply > .md')?.textContent.length > 20")

    def settle(self) -> None:
        """Until no reply is coming any more."""
        self.page.wait_for_selector("#send:visible")

    def ask(self, text: str) -> None:
        """Say it and wait for the reply."""
        self.say(text)
        self.settle()

    def replies(self) -> list[str]:
        """What the assistant has said, as it is shown."""
        return [one.inner_text() for one in self.page.locator(".reply > .md").all()]

    def button(self, name: str, place: int = -1) -> Locator:
        """The last button of that name."""
        found = self.page.get_by_role("button", name=name, exact=True)
        return found.nth(found.count() + place)

    def take(self, path: Path, value: Any) -> None:
        """Import a file."""
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        self.page.locator("#open-talks").press("Enter")
        self.page.set_input_files("#import", path)

    def export(self, name: str) -> str:
        """What a button of the dialog lets one download."""
        self.page.locator("#open-talks").press("Enter")
        with self.page.expect_download() as found:
            self.page.locator(name).press("Enter")
        self.page.keyboard.press("Escape")
        return found.value.path().read_text()


class Wire:
    """A way to a server that can be cut."""

    def __init__(self, url: str) -> None:
        self._there = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listening]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Nothing comes through any more."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ends = (self._listening.accept()[0], socket.create_connection(self._there))
                self._open += ends
                for one, other in (ends, ends[::-1]):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_reply_streams_and_stops(here: Here, context: BrowserContext):
    """It grows before it ends; Escape frees the engine; what came stays, over a reload too."""
    who = Talker(context, here.url, thinking="disabled")
    who.page.locator("#text").fill("How")
    who.page.locator("#text").press("Shift+Enter")
    who.page.keyboard.type("deep?")
    who.page.keyboard.press("Enter")
    who.begins()
    assert here.engine.has_work and who.page.locator("#stop").is_visible()
    who.say("too early")
    assert who.page.locator("#text").input_value() == "too early" and len(who.asked) == 1
    who.page.keyboard.press("Escape")
    who.settle()
    assert here.is_idle(2.0)
    (said,) = who.replies()
    assert len(said) > 20 and "stopped" in who.page.locator(".facts").inner_text()
    assert who.page.locator("#say").inner_text() == "Stopped."
    assert who.asked[0]["messages"] == [{"role": "user", "content": "How\ndeep?"}]
    who.page.reload()
    who.page.wait_for_selector(".turn")
    assert who.replies() == [said] and who.page.locator(".mine .words").inner_text() == "How\ndeep?"
    assert not who.errors and not who.outside


def test_a_closed_page_keeps_what_came(here: Here, context: BrowserContext):
    who = Talker(context, here.url, thinking="disabled")
    who.say("How deep?")
    who.begins()
    who.page.reload()
    who.page.wait_for_selector(".turn")
    assert len(who.replies()[0]) > 20 and here.is_idle(2.0)


def test_editing_and_regenerating_branch(here: Here, context: BrowserContext):
    """Nothing is overwritten: every version of a turn is there, with what followed it."""
    who = Talker(context, here.url, max_tokens="12", system="Be brief.", thinking="disabled")
    who.ask("One")
    who.ask("Two")
    first, second = who.replies()
    who.button("Regenerate", -2).press("Enter")
    who.settle()
    assert len(who.replies()) == 1 and who.replies()[0] != first
    assert who.asked[-1]["messages"] == who.asked[0]["messages"]
    assert who.page.locator(".count").inner_text() == "2 of 2"
    who.button("Previous version").press("Enter")
    assert who.replies() == [first, second]
    who.button("Edit your message").press("Enter")
    who.page.keyboard.press("Escape")
    who.button("Edit your message").press("Enter")
    who.page.locator(".edit textarea").fill("Three")
    who.page.keyboard.press("Enter")
    who.settle()
    assert who.replies()[0] == first and len(who.replies()) == 2
    told = [(one["role"], one["content"]) for one in who.asked[-1]["messages"]]
    assert told[:2] == [("system", "Be brief."), ("user", "One")] and told[-1] == ("user", "Three")
    assert [one["role"] for one in who.asked[-1]["messages"]] == ["system", "user", "assistant", "user"]
    who.page.reload()
    who.page.wait_for_selector(".turn")
    who.button("Previous version").press("Enter")
    assert who.replies() == [first, second] and not who.errors


def test_thinking_is_folded_apart(here: Here, context: BrowserContext):
    who = Talker(context, here.url, thinking="enabled", budget="6", max_tokens="20", seed="3")
    who.ask("How deep?")
    details = who.page.locator("details.thinking")
    usage = here.post(
        "/v1/chat/completions", **{**who.asked[0], "stream": False, "stream_options": None}
    ).json()["usage"]  # fmt: skip
    n = usage["completion_tokens_details"]["reasoning_tokens"]
    said = details.locator("summary").inner_text()
    assert said.startswith("Thought for ") and said.endswith(f" s, {n} tokens")
    assert details.get_attribute("open") is None and not details.locator(".md").is_visible()
    details.locator("summary").press("Enter")
    assert details.locator(".md").is_visible()
    assert who.page.locator(".facts").inner_text().startswith("20 tokens · ")
    assert "cut at its most tokens" in who.page.locator(".facts").inner_text()
    assert who.replies()[0] and not who.errors


def test_two_models_side_by_side(here: Here, context: BrowserContext):
    """Both see the same question, and later their own replies alone; one is asked again without the other."""
    who = Talker(context, here.url, max_tokens="12", seed="5", thinking="disabled")
    who.page.locator("#second").select_option("other")
    who.ask("How deep?")
    left, right = who.replies()
    assert left != right and {one["model"] for one in who.asked} == {"tiny", "other"}
    boxes = [one.bounding_box() for one in who.page.locator(".column").all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    who.ask("And how long?")
    by_model = {one["model"]: one["messages"] for one in who.asked[2:]}
    assert by_model["tiny"][1]["content"] != by_model["other"][1]["content"]
    assert by_model["tiny"][0] == by_model["other"][0]
    before = who.replies()
    who.set(seed="6")
    who.button("Regenerate").press("Enter")
    who.settle()
    after = who.replies()
    assert len(who.asked) == 5 and who.asked[-1]["model"] == "other"
    assert after[:3] == before[:3] and after[3] != before[3] and not who.errors


def test_a_tool_is_called_and_answered(here: Here, context: BrowserContext):
    who = Talker(context, here.url, tools=json.dumps(DIVE), thinking="disabled", max_tokens="200", seed="1")
    who.set(tool_choice="required")
    who.say("Dive!")
    who.page.wait_for_selector(".answer")
    calls = who.page.locator(".call").all()
    assert calls and all("dive" in call.inner_text() for call in calls)
    given = [json.loads(call.locator("code").inner_text()) for call in calls]
    assert all(set(one) == {"fast"} for one in given)
    who.set(tool_choice="none", max_tokens="8")
    for area in who.page.locator(".answer textarea").all():
        area.fill('{"depth": 90}')
    who.page.locator(".answer button").press("Enter")
    who.settle()
    _, called, *results = who.asked[-1]["messages"]
    assert [json.loads(call["function"]["arguments"]) for call in called["tool_calls"]] == given
    ids = [call["id"] for call in called["tool_calls"]]
    assert results == [{"role": "tool", "tool_call_id": id, "content": '{"depth": 90}'} for id in ids]
    assert who.page.locator(".result").count() == len(ids) and who.replies()[-1]
    assert who.page.locator(".answer").count() == 0 and not who.errors


def test_a_schema_holds_the_reply(here: Here, context: BrowserContext):
    who = Talker(context, here.url, schema="{ not json", max_tokens="100", seed="1")
    assert "Schema: " in who.page.locator("#schema-wrong").text_content()
    who.say("How deep?")
    assert "Schema: " in who.page.locator("#say").inner_text() and not who.asked
    assert who.page.locator("#text").input_value() == "How deep?"
    who.set(schema=json.dumps(WHALE))
    assert not who.page.locator("#schema-wrong").text_content()
    who.page.locator("#send").press("Enter")
    who.settle()
    shown = who.page.locator(".reply code").inner_text()
    assert set(json.loads(shown)) == {"deep", "kind"} and shown.startswith('{\n  "deep": ')
    who.set(use_schema=False, max_tokens="8")
    who.ask("Freely")
    assert "response_format" not in who.asked[-1] and not who.errors


def test_tokens_are_coloured_by_their_probability(here: Here, context: BrowserContext):
    """As many as there are, under their own log-probs; what else was likely by mouse and by keyboard."""
    who = Talker(context, here.url, logprobs=True, thinking="enabled", budget="5", max_tokens="20", seed="2")
    who.ask("How deep?")
    reply = here.post("/v1/chat/completions", **{**who.asked[0], "stream": False, "stream_options": None}).json()
    told = reply["choices"][0]["logprobs"]
    every = told["reasoning_content"] + told["content"]
    shown = who.page.locator(".tokens .token")
    assert shown.count() == len(every) == 20
    strip, tip = who.page.locator(".tokens").last, who.page.locator(".tip").last
    strip.press("ArrowRight")
    strip.press("Home")
    first = told["content"][0]
    share = 100 * math.exp(first["logprob"])
    assert tip.locator("p").inner_text().endswith(f" {share:#.3g} %" if share >= 1 else f" {share:.1g} %")
    others = [top for top in first["top_logprobs"] if top["bytes"] != first["bytes"]]
    assert tip.locator("li").count() == len(others) >= 4
    strip.press("End")
    assert strip.locator(".current").get_attribute("data-n") == str(len(told["content"]) - 1)
    who.page.locator("details.thinking summary").press("Enter")
    assert tip.is_hidden()
    shown.first.hover()
    assert who.page.locator(".tip").first.is_visible()
    who.button("Probabilities").press("Enter")
    assert shown.count() == 0 and who.replies()[0] and not who.errors


def test_a_conversation_goes_out_and_comes_back(here: Here, context: BrowserContext, tmp_path: Path):
    """What is exported is a request that the server answers; imported, it is the same conversation."""
    settings = {"max_tokens": "8", "seed": "5", "system": "Be brief.", "tools": json.dumps([DIVE])}
    who = Talker(context, here.url, thinking="disabled", **settings)
    who.page.locator("#second").select_option("other")
    who.ask("How deep?")
    who.ask("And `how` long?")
    said = who.replies()
    body = json.loads(who.export("#export-json"))
    assert [one["role"] for one in body["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert body["max_tokens"] == 8 and body["tools"][0]["function"] == DIVE and body["thinking"]["type"] == "disabled"
    assert here.post("/v1/chat/completions", **body).status_code == 200
    markdown = who.export("#export-markdown")
    assert markdown.startswith("# How deep?\n\n## System\n\nBe brief.\n\n## User\n\nHow deep?\n\n## tiny\n\n")
    who.page.locator("#new").press("Enter")
    assert who.page.locator(".turn").count() == 0 and who.page.locator("[name=system]").input_value() == "Be brief."
    who.take(tmp_path / "it.json", body)
    who.page.wait_for_selector(".turn")
    assert who.replies() == said and who.page.locator("#second").input_value() == "other"
    assert json.loads(who.export("#export-json")) == body
    who.take(tmp_path / "wrong.json", {"messages": [{"role": "captain", "content": "x"}]})
    who.page.wait_for_selector("#import-wrong:has-text('messages.0.role')")
    who.page.set_input_files("#import", tmp_path / "it.json")
    who.page.wait_for_selector("#talks", state="hidden")
    who.page.locator("#open-talks").press("Enter")
    assert who.page.locator("#list li").count() == 3
    for _ in range(2):
        who.page.locator("#list li[aria-current] button").last.press("Enter")
    assert who.page.locator("#list li").count() == 2
    who.page.locator("#list button.title").first.press("Enter")
    assert who.replies() == said and not who.errors


def test_errors_are_the_servers_words_and_nothing_is_lost(here: Here, context: BrowserContext):
    who = Talker(context, here.url, max_tokens="99999", thinking="disabled")
    who.ask("How deep?")
    error = who.page.locator(".error:visible").inner_text()
    assert "max_tokens=99999 does not fit" in error and error in who.page.locator("#say").inner_text()
    assert who.page.locator(".mine .words").inner_text() == "How deep?"
    who.set(max_tokens="8")
    who.button("Regenerate").press("Enter")
    who.settle()
    assert who.replies()[0] and not who.page.locator(".error:visible").count() and not who.errors


def test_a_lost_connection_keeps_what_came(here: Here, context: BrowserContext):
    with Wire(here.url) as wire:
        who = Talker(context, wire.url, thinking="disabled")
        who.say("How deep?")
        who.begins()
        wire.cut()
        who.settle()
        assert who.page.locator(".error:visible").inner_text() == "The connection was lost. What came is kept."
        assert len(who.replies()[0]) > 20 and here.is_idle(2.0)
        who.ask("Anybody?")
        assert who.page.locator(".error:visible").last.inner_text() == "The server is not reached."
        assert who.page.locator(".turn").count() == 2 and not who.errors


def test_keys_are_asked_for_and_stay_in_the_tab(context: BrowserContext):
    with serving({"max_tokens": 8}, {"key-of-ann": "ann"}) as here:
        who = Talker(context, here.url)
        who.page.wait_for_selector("#login:visible")
        for key in ("key-of-eve", "key-of-ann"):
            who.page.locator("#key").fill(key)
            with who.page.expect_response("**/v1/models") as found:
                who.page.locator("#key").press("Enter")
            assert found.value.status == (401 if key == "key-of-eve" else 200)
        who.page.wait_for_selector("#ask:visible")
        who.ask("How deep?")
        assert who.page.locator("#login").is_hidden() and not who.page.locator(".error:visible").count()
        kept = who.page.evaluate("[JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage})]")
        assert "key-of-ann" not in kept[0] and "key-of-ann" in kept[1]
        who.page.locator("#open-settings").press("Enter")
        who.page.locator("#forget").press("Enter")
        who.page.wait_for_selector("#login:visible")
        assert "key-of" not in who.page.evaluate("JSON.stringify({...sessionStorage})") and not who.errors


def test_every_answer_keeps_foreign_code_out(here: Here):
    for path in ("/", "/page/chat.js", "/shared/page.css", "/v1/models", "/nothing"):
        headers = here.http.get(path).headers
        policy_of = headers["content-security-policy"]
        assert "default-src 'none'" in policy_of and "unsafe" not in policy_of, path
        assert headers["x-content-type-options"] == "nosniff"
    assert here.http.get("/").headers["content-type"].startswith("text/html")
    refused = here.http.get("/", headers={"host": "evil.example"})
    assert refused.status_code == 403 and "content-security-policy" in refused.headers
    assert "/page" not in here.http.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_everybody_can_read_it(here: Here, browser: Browser, tmp_path: Path, scheme: Any, width: int):
    """Nothing that axe-core calls serious, in any view, light or dark; a phone shows it all without sideways scroll."""
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 740}) as context:
        who = Talker(context, here.url)
        written = (Path(__file__).parent / "chat.md").read_text()
        call = {"id": "1", "type": "function", "function": {"name": "dive", "arguments": '{"fast": true}'}}
        messages = [
            {"role": "user", "content": "word " * 30 + "w" * 300},
            {"role": "assistant", "content": written, "reasoning_content": "So *deep*."},
            {"role": "user", "content": "Dive!"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        ]  # fmt: skip

        def check() -> None:
            assert violations(who.page) == []
            assert who.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        check()
        who.take(tmp_path / "it.json", {"messages": messages})
        who.page.wait_for_selector(".answer")
        who.page.locator("details.thinking summary").first.press("Enter")
        check()
        who.set(logprobs=True, max_tokens="12", tools=json.dumps(DIVE))
        who.page.locator("#second").select_option("other")
        who.ask("How deep?")
        who.page.locator(".tokens").last.press("ArrowRight")
        check()
        who.page.locator("#open-settings").press("Enter")
        check()
        who.page.locator("#close-settings").press("Enter")
        who.page.locator("#open-talks").press("Enter")
        check()
        assert not who.errors and not who.outside
