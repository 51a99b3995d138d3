"""The test-time curve: drawn where there is one, the same bytes from the same figures."""

from test_methods import rows

from zifio.evaluate.curve import draw_curve
from zifio.evaluate.methods import SCORERS, summarise
from zifio.evaluate.pages import exam_page


def results(*budgets: int | None, n: int = 4) -> dict:
    groups = ["++--", "aab+", "+++a", "----"]
    made = [row for b in budgets for row in rows([group[:n] for group in groups], b)]
    ks = [k for k in (1, 2, 4) if k <= n]
    return {"name": "m", "task": "t", **summarise(made, ks, SCORERS, 1)}


def test_drawn_where_there_is_a_curve():
    assert draw_curve(results(None, n=1)) is None
    for found in (results(None), results(16, 64, None, n=1), results(16, 64, None)):
        png = draw_curve(found)
        assert png is not None and png.startswith(b"\x89PNG") and png == draw_curve(found)


def test_unknown_scorers_and_missing_figures_are_drawn_too():
    found = results(16, 64, None)
    found["best_of_k_mine"] = found["best_of_k_short"]
    del found["arms"][0]["majority_at_k"]
    assert draw_curve(found)


def test_the_page_has_every_figure():
    page = exam_page(results(16, None), has_curve=True)
    for words in ("Thinking budget 16 tokens", "No thinking budget", "pass@4", "majority@4", "best of 4 by log-prob"):
        assert words in page
