"""The report's part on pictures: figures of looks as they are logged, pictures shown as pictures and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zifio.evaluate.figures import draw
from zifio.evaluate.report import write_report
from zifio.evaluate.sight import guidance_figure, is_picture, named, rows_of_sight, sight
from zifio.pictures import PICTURE, to_url
from zifio.record.stage import read_run

LOOK = {
    "held_out/captions/held_out/pass_at_1": 0.9, "held_out/captions/unseen/pass_at_1": 0.7,
    "held_out/drawings/held_out/guidance_1/pass_at_1": 0.5, "held_out/drawings/held_out/guidance_3/pass_at_1": 0.8,
    "held_out/drawings/held_out/guidance_3/pass_at_1_low": 0.7,
    "held_out/drawings/held_out/guidance_3/pass_at_1_high": 0.85,
    "held_out/drawings/unseen/guidance_3/pass_at_1": 0.6,
}  # fmt: skip
DRAWN = to_url(np.full((4, 4, 3), 90, np.uint8))
EVIL = 'data:image/png;base64,AAAA" onerror="alert(1)'


def write(folder: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A stage that is done."""
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"digest": "0" * 12, "settings": settings}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timing.jsonl").write_text("")
    (folder / "done.json").write_text(json.dumps({"kind": settings["kind"], "digest": "0" * 12, "seconds": 3.0}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run: a tokenizer of pictures, a model, drawings of it measured."""
    first = {"step": 0, "held_out/psnr": 9.0, "held_out/captions/held_out/pass_at_1": 0.0}
    write(tmp_path / "codes", {"kind": "vq"}, [first, {"step": 5, "held_out/psnr": 24.5, "held_out/codes_used": 0.93}])
    write(tmp_path / "all", {"kind": "janus"}, [first, {"step": 5, **LOOK}])
    write(tmp_path / "drawn", {"kind": "eval", "models": ["all"]}, [])
    found = {
        "n_problems": 2, "n_samples": 2, "n_errors": 0, "pass_at_1": 0.5, "pass_at_1_interval": [0.1, 0.9],
        "pass_at_k": {"1": 0.5}, "pass_at_k_interval": {"1": [0.1, 0.9]}, "path": "", "mean_response_tokens": 64.0,
        "parameters": {"total": 10, "active": 10}, "flops": 1.0,
    }  # fmt: skip
    (tmp_path / "drawn" / "results.json").write_text(json.dumps({"all": found}))
    row = {"place": 0, "prompt": "red circle", "gold": "red circle", "reason": "", "n_tokens": 64, "finish": "stop"}
    rows = [
        row | {"problem": "a", "response": DRAWN, "outcome": "right"},
        row | {"problem": "b", "response": EVIL, "outcome": "wrong", "prompt": PICTURE, "pictures": [DRAWN, EVIL]},
    ]
    (tmp_path / "drawn" / "records-all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


STAGES = [("codes", "vq"), ("all", "janus"), ("drawn", "eval")]


def test_figures_are_the_last_looks(run: Path) -> None:
    found = sight(read_run(run, STAGES))
    assert found["codes"] == {"codes": {"psnr": 24.5, "codes_used": 0.93}}
    seen = found["models"]["all"]
    assert seen["captions"] == {"held_out": {"pass_at_1": 0.9}, "unseen": {"pass_at_1": 0.7}}
    assert seen["drawings"]["held_out"]["3"] == {"pass_at_1": 0.8, "pass_at_1_low": 0.7, "pass_at_1_high": 0.85}
    rows = rows_of_sight(found)
    assert [what for _, what, _ in rows] == [
        "captions right",
        "drawings right, guidance 1",
        "drawings right, guidance 3",
    ]
    assert [[cell.get("pass_at_1") for cell in cells] for *_, cells in rows] == [[0.9, 0.7], [0.5, None], [0.8, 0.6]]
    assert sight(read_run(run, STAGES[2:])) == {} and guidance_figure(read_run(run, STAGES[2:])) is None


def test_a_judges_figures_and_the_mark_of_real_pictures(run: Path) -> None:
    """Drawings of labels have a spread; both panels and the words tell it beside the real pictures'."""
    told = {"held_out/accuracy": 0.91, "held_out/accuracy_low": 0.9, "held_out/accuracy_high": 0.92}
    write(run / "judge", {"kind": "classifier"}, [{"step": 9, **told}])
    at = "held_out/drawings/held_out/guidance_"
    real = {"real_spread": 4.0, "real_pass_at_1": 0.9}
    row = {f"{at}{scale}/{key}": value for scale in (1, 3) for key, value in {"pass_at_1": 0.8, **real}.items()}
    write(run / "named", {"kind": "janus"}, [{"step": 5, **row, f"{at}1/spread": 3.5, f"{at}3/spread": 2.25}])
    stages = [("judge", "classifier"), ("named", "janus")]
    found = sight(read_run(run, stages))
    assert found["judges"] == {"judge": {"pass_at_1": 0.91, "pass_at_1_low": 0.9, "pass_at_1_high": 0.92}}
    assert found["models"]["named"]["drawings"]["held_out"]["3"] == {"pass_at_1": 0.8, "spread": 2.25, **real}
    said = [what for _, what, _ in rows_of_sight(found)]
    assert said[0] == "labels of real pictures right"
    assert said[2] == "drawings right, guidance 3 (apart by 2.25; real pictures 4.00, right 90.0%)"
    figure, plain = guidance_figure(read_run(run, stages)), guidance_figure(read_run(run, STAGES))
    assert figure is not None and "Dotted" in figure.shows and plain is not None and "Dotted" not in plain.shows
    page = write_report(run, "named", stages)
    assert page["sight"] == found and "labels of real pictures right" in (run / "report.html").read_text()


def test_the_report_shows_pictures_and_no_others(run: Path) -> None:
    report = write_report(run, "nano", STAGES)
    assert report["sight"] == json.loads((run / "report.json").read_text())["sight"] and report["sight"]["models"]
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert page.count(f'<img class="seen" src="{DRAWN}"') == 2 and "onerror=&#34;" in page and 'onerror="' not in page
    assert "24.5 dB" in page and "24.5 dB" in text and "drawings right, guidance 3" in text
    assert "a picture" in text and DRAWN not in text
    assert (run / "figures" / "guidance.png").exists()


def test_an_encoders_words_by_step_and_what_it_named_last(run: Path) -> None:
    """The table and the figure have the looks; the page shows the last look's pictures, and escapes what was named."""
    looks = [
        {"step": step, "held_out/words_right": words, "held_out/captions_right": share}
        | {"held_out/captions_right_low": share / 2, "held_out/captions_right_high": 0.9}
        for step, words, share in ((0, 0.0, 0.0), (5, 0.75, 0.5))
    ]
    write(run / "eyes", {"kind": "vision"}, looks)
    row = {"gold": "red circle", "pictures": [DRAWN, EVIL]}
    told = [
        row | {"step": 0, "response": "of the first look", "outcome": "wrong"},
        row | {"step": 5, "response": "red circle", "outcome": "right"},
        row | {"step": 5, "response": "<script>blue</script>", "outcome": "wrong"},
    ]
    (run / "eyes" / "rollouts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    stages = read_run(run, [("eyes", "vision")])
    found = sight(stages)["eyes"]["eyes"]
    last = {"words_right": 0.75, "pass_at_1": 0.5, "pass_at_1_low": 0.25, "pass_at_1_high": 0.9}
    assert found["by_step"][1] == {"step": 5, **last} and {**last, "by_step": found["by_step"]} == found
    assert [one["pass_at_1"] for one in found["by_step"]] == [0.0, 0.5]
    assert named(stages) == {"eyes": told[1:]} and "reading" in [figure.name for figure in draw(stages)]
    report = write_report(run, "nano", [("eyes", "vision")])
    assert report["sight"] == json.loads((run / "report.json").read_text())["sight"] == sight(stages)
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for said in (page, text):
        assert "captions named word for word (of all their words 75.0%)" in said and "of the first look" not in said
        assert "script&gt;" in said and "<script>" not in said
    assert "50.0%" in page and "25.0% to 90.0%" in page
    assert page.count(f'<img class="seen" src="{DRAWN}" alt="red circle">') == 2 and EVIL not in page
    assert page.count("it shows red circle") == 1 and "unseen glyphs</th>" not in page
    assert (run / "figures" / "reading.png").exists() and DRAWN not in text


def test_a_run_that_logged_no_interval_and_no_pictures_has_its_figures(run: Path) -> None:
    write(run / "eyes", {"kind": "vision"}, [{"step": 5, "held_out/captions_right": 0.5}])
    report = write_report(run, "nano", [("eyes", "vision")])
    assert report["sight"]["eyes"]["eyes"] == {"pass_at_1": 0.5, "by_step": [{"step": 5, "pass_at_1": 0.5}]}
    assert "words named in held-out" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [(DRAWN, True), (EVIL, False), ("", False), (f"{DRAWN} ", False), ("data:image/svg+xml;base64,AAAA", False)],
)
def test_what_is_a_picture(text: str, shown: bool) -> None:
    assert is_picture(text) == shown
