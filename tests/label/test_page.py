"""The page in a real Chromium: two people label by keyboard, a third settles, nothing is lost on the way, everybody
can read it, and what a model wrote stays text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import violations
from items import put, ratings, steps_item
from playwright.sync_api import Browser, BrowserContext, Page, Route
from serving import Server, serving, told

from zifio.label.desk import Desk
from zifio.label.item import Item
from zifio.label.store import Store

HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> $\\href{javascript:window.hacked=1}{x}$'
)
STATE = """before => document.getElementById('nothing') ? 'nothing'
    : /^The machine says/.test(document.querySelector('.panel h2')?.textContent) ? 'machine'
    : document.querySelector('#submit') && document.querySelector('.prompt .words').textContent !== before ? 'item' :
    ''"""
LONG = " + ".join(f"x_{{{n}}}^2" for n in range(40))
WAIT_MS = 60_000


def thirty() -> list[dict[str, Any]]:
    """20 solutions, 5 answers, 5 pairs; some with a machine's label, some with alternatives, all with something
    hostile."""
    items = []
    for n in range(20):
        more: dict[str, Any] = {"prelabel": ratings(1, -1, None)} if n % 10 == 1 else {}
        more |= {"alternatives": [[], ["$2+2=4$"], []]} if n == 5 else {}
        steps = [
            f"We know $x_{{{n}}}^2 = {n}$. {HOSTILE}",
            r"So \[\frac{1}{2} + \sqrt{" + str(n) + r"}\] costs $5 and $7.",
            "Done.",
        ]
        items.append(steps_item(n, prompt=f"Item {n}: {HOSTILE}", steps=steps, gold=str(n), answer=str(n), **more))
    for n in range(20, 25):
        items.append(Item(id=f"a{n}", kind="answer", prompt=f"Item {n}:", response=HOSTILE).model_dump(mode="json"))
    for n in range(25, 30):
        pair = Item(id=f"p{n}", kind="pair", prompt=f"Item {n}:", a=f"good {HOSTILE}", b="poor")
        items.append(pair.model_dump(mode="json"))
    return items


class Labeller:
    """Somebody at the keyboard."""

    def __init__(self, context: BrowserContext, url: str, token: str = "") -> None:
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(f"{url}/#token={token}" if token else url)

    def state(self, before: str = "") -> str:
        """item, machine or nothing: what is there after the item `before`."""
        return str(self.page.wait_for_function(STATE, arg=before).json_value())

    def prompt(self) -> str:
        return self.page.locator(".prompt .words").text_content() or ""

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def number(self) -> int:
        return int(self.prompt().split()[1].rstrip(":"))

    def work(self, keys_of: Callable[[int, Page], list[str]]) -> list[int]:
        """Label until nothing is left; the numbers of the items in the order they came."""
        seen, before = [], ""
        while (state := self.state(before)) != "nothing":
            if state == "machine":
                self.press("Enter")
                self.state(before)
                continue
            before = self.prompt()
            seen.append(self.number())
            self.press(*keys_of(seen[-1], self.page), "Enter")
        return seen


def careful(n: int, page: Page) -> list[str]:
    """What a careful labeller presses for item n."""
    if n < 20:
        return ["1", "3"] if n % 3 == 0 else ["1", "0", "1"] if n % 3 == 1 else ["a"]
    if n < 25:
        return ["1"] if n % 2 else ["3"]
    return ["1"] if (page.locator(".reply .words").first.text_content() or "").startswith("good") else ["2"]


def hasty(n: int, page: Page) -> list[str]:
    """As `careful`, but every seventh solution is all good, and one answer is unsure."""
    return ["a"] if n < 20 and n % 6 == 0 else ["2"] if n == 22 else careful(n, page)


def filled(path: Path, *items: dict[str, Any], **settings: Any) -> str:
    store = Store(path)
    put(Desk(store), *items, **settings)
    store.close()
    return str(path)


def labels_in(path: str) -> list[str]:
    """The items of all labels in the log, undone ones too."""
    store = Store(path)
    with store.read() as connection:
        found = [event.body["item"] for event in store.events(connection) if event.kind == "label"]
    store.close()
    return found


def test_two_label_thirty_items_by_keyboard_and_a_third_settles(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = filled(tmp_path / "desk.db", *thirty(), wanted=2)
    token = {name: told(capsys, path, "--add-annotator", name)["token"] for name in ("ann", "ben")}
    token["eve"] = told(capsys, path, "--add-annotator", "eve", "--adjudicator")["token"]
    with serving(path) as server:
        for name, keys in (("ann", careful), ("ben", hasty)):
            with browser.new_context() as context:
                context.set_default_timeout(WAIT_MS)
                who = Labeller(context, server.url, token[name])
                assert sorted(who.work(keys)) == list(range(30))
                who.page.wait_for_selector("#count:has-text('30 by you')")
                assert not who.errors and who.page.evaluate("window.hacked") is None
                assert "token" not in who.page.url
        with browser.new_context() as context:
            context.set_default_timeout(WAIT_MS)
            eve = Labeller(context, server.url, token["eve"])
            eve.state()
            eve.page.wait_for_selector("#mode:visible")
            eve.page.locator("#mode").press("Enter")
            eve.page.wait_for_selector("text=What others said")
            seen = eve.work(lambda n, page: ["Shift+A"])
            assert sorted(seen) == [0, 6, 12, 18, 22] and not eve.errors
    found = told(capsys, path, "--report")
    assert found["items"]["done"] == 30 and found["items"]["disputed"] == 0
    cohen = next(one for one in found["agreement"]["steps"] if "Cohen" in one["name"])
    assert cohen["value"] == pytest.approx((0.8 - 0.605) / (1 - 0.605))
    assert cohen["n_items"] == 20  # of 7 errors ben misses 4
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    assert told(capsys, path, "--export", "prm800k", "--out", str(out))["rows"] == 20
    other = str(tmp_path / "other.db")
    told(capsys, other, "wanted=2")
    assert told(capsys, other, "--import", str(out))["labels"] == 20
    told(capsys, other, "--export", "prm800k", "--every", "--out", str(again))
    assert again.read_text() == out.read_text()
    labels = {
        row["question"]["problem"].split()[1]: row["label"] for row in map(json.loads, out.read_text().splitlines())
    }
    assert [step["completions"][0]["rating"] for step in labels["3:"]["steps"]] == [1, -1]
    told(capsys, path, "--export", "preference", "--out", str(out))
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(pairs) == 5 and all(row["chosen"].startswith("good") for row in pairs)


SOURCES = """async text => {
  const { fill } = await import('/shared/maths.js');
  const shown = fill(document.createElement('div'), text);
  return [...shown.querySelectorAll('.formula annotation')].map(one => one.textContent);
}"""


def test_what_is_a_formula(context: BrowserContext, tmp_path: Path):
    formulas = {
        "20 pens, $20$ or $3,000$.": ["20", "3,000"],
        "It costs $5 and $7.": [],
        "$5-$7, $5,$7, $5 or $x$": ["x"],
        r"\$5, \$7 or $x$": ["x"],
        r"$ 5 $ and \(a\), $b$s, $$c$$, \[d\] $e\$1$": ["a", "b", "c", "d", r"e\$1"],
        "$a\nb$": [],
    }
    with serving(filled(tmp_path / "desk.db", steps_item(1))) as server:
        page = Labeller(context, server.url).page
        page.wait_for_selector("#submit")
        assert {text: page.evaluate(SOURCES, text) for text in formulas} == formulas


def test_a_lost_connection_and_a_killed_desk_lose_nothing(context: BrowserContext, tmp_path: Path):
    path = filled(tmp_path / "desk.db", *(steps_item(n, prompt=f"Item {n}") for n in range(12)))
    server = Server(path)
    who = Labeller(context, server.url)
    who.state()
    for turn in ("offline", "killed", "no answer"):
        who.page.wait_for_timeout(300)
        if turn == "offline":
            context.set_offline(True)
        elif turn == "killed":
            server.kill()
        else:
            who.page.route("**/api/label", swallowing())
        for _ in range(2):
            before = who.prompt()
            who.press("a", "Enter")
            who.state(before)
        if turn != "no answer":
            who.page.wait_for_selector("#net:has-text('Offline')")
        context.set_offline(False)
        if turn == "killed":
            server = Server(path, server.port)
        who.page.wait_for_function("() => !Object.keys(localStorage).some((name) => name.includes('/outbox/'))")
    assert who.page.evaluate("window.hacked") is None
    server.stop()
    found = labels_in(path)
    assert len(found) == len(set(found)) == 6


def swallowing() -> Callable[[Route], None]:
    """The desk gets each request, and its answer is lost on the way back: the first time."""
    seen: set[str] = set()

    def handle(route: Route) -> None:
        body = route.request.post_data or ""
        if body in seen:
            route.continue_()
        else:
            seen.add(body)
            route.fetch()
            route.abort()

    return handle


def test_undo_drafts_and_the_machines_word(context: BrowserContext, tmp_path: Path):
    prelabel = ratings(1, -1, None)
    items = [steps_item(n, prompt=f"Item {n}", prelabel=prelabel, gold="5", answer="6") for n in range(3)]
    path = filled(tmp_path / "desk.db", *items, queue="order")
    with serving(path) as server:
        who = Labeller(context, server.url)
        who.state()
        who.press("1", "0", "c")
        who.page.keyboard.type("because")
        who.press("Escape")
        who.page.reload()  # the draft is there again
        who.state()
        assert who.page.locator("#correction").input_value() == "because"
        assert who.page.locator(".marks input:checked").count() == 2
        who.press("Enter")
        assert "Step 3 has no mark" in (who.page.locator("#say").text_content() or "")
        who.press("v")
        who.page.wait_for_selector("#verdict:has-text('wrong')")
        assert "The right answer is 5" in (who.page.locator("#verdict").text_content() or "")
        assert "something else" not in (who.page.locator("main").text_content() or "")
        first = who.prompt()
        who.press("1", "Enter")
        who.page.wait_for_selector("text=The machine says something else")
        who.press("r")
        who.page.wait_for_selector("#submit")
        who.press("ArrowUp", "ArrowUp", "ArrowDown", "3", "Enter")
        who.state(first)
        who.press("b")  # bad problem
        who.page.wait_for_selector("text=The machine says something else")
        who.press("u")
        who.page.wait_for_selector("#say:has-text('Taken back')")
        assert who.prompt() == "Item 1"
        who.press("1", "3", "Enter")
        who.page.wait_for_selector("text=The machine says the same")
        assert not who.errors
    store = Store(path)
    with store.read() as connection:
        said = [event for event in store.events(connection) if event.kind in ("label", "undo")]
        shown = [event.body["what"] for event in store.events(connection) if event.kind == "shown"]
    store.close()
    assert [event.body.get("phase", "undo") for event in said] == ["blind", "revised", "blind", "undo", "blind"]
    assert [said[n].body["said"]["ratings"] for n in (0, 1, 4)] == [[1, 0, 1], [1, -1, None], [1, -1, None]]
    assert said[0].body["said"]["correction"] == "because" and said[2].body["said"]["finish"] == "bad_problem"
    assert "verdict" in shown and "prelabel" in shown


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_everybody_can_read_it(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: Any, width: int
):
    """No view has a violation that axe-core calls serious, light or dark, wide or on a phone; nothing is cut off."""
    alternatives = [[], ["$2+2=4$"], []]
    one = steps_item(
        1,
        prompt=f"Item 1 ${LONG}$ $${LONG}$$",
        alternatives=alternatives,
        prelabel=ratings(1, -1, None),
        answer="5",
        gold="5",
    )
    two = Item(id="a", kind="answer", prompt="Item 2", response="r" * 300).model_dump(mode="json")
    three = Item(id="p", kind="pair", prompt="Item 3", a="x", b="y").model_dump(mode="json")
    path = filled(tmp_path / "desk.db", one, two, three, queue="order", adjudicate=True)
    with (
        serving(path) as server,
        browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 700}) as context,
    ):
        context.set_default_timeout(WAIT_MS)
        who = Labeller(context, server.url)
        found: dict[str, list[str]] = {}

        def look(view: str) -> None:
            found[view] = violations(who.page)
            assert who.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is cut off"

        who.state()
        look("steps")
        who.press("1", "3")
        look("marked")
        who.press("v")
        who.page.wait_for_selector("#verdict:has-text('right')")
        look("verdict")
        who.press("?")
        look("help")
        who.press("Escape")
        before = who.prompt()
        who.press("Enter")
        who.page.wait_for_selector("text=The machine says")
        look("machine")
        for view, key in (("answer", "3"), ("pair", "4")):
            who.press("Enter")
            who.state(before)
            before = who.prompt()
            who.press(key)
            look(view)
        who.press("Enter")
        who.state(before)
        look("nothing")
        told(capsys, path, "--add-annotator", "ann")
        who.page.reload()
        who.page.wait_for_selector("#token")
        look("login")
        assert {view: several for view, several in found.items() if several} == {}
