"""Tokenizers: round trips, digits alone, fixed special ids, and the same ids in transformers."""

import json
import string

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from zifio.config import ConfigError, build
from zifio.data.template import SPECIAL_TOKENS, TAGS, ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = [
    "<think>6+1=7-1=6+9=15</think><answer>15</answer>",
    "(3+7+2)%10",
    "2-5=-3",
    "the whale dives and the whale dives again\n",
    "1234567890, 1234567890",
]
STRANGE = [
    "naïve café 鯨 🐋",
    "a\u0301 \u200b\r\n\t\0",
    "\u2028 \u0085",
    "<thin k> <|User|> ｜▁",
    " two  spaces ",
    "",
    "\n\n",
]


@pytest.fixture(params=["characters", "bpe"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    save_tokenizer(train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), TEXTS), tmp_path / kind)
    return tmp_path / kind


def texts_for(kind: str) -> list[str]:
    joined = "".join(TEXTS)
    return TEXTS + ([*STRANGE, joined] if kind == "bpe" else ["", "\n\n", joined, "".join(SPECIAL_TOKENS)])


def test_special_tokens_have_the_first_ids(folder):
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(9))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.encode("".join(SPECIAL_TOKENS)) == list(range(9))
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    assert [added[id].special for id in range(9)] == [token not in TAGS for token in SPECIAL_TOKENS]


def test_text_comes_back(folder, kind):
    tokenizer = load_tokenizer(folder)
    for text in texts_for(kind):
        assert tokenizer.tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_transformers_opens_the_folder_with_equal_ids_and_text(folder, kind):
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == ours.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    for text in texts_for(kind):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids == theirs.encode(text)
        assert theirs.decode(ids) == ours.tokenizer.decode(ids, skip_special_tokens=False)
    reply = [*ours.encode(TEXTS[0]), ours.eos_id]
    assert theirs.decode(reply, skip_special_tokens=True) == TEXTS[0] == ours.decode(reply)


def test_digits_stand_alone(kind):
    texts = ["1234567890 10 100 1000 2024 " * 50] * 20
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=400), texts)
    pieces = [piece for piece in tokenizer.get_vocab() if any(c in string.digits for c in piece)]
    assert sorted(pieces) == list(string.digits)
    assert len(tokenizer.encode("2024", add_special_tokens=False).ids) == 4


def test_bpe_keeps_to_its_size_and_learns_from_its_text():
    texts = ["the whale dives again and again, the whale sings"] * 50
    small = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=280), texts)
    assert small.get_vocab_size() == 280
    n_tokens = len(small.encode(texts[0], add_special_tokens=False).ids)
    assert n_tokens < len(texts[0]) * 0.7


def test_training_is_deterministic_and_blind_to_special_tokens(kind):
    config = TokenizerConfig(kind=kind, vocab_size=290)
    one, two = (train_tokenizer(config, iter(TEXTS)).to_str() for _ in range(2))
    assert one == two
    marked = [f"{SPECIAL_TOKENS[3]}{text}{SPECIAL_TOKENS[2]}" for text in TEXTS]
    assert train_tokenizer(config, marked).get_vocab() == train_tokenizer(config, TEXTS).get_vocab()


def test_the_alphabet_is_sorted_and_small():
    tokenizer = train_tokenizer(TokenizerConfig(), ["2+1=3", "1-1=0<think></think>"])
    assert [tokenizer.id_to_token(id) for id in range(9, tokenizer.get_vocab_size())] == list("+-0123=")
    given = train_tokenizer(TokenizerConfig(alphabet="ba"), ["not looked at"])
    assert given.get_vocab_size() == len(SPECIAL_TOKENS) + 2


@pytest.mark.parametrize(
    ("text", "strange"), [("1+x", "x"), ("1\n2", "\n"), ("１", "１"), ("<think>?", "?"), ("<", "<")]
)
def test_an_unknown_character_is_named(text, strange):
    tokenizer = ChatTokenizer(train_tokenizer(TokenizerConfig(alphabet="0123456789+"), []))
    with pytest.raises(ConfigError) as caught:
        tokenizer.encode(text)
    assert f"came {strange!r}" in str(caught.value)
    with pytest.raises(Exception, match="UNK"):  # never a silent unknown token in the library's own form either
        tokenizer.tokenizer.encode(text, add_special_tokens=False)


def test_no_alphabet_is_an_error():
    with pytest.raises(ConfigError, match="alphabet"):
        train_tokenizer(TokenizerConfig(), ["<think></think>"])


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        build(TokenizerConfig, {"kind": "bpe", "vocab_size": 200}, "recipe.toml")


def test_a_missing_or_broken_folder_is_named(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"nowhere.*tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json.*JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not open"):
        load_tokenizer(folder)


def test_saving_what_was_loaded_changes_no_byte(folder, tmp_path):
    save_tokenizer(load_tokenizer(folder), tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == 4


def test_published_spellings_of_special_tokens_and_templates_are_read(tmp_path):
    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="<s>")).save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": template}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.template) == (0, 1, 1, template)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(ConfigError, match="chat template"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ConfigError, match="eos_token"):
        load_tokenizer(tmp_path)
