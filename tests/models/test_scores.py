"""Models that score: files that transformers opens with equal scores, both ways, and nothing of the old head left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import EVERY_FAMILY, made, save_base, tokens_like

from zifio.config import ConfigError
from zifio.data.tokenizer import save_tokenizer
from zifio.engine.policy import open_decoder, open_model
from zifio.models.config import read_config
from zifio.models.count import parameters
from zifio.models.decoder import with_scores
from zifio.models.weights import load_model, save_model

CLASSES = {1: "AutoModelForSequenceClassification", 2: "AutoModelForTokenClassification"}


def scores_of(model, tokens_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, labels] of whole sequences."""
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    return model.score(model(tokens_BT, positions_BT).hidden_BTD)


@pytest.mark.parametrize("n_labels", [1, 2])
@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3-moe", "v3-low-rank-query"])
def test_transformers_opens_what_we_write(family: str, n_labels: int, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = with_scores(made(EVERY_FAMILY[family].model_copy(update={"pad_token_id": 0})), n_labels, seed=1)
    save_model(model, tmp_path)
    if (family, n_labels) == ("v3-low-rank-query", 2) and not hasattr(transformers, "DeepseekV3ForTokenClassification"):
        pytest.skip("this transformers has no such class")
    theirs = getattr(transformers, CLASSES[n_labels]).from_pretrained(tmp_path).eval()
    tokens_BT = tokens_like(2, 9, seed=4).clamp(min=1)
    with torch.no_grad():
        ours = scores_of(model, tokens_BT)
        found = theirs(tokens_BT).logits
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(ours[:, -1] if n_labels == 1 else ours, found, atol=1e-5, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.config.num_labels == n_labels
    torch.testing.assert_close(scores_of(again, tokens_BT), ours, atol=0, rtol=0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_scoring_copy_keeps_the_body_and_counts_its_weights(family: str):
    model = made(EVERY_FAMILY[family])
    scoring = with_scores(model, 2, seed=3)
    own, before = scoring.state_dict(), model.state_dict()
    assert own.keys() - before.keys() == {"score.weight", "score.bias"}
    assert all(torch.equal(own[name], before[name]) for name in own.keys() & before.keys())
    assert {name for name in before.keys() - own.keys() if not name.startswith(("lm_head", "mtp"))} == set()
    assert parameters(scoring.config).total == sum(p.numel() for p in scoring.parameters())
    with torch.no_grad():
        scoring.embed_tokens.weight.add_(1.0)
    assert not torch.equal(scoring.embed_tokens.weight, model.embed_tokens.weight), "a copy"
    again = with_scores(model, 2, seed=3)
    assert torch.equal(again.score.weight, scoring.score.weight) and scoring.score.weight.std() > 0


def test_a_model_that_scores_is_not_asked_to_write(tmp_path: Path):
    model, tokenizer = open_model(save_base(tmp_path / "base", EVERY_FAMILY["llama"]))
    (tmp_path / "prm").mkdir()
    save_model(with_scores(model, 2, seed=1), tmp_path / "prm")
    save_tokenizer(tokenizer, tmp_path / "prm")
    assert open_decoder(tmp_path / "prm")[0].config.num_labels == 2
    with pytest.raises(ConfigError, match="wanted a model that writes, came one that scores"):
        open_model(tmp_path / "prm")


def test_two_labels_are_what_a_file_that_names_none_means(tmp_path: Path):
    save_model(with_scores(made(EVERY_FAMILY["llama"]), 2, seed=1), tmp_path)
    raw = (tmp_path / "config.json").read_text()
    assert "LlamaForTokenClassification" in raw and read_config(tmp_path).num_labels == 2
    plain = raw.replace('"id2label"', '"_id2label"')
    (tmp_path / "config.json").write_text(plain)
    assert read_config(tmp_path).num_labels == 2
