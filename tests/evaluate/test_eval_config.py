"""What an eval stage accepts, and the messages for what it does not."""

import pytest

from zifio.config import ConfigError, build
from zifio.evaluate.config import EvalStage, report_key


def stage(**settings) -> EvalStage:
    return build(EvalStage, {"kind": "eval", "name": "final", "models": ["base"], **settings}, "r.toml")


def test_defaults_fit_together():
    assert stage().ks == [1, 4, 16]
    assert stage().named_models == {"base": "base"}


@pytest.mark.parametrize(
    ("model", "key"),
    [("r1-zero", "r1-zero"), ("checkpoints/tiny/", "tiny"), ("runs/a/r1/model", "r1"), ("./model", "model")],
)
def test_a_path_goes_by_its_folders_name(model, key):
    assert report_key(model) == key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 4}, r"ks=\[1, 4, 16\] asks for pass@16 of n=4 replies. Set n to 16 or more"),
        ({"ks": []}, "ks"),
        ({"ks": [0]}, "ks"),
        ({"models": []}, "models"),
        ({"models": ["r1", "runs/b/r1"]}, "'r1' twice"),
        ({"prm": ["prm", "runs/b/prm/model"]}, "'prm' twice"),
        ({"models": [".."]}, "a folder with a name, came '..'"),
        ({"problem": 4}, "Did you mean 'problems'"),
        ({"task": {"name": "chain_sums"}}, "Did you mean 'chain_sum'"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        stage(**settings)
