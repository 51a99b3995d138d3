"""Hours and money: as published, and by laws that hold whatever the numbers."""

from __future__ import annotations

import pytest

from zifio.config import ConfigError, build
from zifio.forecast.verb import plan
from zifio.models.presets import PRESETS, preset
from zifio.plan.hardware import devices, find_device
from zifio.plan.plan import plan_model
from zifio.plan.roads import compare, pairs
from zifio.plan.settings import Layout, PlanConfig, RlPlan, ServePlan
from zifio.plan.work import drawing, fine_tuning, pretraining, published, reinforcement, settle

V3, LITE = preset("deepseek-v3"), preset("deepseek-v2-lite")


def test_v3_as_published():
    """2.788 million H800 hours, $5.576 million; 3.7 days a trillion tokens on 2,048 of them."""
    found = plan_model(V3, PlanConfig(), "deepseek-v3")
    assert found["gpu_hours"] == pytest.approx(2.788e6, rel=0.01)
    assert found["usd"] == pytest.approx(5.576e6, rel=0.01)
    first = found["work"]["pretraining"][0]
    assert first["how"] == "computed" and first["gpu_hours"] == pytest.approx(2.664e6, rel=0.01)
    assert first["days"] / 14.8 == pytest.approx(3.7, abs=0.05)


def test_r1_as_published():
    found = plan_model(V3, PlanConfig(), "deepseek-r1")
    assert found["gpu_hours"] == pytest.approx(147e3, rel=0.01)
    assert found["usd"] == pytest.approx(294e3, rel=0.01)


def test_v2_as_published():
    (only,) = pretraining(settle(preset("deepseek-v2"), PlanConfig(), "deepseek-v2"))
    assert only.gpu_hours == pytest.approx(172.8e3 * 8.1, rel=0.02)


def test_one_step_of_v3():
    """15,360 sequences of 4,096 tokens took 19.9 seconds."""
    setting = settle(V3, PlanConfig(tokens=15360 * 4096), "deepseek-v3")
    (step,) = pretraining(setting)
    assert step.gpu_hours * 3600 / 2048 == pytest.approx(19.93, rel=0.01)


def test_hours_and_money_are_proportional():
    base = settle(LITE, PlanConfig(hardware="h100", mfu=0.4, tokens=1e12))
    (one,), (half) = pretraining(base), pretraining(settle(LITE, PlanConfig(hardware="h100", mfu=0.2, tokens=1e12)))
    assert half[0].gpu_hours == pytest.approx(2 * one.gpu_hours)
    (dear,) = pretraining(settle(LITE, PlanConfig(hardware="h100", mfu=0.4, tokens=1e12, usd_per_hour=6.0)))
    assert dear.usd == pytest.approx(2 * (one.usd or 0)) and dear.kwh == one.kwh
    (wide,) = pretraining(settle(LITE, PlanConfig(hardware="h100", mfu=0.4, tokens=1e12, devices=64)))
    assert wide.days == pytest.approx(one.days / 64) and wide.gpu_hours == one.gpu_hours


def test_an_unknown_price_is_unknown_and_not_zero():
    found = plan_model(LITE, PlanConfig(hardware="epyc-9654"), "mine")
    assert found["usd"] is None and found["work"]["serving"]["usd_per_million_tokens"] is None
    assert any("usd_per_hour" in line for line in found["assumptions"])


def test_recomputing_costs_a_third_more():
    plain, again = (settle(LITE, PlanConfig(hardware="h100", recompute=how)) for how in ("none", "block"))
    assert fine_tuning(again).gpu_hours == pytest.approx(fine_tuning(plain).gpu_hours * 4 / 3)


def test_longer_replies_cost_more_than_their_length():
    """Of drawing each token reads a longer cache."""
    short, long = (
        reinforcement(settle(LITE, PlanConfig(hardware="h100", rl=RlPlan(reply_tokens=n)))) for n in (2048, 8192)
    )
    assert long[0].gpu_hours > 4 * short[0].gpu_hours
    assert long[1].gpu_hours > 3.5 * short[1].gpu_hours


def test_drawing_is_bound_by_memory_until_enough_replies_share_the_weights():
    setting = settle(preset("qwen2.5-32b"), PlanConfig(hardware="h200"))
    one, many = drawing(setting, 16, 16, 1), drawing(setting, 16, 16, 4096)
    assert one.bound_by == "memory" and many.bound_by == "products"
    read = 2 * 32.76e9 / (4800e9 * 0.6) / one.layout.devices  # all weights, once a token
    assert one.step_s == pytest.approx(read, rel=0.1)
    assert many.tokens_per_s > 50 * one.tokens_per_s
    paces = [drawing(setting, 256, 256, rows).tokens_per_s for rows in (1, 4, 16, 64)]
    assert paces == sorted(paces)


def test_few_rows_read_few_experts():
    """One reply of V3 reads 37 B weights of 671 B, so it is not 18 times slower than a dense model of 37 B."""
    setting = settle(V3, PlanConfig(hardware="h200", weight_precision="fp8"))
    alone = drawing(setting, 16, 16, 1)
    assert alone.step_s * alone.layout.devices * 4800e9 * 0.6 < 60e9


def test_a_copy_spreads_over_the_fewest_devices_that_hold_it():
    setting = settle(V3, PlanConfig(hardware="h200", weight_precision="fp8"))
    assert drawing(setting, 1024, 1024).layout.devices == 8
    cramped = settle(V3, PlanConfig(hardware="rtx-4090", draw_layout=Layout(), serve=ServePlan(rows=1)))
    assert not drawing(cramped, 16, 16).fits


def test_every_preset_has_its_published_facts():
    assert set(published()) == set(PRESETS)
    for facts in published().values():
        assert facts.source and facts.hardware in devices()


def test_every_device_names_its_sources():
    for name, device in devices().items():
        assert device.source and device.read.year >= 2024, name
        assert (device.usd_per_hour is None) == (device.price_source is None) == (device.price_date is None), name
        assert device.flops("bf16") >= device.flops("fp32")
    assert devices()["a100"].flops("fp8") == devices()["a100"].flops("bf16"), "the next wider one that it has"


def test_mistakes_say_the_way_out():
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        find_device("h10")
    with pytest.raises(ConfigError, match="Did you mean 'deepseek-v3'"):
        plan("deepseek-v33")
    with pytest.raises(ConfigError, match="Did you mean 'mfu'"):
        plan("deepseek-v3", ["mfuu=0.5"])
    with pytest.raises(ConfigError, match=r"layout.expert.*divisor of 256 experts"):
        plan("deepseek-v3", ["layout.data=7", "layout.expert=7"])
    with pytest.raises(ConfigError, match="--probe"):
        build_mine()
    with pytest.raises(ConfigError, match="zifio plan deepseek-v3"):
        plan()


def build_mine() -> None:
    """Ask for this machine, which no test has measured."""
    find_device("this")


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_roads_are_cheaper_by_what_is_published():
    found = {pair.title: compare(pair) for pair in pairs()}
    assert found["A general model"].ratios["hours"] == pytest.approx(30.84 / 2.788)
    assert found["A general model"].ratios["flops"] == pytest.approx(3.8e25 / 3.7e24, rel=0.01)
    assert found["Reasoning of 8 B parameters"].ratios["hours"] == pytest.approx(17_920 / 1_800)
    taught = found["Reasoning of 32 B parameters"].ratios
    assert taught["hours"] > taught["hours with the teacher's writing"] > taught["hours with the teacher's making"]
    assert taught["hours with the teacher's making"] < 1, "a teacher of one's own is not free"


def test_the_figure_is_a_picture(tmp_path):
    plan("deepseek-v3", figure=tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_layout_decides_the_devices():
    setting = settle(LITE, build(PlanConfig, {"layout": {"data": 4, "tensor": 2}}, "test"))
    assert setting.devices == 8
