"""The chat template: equal to transformers' rendering, cut without changing a token, and a mask that fits."""

import pytest
from transformers import AutoTokenizer

from zifio.config import ConfigError
from zifio.data.template import ASSISTANT, BOS, EOS, SPECIAL_TOKENS, USER, ChatTokenizer
from zifio.data.tokenizer import TokenizerConfig, save_tokenizer, train_tokenizer
from zifio.pictures import PICTURE


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


REPLY = "<think>6+1=7-1=6+9=15</think><answer>15</answer>"
CHATS = {
    "one turn": [user("6+1-1+9"), assistant(REPLY)],
    "direct": [user("6+1"), assistant("<think></think><answer>7</answer>")],
    "system": [system("1+1=2"), user("6+1-1+9"), assistant(REPLY)],
    "turns": [user("6+1"), assistant(REPLY), user("6-1"), assistant("<think></think><answer>5</answer>")],
    "asked again": [user("6+1"), assistant(REPLY), user("6-1")],
    "only a question": [user("6+1")],
    "two questions": [user("6"), user("1")],
    "reply first": [assistant("7"), user("1")],
    "empty reply": [user("1"), assistant("")],
    "system alone": [system("1")],
    "nothing": [],
}
CASES = [pytest.param(chat, prompt, id=f"{name}, {prompt}") for name, chat in CHATS.items() for prompt in (True, False)]


@pytest.fixture(scope="module", params=["characters", "bpe"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train_tokenizer(TokenizerConfig(kind=request.param, vocab_size=270), [REPLY, "0123456789+-=\n "])
    save_tokenizer(tokenizer, folder)
    return ChatTokenizer(tokenizer), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("chat", "prompt"), CASES)
def test_text_and_ids_equal_those_of_transformers(pair, chat, prompt):
    ours, theirs = pair
    text = ours.render(chat, generation_prompt=prompt)
    if chat:  # transformers takes an empty conversation for an empty batch
        assert theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) == text
        ids = theirs.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"]
        assert ours.encode_chat(chat, generation_prompt=prompt)[0] == ids
    assert ours.encode_chat(chat, generation_prompt=prompt)[0] == ours.encode(text)


@pytest.mark.parametrize(("chat", "prompt"), CASES)
def test_segments_join_to_the_text_and_mask_the_replies(pair, chat, prompt):
    ours, _ = pair
    segments = ours.segments(chat, generation_prompt=prompt)
    assert "".join(text for text, _ in segments) == ours.render(chat, generation_prompt=prompt)
    replies = [message["content"] + EOS for message in chat if message["role"] == "assistant"]
    assert [text for text, counts in segments if counts] == replies
    tokens, mask = ours.encode_chat(chat, generation_prompt=prompt)
    assert len(tokens) == len(mask)
    counted = [token for token, counts in zip(tokens, mask, strict=True) if counts]
    assert counted == [token for reply in replies for token in ours.encode(reply)]


def test_the_layout_is_that_of_deepseek(pair):
    ours, _ = pair
    assert ours.render(CHATS["one turn"]) == f"{BOS}{USER}6+1-1+9{ASSISTANT}{REPLY}{EOS}"
    assert ours.render(CHATS["only a question"], generation_prompt=True) == f"{BOS}{USER}6+1{ASSISTANT}"
    assert ours.render(CHATS["system"]).startswith(f"{BOS}1+1=2{USER}")


def test_a_prompt_is_the_beginning_of_its_conversation(pair):
    ours, _ = pair
    prompt, _ = ours.encode_chat([user("6+1-1+9")], generation_prompt=True)
    whole, mask = ours.encode_chat([user("6+1-1+9"), assistant(REPLY)])
    assert whole[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(whole) - len(prompt))
    assert ours.decode(whole[len(prompt) :]) == REPLY


def test_decode_hides_nothing_but_one_end_token(pair):
    ours, _ = pair
    text = f"{BOS}{USER}1{ASSISTANT}{REPLY}"
    assert ours.decode([*ours.encode(text), ours.eos_id]) == ours.decode(ours.encode(text)) == text
    assert ours.decode([]) == ours.decode([ours.eos_id]) == ""
    assert ours.decode([ours.eos_id, ours.eos_id]) == EOS
    for token in SPECIAL_TOKENS:
        assert ours.decode(ours.encode(f"1{token}5")) == f"1{token}5"
        if token != EOS:
            assert ours.decode(ours.encode(f"{token}5{token}")) == f"{token}5{token}"


def test_the_fast_form_for_characters_equals_the_library(pair):
    ours, _ = pair
    for text in ("", "1", REPLY, "".join(SPECIAL_TOKENS), f"12{USER}\n{EOS}{EOS}-", "\n\n  11"):
        assert ours.encode(text) == ours.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("chat", "word"),
    [
        ([user("1"), system("2")], "first"),
        ([{"role": "tool", "content": "1"}], "tool"),
        ([{"role": "user"}], "content"),
        ([{"content": "1"}], "role"),
        ([{"role": "user", "content": None}], "content"),
    ],
    ids=str,
)
def test_messages_that_make_no_conversation_are_an_error(pair, chat, word):
    with pytest.raises(ConfigError, match=word):
        pair[0].encode_chat(chat)
    with pytest.raises(ConfigError, match=word):
        pair[0].render(chat)


def test_a_template_that_hides_thoughts_cannot_be_trained_on(pair):
    hides = pair[0].template.replace("+ message['content'] + eos", "+ message['content'].split('</think>')[-1] + eos")
    assert hides != pair[0].template
    tokenizer = ChatTokenizer(pair[0].tokenizer, hides)
    assert "think" not in tokenizer.render(CHATS["one turn"])
    with pytest.raises(ConfigError, match="hides"):
        tokenizer.encode_chat(CHATS["one turn"])


def test_a_template_that_rewrites_what_was_said_cannot_be_cut(pair):
    counts = ChatTokenizer(pair[0].tokenizer, "{{ messages | length }}" + pair[0].template)
    with pytest.raises(ConfigError, match="rewrites"):
        counts.encode_chat(CHATS["turns"])


def test_published_templates_may_mark_generation_and_break_loops(pair):
    marked = (
        "{%- for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m['role'] }}:"
        "{% generation %}{{ m['content'] | tojson }}{% endgeneration %}{% endfor %}"
    )
    assert ChatTokenizer(pair[0].tokenizer, marked).render(CHATS["turns"]) == f'user:"6+1"assistant:"{REPLY}"'


@pytest.mark.parametrize(
    "template",
    ["{{ ().__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}"],
    ids=["escape", "change"],
)
def test_a_template_runs_in_a_sandbox(pair, template):
    with pytest.raises(ConfigError, match="chat template"):
        ChatTokenizer(pair[0].tokenizer, template).render([user("1")])


def test_a_broken_template_is_an_error(pair):
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        ChatTokenizer(pair[0].tokenizer, "{% for %}").render([user("1")])


def test_a_token_that_the_vocabulary_lacks_is_an_error(pair):
    with pytest.raises(ConfigError, match="<end>"):
        _ = ChatTokenizer(pair[0].tokenizer, eos_token="<end>").eos_id


PARTS = (
    "{%for message in messages%}<{{message['role']}}>"
    "{%for part in message['content']%}{%if part['type']=='image'%}<image_placeholder>\n"
    "{%elif part['type']=='text'%}{{part['text']}}{%endif%}{%endfor%}"
    "{%if not loop.last or add_generation_prompt%}{{'\n' if message['role']=='user' else eos_token}}{%endif%}"
    "{%endfor%}{%if add_generation_prompt%}<assistant>{%endif%}"
)


def test_templates_of_parts_get_parts_a_beginning_and_an_end():
    """As Janus' own: neither the first token nor the end of the last reply is in it."""
    bpe = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300, pictures=True), ["what is this"])
    tokenizer = ChatTokenizer(bpe, PARTS)
    user = {"role": "user", "content": f"{PICTURE}What?"}
    prompt = f"{BOS}<user>{PICTURE}\nWhat?\n<assistant>"
    assert tokenizer.render([user], generation_prompt=True) == prompt
    reply = {"role": "assistant", "content": "a dog"}
    assert tokenizer.segments([user, reply]) == [(prompt, False), (f"a dog{EOS}", True)]
    again = tokenizer.segments([user, reply, {"role": "user", "content": "No."}, reply])
    assert [text for text, counts in again if counts] == [f"a dog{EOS}"] * 2
    assert "".join(text for text, _ in again) == f"{prompt}a dog{EOS}<user>No.\n<assistant>a dog{EOS}"
