"""What stages refuse before anything runs."""

from __future__ import annotations

import pytest
from tiny import RL

from zifio.config import ConfigError, build
from zifio.train.config import RlStage


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_rl_samples_the_policy_that_it_trains(change: dict[str, float]):
    (name,) = change
    settings = {"kind": "rl", "name": "tiny", **RL}
    with pytest.raises(ConfigError, match=rf"sampling\.{name}={change[name]:g} .*set it to [01]$"):
        build(RlStage, settings | {"sampling": change}, "test")
    build(RlStage, settings | {"sampling": {"stop": ["</answer>"]}}, "test")
