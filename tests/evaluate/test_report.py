"""A report of a made-up run: what scripts read, what people see, and that foreign text stays text."""

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console
from synthetic import STAGES, make_run

from zifio.evaluate import figures
from zifio.evaluate.examples import examples
from zifio.evaluate.report import markdown_code, shorten, terminal_table, write_report
from zifio.evaluate.wording import bytes_text, count_text, flops_text, percent, seconds_text
from zifio.record.stage import read_run

EVIL = (
    '</div><script>alert(1)</script><img src="http://evil.example/x.png"> {{ 7*7 }} | `x` **b** [a](http://b) $y$\n# h'
)


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and whether they close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes nothing"


@pytest.fixture
def two_figures(monkeypatch):
    """Drawing all of them for every odd run would take long."""
    monkeypatch.setattr(figures, "_FIGURES", (figures._final, figures._cost))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"))
    return folder, write_report(folder, "quickstart", STAGES)


def test_report_json_has_what_scripts_read(run):
    folder, report = run
    assert json.loads((folder / "report.json").read_text()) == report
    assert list(report["models"]) == ["base", "r1-zero", "r1", "student"]
    for found in report["models"].values():
        assert {"pass_at_1", "pass_at_1_interval", "pass_at_k", "mean_response_tokens", "path"} <= set(found)
    assert list(report["stages"]) == [name for name, _ in STAGES]
    for name, stage in report["stages"].items():
        wanted = {"kind", "seconds", "peak_rss_bytes"} | ({"flops", "tokens"} if name != "tokenizer" else set())
        assert wanted <= set(stage)
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"].values()))
    assert report["flops"] == pytest.approx(sum(stage.get("flops", 0) for stage in report["stages"].values()))
    assert report["peak_rss_bytes"] == 910_000_000
    assert report["stages"]["student"]["from"] == "r1, r1-traces"
    assert "98.5%" in report["headline"] and "base answered 16.0%" in report["headline"]


def test_page_stands_alone(run):
    folder, _ = run
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == [], "every tag is closed"
    assert not re.search(r"https?:", text), "nothing is fetched"
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "figures share no id"
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    defined = set(re.findall(r"--([\w-]+):", text))
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= defined


def test_figures_of_a_whole_run(run):
    folder, _ = run
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        "final", "held_out", "reward", "response_length", "entropy", "sampler_trainer_gap", "loss", "expert_load",
        "expert_balance", "cost", "pass_at_k",
    }  # fmt: skip
    markdown = (folder / "report.md").read_text()
    assert set(re.findall(r"\(figures/(\w+)\.png\)", markdown)) == names
    assert (folder / "report.html").read_text().count("<svg") == len(names)


def test_efficiency_and_diversity_stand_side_by_side(tmp_path, two_figures, monkeypatch):
    """Both pages, for every model; a number that is not known is said to be unknown and nothing is made up."""
    monkeypatch.chdir(tmp_path)  # where no run of these names is
    folder = make_run(tmp_path)
    results = json.loads((folder / "final" / "results.json").read_text())
    results["student"] |= {"distinct_right": 0.47, "reply_entropy": 4.25, "token_entropy": 0.321}
    results["student"] |= {"coverage": 0.03, "coverage_possible": 0.064}
    (folder / "final" / "results.json").write_text(json.dumps(results))
    settings = json.loads((folder / "student" / "stage.json").read_text())
    settings["settings"] |= {"method": "gkd", "from": "package:somewhere"}
    (folder / "student" / "stage.json").write_text(json.dumps(settings))
    report = write_report(folder, "quickstart", STAGES)
    cost = report["ledger"]["r1"]
    stages = report["stages"]
    assert cost["student"] == stages["r1"]["flops"] + stages["r1-sft"]["flops"]
    assert cost["with_sampling"] == cost["student"] + stages["traces"]["flops"]
    assert cost["base"] == stages["base"]["flops"] and report["ledger"]["student"]["unknown"] == ["package:somewhere"]
    for page in ("report.html", "report.md"):
        text = (folder / page).read_text()
        row = next(line for line in text.splitlines() if "gkd" in line) if page == "report.md" else text
        for shown in ("47.0%", "4.25", "0.321", "3.0%", "6.4%", "unknown", flops_text(cost["with_sampling"])):
            assert shown in (row if shown != flops_text(cost["with_sampling"]) else text), (page, shown)


def test_the_same_run_gives_the_same_report(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_FIGURES", (figures._expert_map, figures._gap))
    for folder in ("one", "two"):
        write_report(make_run(tmp_path / folder), "quickstart", STAGES)
    for name in ("report.html", "report.md", "report.json", "figures/expert_load.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_models_write_is_shown_and_not_obeyed(tmp_path, two_figures):
    write_report(make_run(tmp_path, response=EVIL), "evil & <b>", STAGES)
    text, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    page = Page(text)
    assert page.open == []
    assert not any(tag in ("script", "img", "b>") for tag, _ in page.tags)
    assert "&lt;script&gt;alert(1)" in text and "{{ 7*7 }}" in text
    assert "evil &amp; &lt;b&gt;" in text
    assert text.count("the whole reply") == 32 and "no thinking" not in text, "what has no shape is not taken apart"
    assert "<script" not in markdown and "<img" not in markdown and "[a](" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| <code>") and "alert" in line]
    assert len(rows) == 32 and all(row.count("|") == 5 for row in rows), "no reply breaks its table"


def test_examples_teach_and_are_no_accident(run):
    folder, _ = run
    final = read_run(folder, STAGES)[-1]
    shown = examples(final)
    assert shown == examples(final)
    assert len(shown) == 8
    outcomes = [[answer.outcome for answer in example.answers] for example in shown]
    assert [answer.model for answer in shown[0].answers] == ["base", "r1-zero", "r1", "student"]
    assert sum(row[0] == "wrong" and row[2] == "right" for row in outcomes) >= 4
    assert any("wrong" in row[1:] for row in outcomes), "failures are shown too"
    assert any(set(row) == {"right"} for row in outcomes)
    answers = [answer for example in shown for answer in example.answers if answer.model == "r1"]
    assert all(answer.thinking and answer.answer.lstrip("-").isdigit() for answer in answers)


def test_a_run_that_has_only_begun(tmp_path, two_figures):
    run = make_run(tmp_path)
    report = write_report(run, "begun", STAGES[:1])
    assert report["models"] == {}
    assert {path.stem for path in (run / "figures").iterdir()} == {"cost"}
    assert Page((run / "report.html").read_text()).open == []
    assert "No model" in report["headline"]
    (run / "base" / "done.json").unlink()
    report = write_report(run, "begun", STAGES[:2])
    assert report["stages"]["base"]["done"] is False and "seconds" not in report["stages"]["base"]
    assert "not finished" in (run / "report.html").read_text()
    nothing = write_report(tmp_path / "empty", "empty", STAGES)
    assert nothing["stages"] == {} and nothing["seconds"] == 0
    assert printed(terminal_table(nothing))


def test_a_model_of_which_nothing_could_be_checked(tmp_path, two_figures):
    run = make_run(tmp_path)
    file = run / "final" / "results.json"
    results = json.loads(file.read_text())
    broken = {key: results["r1"][key] for key in ("path", "parameters", "model_digest", "flops", "n_tokens")}
    results["r1"] = broken | {"n_problems": 256, "n_samples": 4096, "n_errors": 4096}
    file.write_text(json.dumps(results))
    report = write_report(run, "broken", STAGES)
    assert "pass_at_1" not in report["models"]["r1"]
    assert "broke on 4096 replies" in (run / "report.html").read_text()
    assert "r1-zero" in report["headline"]
    assert "–" in printed(terminal_table(report))


def test_two_evaluations_keep_apart(tmp_path, two_figures):
    run = make_run(tmp_path)
    (run / "final").rename(run / "hard")
    make_run(tmp_path / "other")
    (tmp_path / "other" / "final").rename(run / "final")
    file = run / "hard" / "results.json"
    results = json.loads(file.read_text())
    results["r1"]["pass_at_1"] = 0.5
    file.write_text(json.dumps(results))
    report = write_report(run, "two", [*STAGES, ("hard", "eval")])
    assert report["models"]["r1"]["pass_at_1"] == 0.985, "the first evaluation is the recipe's own"
    assert report["evaluations"]["hard"]["r1"]["pass_at_1"] == 0.5
    page = Page((run / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert page.open == [] and len(ids) == len(set(ids))


def printed(table) -> str:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    console.file.close()
    return text


def test_terminal_table(run):
    _, report = run
    text = printed(terminal_table(report))
    for word in ("base", "student", "98.5%", "97.8% to 99.2%", "pass@16", "7:50 min", "TFLOP"):
        assert word in text
    report = {**report, "models": {"[red]x[/red]": report["models"]["r1"]}}
    assert "[red]x[/red]" in printed(terminal_table(report)), "names are no markup"


def test_numbers_in_words():
    assert [seconds_text(s) for s in (0.42, 9.97, 59.4, 59.7, 83, 3599.7, 3725)] == [
        "0.4 s", "10 s", "59 s", "1:00 min", "1:23 min", "1:00 h", "1:02 h",
    ]  # fmt: skip
    assert [flops_text(f) for f in (0, 12e9, 3.44e12, 999.9e9)] == ["0 FLOP", "12 GFLOP", "3.44 TFLOP", "1 TFLOP"]
    assert [percent(p) for p in (0, 1, 0.9999, 0.00001, 0.5, None)] == ["0%", "100%", "99.9%", "0.1%", "50.0%", "–"]
    assert [count_text(n) for n in (84, 173_600, 999_999, 1.2e9)] == ["84", "174 k", "1 M", "1.2 B"]
    assert [bytes_text(n) for n in (3e6, 910e6, 4.25e9)] == ["3.0 MB", "0.91 GB", "4.25 GB"]


def test_long_replies_are_cut_in_words():
    assert shorten("a" * 700) == "a" * 700
    assert shorten("a" * 760) == "a" * 700 + " … (60 more characters)"


def test_code_in_markdown_means_nothing():
    assert markdown_code("a|b\n<i>*") == "<code>a&#124;b<br>&lt;i&gt;&#42;</code>"
