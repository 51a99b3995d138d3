"""Markdown on the chat page: what is drawn, that it is the same however it streams, and that nothing in it runs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from served import serving

DRAWN = """async texts => {
  const { render } = await import('/page/markdown.js');
  return texts.map(text => render(document.createElement('div'), text).innerHTML);
}"""
GROWN = """async text => {
  const { render } = await import('/page/markdown.js');
  const grown = document.createElement('div'), differing = [];
  for (let end = 0; end <= text.length; end++) {
    render(grown, text.slice(0, end));
    const whole = render(document.createElement('div'), text.slice(0, end));
    if (grown.innerHTML !== whole.innerHTML) differing.push(end);
  }
  return differing;
}"""
SHOWN = """async text => {
  const { render } = await import('/page/markdown.js');
  document.getElementById('log').replaceChildren(render(document.createElement('div'), text));
  return [...document.querySelectorAll('#log *')].map(one => [
    one.tagName, one.getAttribute('href'), one.getAttribute('src'),
    one.getAttributeNames().filter(name => name.startsWith('on')).length]);
}"""
LINK = 'target="_blank" rel="noopener noreferrer"'


@pytest.fixture(scope="module")
def page(browser: Browser) -> Generator[Page, None, None]:
    with serving() as here, browser.new_context() as context:
        one = context.new_page()
        one.goto(here.url)
        one.wait_for_selector("#ask:visible")
        yield one


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("One\ntwo\n\nthree", "<p>One<br>two</p><p>three</p>"),
        ("# A\n### B #1", "<h3>A</h3><h5>B #1</h5>"),
        ("**a** *b* ***c*** ~~d~~", "<p><strong>a</strong> <em>b</em> <em><strong>c</strong></em> <del>d</del></p>"),
        ("__e__ _f_", "<p><strong>e</strong> <em>f</em></p>"),
        ("2 * 3 * 4, a_b_c, **open, \\*no\\*", "<p>2 * 3 * 4, a_b_c, **open, *no*</p>"),
        ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
        ("`a*b*` ``c`d`` `open", "<p><code>a*b*</code> <code>c`d</code> `open</p>"),
        ("- a\n- b\n  - c\n\n1) x", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>x</li></ol>"),
        ("3. a\n\n   b\n4. c", '<ol start="3"><li><p>a</p><p>b</p></li><li>c</li></ol>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
        ("[a](https://x.org/b_(c) 'd')", f'<p><a href="https://x.org/b_(c)" {LINK}>a</a></p>'),
        ("<https://x.org>", f'<p><a href="https://x.org" {LINK}>https://x.org</a></p>'),
        ("(https://x.org/e_f).", f'<p>(<a href="https://x.org/e_f" {LINK}>https://x.org/e_f</a>).</p>'),
        ("![a](https://x.org/y.png)", f'<p><a href="https://x.org/y.png" {LINK}>a (picture)</a></p>'),
        ("[a](/b) [c](b.html)", "<p>[a](/b) [c](b.html)</p>"),
        ("costs $5 and $7", "<p>costs $5 and $7</p>"),
    ],
)  # fmt: skip
def test_what_is_drawn(page: Page, text: str, html: str):
    assert page.evaluate(DRAWN, [text]) == [html]


def test_code_tables_and_formulas(page: Page):
    code, table, formula = page.evaluate(
        DRAWN, ["```c\n*a*\n\n  <b>\n```\nend", "|a|b|\n|-|:-:|\n|1\\|2|`x`|\n|3", "*so* $x_1*2*$ and \\[\ny\n\\] *z*"]
    )
    assert "<code>*a*\n\n  &lt;b&gt;</code>" in code and "<span>c</span>" in code and code.endswith("<p>end</p>")
    assert '<th scope="col">a</th><th class="centre" scope="col">b</th>' in table
    assert '<td>1|2</td><td class="centre"><code>x</code></td></tr><tr><td>3</td><td class="centre"></td>' in table
    assert formula.count('class="formula"') == 2 and "<em>so</em>" in formula and "<em>z</em>" in formula
    assert "x_1*2*</annotation>" in formula and "<em>2</em>" not in formula


def test_growing_it_is_what_it_is_whole(page: Page):
    assert page.evaluate(GROWN, (Path(__file__).parent / "chat.md").read_text()) == []


def test_nothing_in_it_runs(page: Page):
    """Scripts, handlers, frames and addresses that run something are text; nothing is loaded from elsewhere."""
    outside: list[str] = []
    ours = page.url
    page.on("request", lambda one: None if one.url.startswith(ours) else outside.append(one.url))
    hostile = [
        "<script>window.hacked=1</script>", '<img src=x onerror="window.hacked=1">', "<svg/onload=window.hacked=1>",
        "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>", "![x](https://evil.example/x.png)",
        "[a](javascript:window.hacked=1)", "[b](JaVaScRiPt:window.hacked=1)", "[c](\x01javascript:window.hacked=1)",
        "[d](data:text/html,<script>window.hacked=1</script>)", "<javascript:window.hacked=1>", "[e](vbscript:x)",
        "$\\href{javascript:window.hacked=1}{x}$ $\\includegraphics{https://evil.example/x.png}$",
        "$\\htmlClass{x}{y}$ $\\url{javascript:window.hacked=1}$", '[f](https://x.org"onclick="window.hacked=1)',
        "```<img src=x onerror=window.hacked=1>\n<script>window.hacked=1</script>\n```",
        "[&#106;avascript:g](&#106;avascript:g)",
    ]  # fmt: skip
    text = "\n\n".join([*hostile, *(f"> - **{one}**" for one in hostile), "|a|b|\n|-|-|\n|" + "|".join(hostile[:2])])
    found: list[list[Any]] = page.evaluate(SHOWN, text)
    assert not {"SCRIPT", "IMG", "IFRAME", "OBJECT", "EMBED", "FORM", "LINK", "STYLE"} & {one[0] for one in found}
    hrefs = [href for _, href, _, _ in found if href is not None]
    assert hrefs and all(href.startswith("https://") for href in hrefs), hrefs
    assert all(src is None and handlers == 0 for _, _, src, handlers in found)
    for place in page.locator("#log a").all():
        assert place.get_attribute("rel") == "noopener noreferrer"
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None and not outside
    assert "<script>window.hacked=1</script>" in page.locator("#log").inner_text()


@pytest.mark.parametrize(
    "part",
    ["*a ", "**a", "[", "[a](", "`" * 3 + "a ", "> ", "- ", "  - ", "$", "\\[", "$$ ", "|", "_*", "a_b_", "<", "# "],
)  # fmt: skip
def test_hostile_lengths_end(page: Page, part: str):
    """However often a mark comes, and in however deep a nest, the page draws it and lives."""
    (once, lines, deep) = page.evaluate(
        DRAWN, [part * 3000, (part + "\n") * 1500, "\n".join(" " * (2 * n) + part + "x" for n in range(200))]
    )
    assert once is not None and lines is not None and deep.count("<") < 20_000
