"""Figures: none without data, one colour per stage, foreign names are plain text, curves that tell the truth."""

import re

import pytest
from synthetic import STAGES, make_run

from zifio.evaluate.drawing import THEME, smooth
from zifio.evaluate.figures import colour_of, draw
from zifio.record.stage import StageRecord, read_run


def stage(kind: str, *rows: dict, name: str = "a", results: dict | None = None) -> StageRecord:
    metrics = [{"step": step, **row} for step, row in enumerate(rows, 1)]
    return StageRecord(name, kind, metrics=metrics, results=results or {})


EXPERTS = {"expert_load/0/max_over_mean": 1.2, "expert_load/0/0": 0.4, "expert_load/0/1": 0.6}


def test_no_data_no_figure():
    assert draw([]) == []
    assert draw([stage("rl", {"loss": 1.0})]) == []


@pytest.mark.parametrize(
    ("row", "figures"),
    [
        ({"reward": 1.0}, {"reward"}),
        ({"entropy": 0.5}, {"entropy"}),
        ({"completions/mean_length_wrong": 9.0}, {"response_length"}),
        ({"sampling/sampling_logp_difference/max": 1e-6}, {"sampler_trainer_gap"}),
        ({"sampling/sampling_logp_difference/max": 0.0}, set()),
        ({"held_out/pass_at_1": 0.5}, {"held_out"}),
        ({"cross_entropy": 2.0}, {"loss"}),
        (EXPERTS, {"expert_load", "expert_balance"}),
        ({"guard/gold": 0.5, "guard/proxy": 0.9, "guard/alarms": 1.0}, {"guard"}),
    ],
)  # fmt: skip
def test_a_single_step_is_enough_to_draw(row, figures):
    assert {figure.name for figure in draw([stage("rl", row)])} == figures


def test_each_stage_that_makes_a_model_keeps_its_colour(tmp_path):
    stages = read_run(make_run(tmp_path), STAGES)
    colours = colour_of(stages)
    assert list(colours) == [name for name, kind in STAGES if kind not in ("tokenizer", "sample", "eval")]
    assert len(set(colours.values())) == len(colours), "this recipe has few enough stages"
    assert set(colours.values()) <= set(THEME)


def test_models_from_elsewhere_have_a_colour_and_their_names_are_text():
    found = {"pass_at_1": 0.5, "pass_at_1_interval": [0.4, 0.6], "pass_at_k": {"1": 0.5, "4": 0.7}}
    (figure,) = draw([stage("eval", results={"a_$b$<i>&": found, "_c": found})])
    assert figure.png.startswith(b"\x89PNG")
    assert "a_$b$&lt;i&gt;&amp;" in figure.svg
    assert "_c" in figure.svg


def test_gains_stand_over_the_labels_that_their_reward_model_learned_from():
    gain = {"mean": 0.1, "interval": [0.0, 0.2]}
    line = {"k": 8, "by": "min", "best_gain": gain, "weighted_gain": gain}
    others = [{**line, "by": "mean", "best_gain": {}}, {**line, "k": 4, "best_gain": {}}]
    found = {"pass_at_k": {}, "rerank": {name: {"table": [*others, line]} for name in ("few", "many", "stranger")}}
    prms = [StageRecord(name, "prm", solutions=count) for name, count in (("many", 300), ("few", 50))]
    measured = stage("eval", results={"base": found})
    (figure,) = draw([*prms, measured])
    assert figure.name == "labels" and "among 8 replies" in figure.shows
    assert draw([prms[0], measured]) == [], "one reward model is no curve"


def test_colours_of_a_page_are_variables_and_ids_its_own():
    for figure in draw([stage("rl", {"reward": 1.0}, {"reward": 2.0})]):
        assert figure.svg.startswith("<svg") and figure.svg.rstrip().endswith("</svg>")
        assert all(light not in figure.svg for light, _ in THEME.values())
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure.svg)) <= {"#ffffff"}
        assert all(found.startswith("reward-") for found in re.findall(r'id="([^"]*)"', figure.svg))
        assert figure.shows.endswith(".") and figure.look_for.endswith(".")


def test_smoothing_keeps_length_and_level():
    assert smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    assert smooth([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0], "short curves stay as they are"
    ramp = [float(value) for value in range(400)]
    assert smooth(ramp)[50:350] == pytest.approx(ramp[50:350])
