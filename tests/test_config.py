"""Configs: what is let in, what the messages say, overrides, digests that never change."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from zifio.config import Config, ConfigError, Sampling, build, override, read_toml


class Optim(Config):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    steps: int = 10
    name: Literal["adamw", "muon"] = "adamw"


class Rl(Config):
    kind: Literal["rl"]
    name: str
    optim: Optim = Optim()
    folder: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    from_: str = Field(default="", alias="from")
    """What it starts from."""


class Sft(Config):
    kind: Literal["sft"]
    name: str
    epochs: int = 1

    @field_validator("epochs")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"wanted at least one epoch, came {value}; set epochs = 1")
        return value


class Recipe(Config):
    seed: int
    sampling: Sampling = Sampling()
    stage: tuple[Annotated[Rl | Sft, Field(discriminator="kind")], ...] = ()
    extra: dict[str, Optim] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _even(self) -> "Recipe":
        if self.seed == 13:
            raise ValueError("seed 13 brings bad luck; take 14")
        return self


BASE = {"seed": 1, "stage": [{"kind": "rl", "name": "r1-zero"}, {"kind": "sft", "name": "cold"}]}


def message(*assignments: str) -> str:
    """What building BASE with these changes says."""
    with pytest.raises(ConfigError) as error:
        build(Recipe, override(BASE, assignments), "my.toml")
    return str(error.value)


def test_build_takes_plain_data():
    recipe = build(Recipe, override(BASE, ["stage.r1-zero.optim.lr=1", "stage.0.folder=a/b"]), "my.toml")
    first = recipe.stage[0]
    assert isinstance(first, Rl)
    assert first.optim.lr == 1.0 and isinstance(first.optim.lr, float)
    assert first.folder == Path("a/b")
    assert build(Recipe, override(BASE, ["stage.0.sizes=[3]"]), "my.toml").stage[0].sizes == (3,)


def test_build_takes_what_a_config_dumps():
    recipe = build(Recipe, BASE, "my.toml")
    assert build(Recipe, recipe.model_dump(by_alias=True), "saved") == recipe


@pytest.mark.parametrize(
    "change, parts",
    {
        "stage.r1-zero.optim.lrr=1": ("stage.r1-zero.optim.lrr", "known key", "'lrr' (= 1)", "Did you mean 'lr'"),
        "sampling.temprature=0": ("sampling.temprature", "known key", "'temprature'", "'temperature'"),
        "extra.x.lrr=0": ("extra.x.lrr", "known key", "'lrr'", "'lr'"),
        "stage.r1-zero.form=base": ("stage.r1-zero.form", "known key", "'form' (= \"base\")", "Did you mean 'from'?"),
        "stage.r1-zero.from=1": ("from (What it starts from)", "a string", "1", 'from = "1"'),
        "zzz=0": ("my.toml: zzz", "known key", "'zzz'", "Known keys: seed, sampling, stage"),
        "stage.cold.epochs=1.5": ("stage.cold.epochs", "an integer", "1.5", "leave the key out for 1"),
        "stage.cold.epochs='3'": ("stage.cold.epochs", "an integer", '"3"', "Give an integer"),
        "seed=true": ("my.toml: seed", "an integer", "true", "Give an integer"),
        "stage.r1-zero.optim.lr=0": ("optim.lr (Peak learning rate)", "greater than 0", "came 0", "for 0.001"),
        "stage.r1-zero.optim.lr=nan": ("optim.lr", "finite", "NaN", "Give"),
        "stage.r1-zero.optim.name=adam": ("optim.name", "'adamw' or 'muon'", '"adam"', "Did you mean 'adamw'?"),
        "stage.r1-zero.optim=3": ("stage.r1-zero.optim", "a table", "3", "Give a table"),
        "stage.r1-zero.kind=rll": ("stage.r1-zero.kind", "'rl', 'sft'", "'rll'", "Did you mean 'rl'?"),
        "stage=[{name='x'}]": ("stage.x", "'kind'", "none", "Add a line `kind = ...`"),
        "stage.cold.name=123": ("stage.1.name", "a string", "123", 'name = "123"'),
        "stage=[{kind='rl'}]": ("stage.0.name", "a value", "nothing", "Add a line `name = ...`"),
        "stage.r1-zero.sizes=[1,'a']": ("stage.r1-zero.sizes.1", "an integer", '"a"', "Give an integer"),
        "stage.cold.epochs=0": ("stage.cold.epochs", "at least one epoch", "0", "set epochs = 1"),
        "seed=13": ("my.toml: ", "seed 13", "take 14"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_messages_have_four_parts(change: str, parts: tuple[str, ...]):
    text = message(change)
    assert text.startswith("my.toml: ")
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_every_mistake_is_told():
    lines = message("sampling.top_p=0", "stage.cold.epoch=3", "seed=x").splitlines()
    assert len(lines) == 3


def test_build_of_something_else():
    with pytest.raises(ConfigError, match=r"my\.toml: seed: wanted a value, came nothing"):
        build(Recipe, {}, "my.toml")


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Sampling().temperature = 0.5


def test_defaults_are_checked():
    class Wrong(Config):
        lr: float = Field(default=-1.0, gt=0)

    with pytest.raises(ConfigError, match="greater than 0, came -1"):
        build(Wrong, {}, "my.toml")


def test_override_values():
    words = ["a.b=1e-3", "a.c=true", "a.d=try", "a.e=[1, 2]", 'a.f="x y"', "a.g=", "a.h=x=y", "a.i=runs/a-b.c", "n=-1"]
    expected = {"b": 1e-3, "c": True, "d": "try", "e": [1, 2], "f": "x y", "g": "", "h": "x=y", "i": "runs/a-b.c"}
    assert override({}, words) == {"a": expected, "n": -1}
    assert override({}, ["a=1\nb=2"]) == {"a": "1\nb=2"}, "one assignment sets one key"


def test_override_leaves_its_input_alone():
    override(BASE, ["seed=2", "stage.r1-zero.name=other"])
    assert BASE["seed"] == 1 and BASE["stage"][0]["name"] == "r1-zero"


@pytest.mark.parametrize(
    "change, parts",
    [
        ("seed", ("key=value", "'seed'", "Write")),
        ("=1", ("key=value",)),
        ("a..b=1", ("key=value",)),
        ("stage.r2-zero.x=1", ("one of r1-zero, cold", "'r2-zero'", "Did you mean 'r1-zero'?")),
        ("stage.7.x=1", ("one of r1-zero, cold", "'7'")),
        ("seed.x=1", ("a table at seed", "came 1")),
        ("seed=[1", ("TOML value", "'[1'", "Quote")),
        ("seed='a", ("TOML value",)),
    ],
)
def test_override_mistakes(change: str, parts: tuple[str, ...]):
    text = _override_message(change)
    for part in parts:
        assert part in text


def _override_message(change: str) -> str:
    with pytest.raises(ConfigError) as error:
        override(BASE, [change])
    return str(error.value)


def test_digest_is_stable():
    canonical = (
        b'{"guidance":1.0,"max_new_tokens":128,"min_p":0.0,"repetition_penalty":1.0,"stop":[],"temperature":1.0,'
        b'"top_k":0,"top_p":1.0}'
    )
    expected = hashlib.sha256(canonical).hexdigest()[:12]
    assert Sampling().digest() == Sampling(temperature=1).digest() == expected
    assert Sampling(temperature=0).digest() != Sampling().digest()


def test_digest_is_equal_in_every_process():
    program = (
        "from zifio.config import Config\n"
        "class C(Config):\n    words: frozenset[str] = frozenset('abcdefgh')\n"
        "import sys; sys.stdout.write(C().digest())"
    )
    root = Path(__file__).resolve().parent.parent
    seen = {
        subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=True, text=True).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


def test_read_toml(tmp_path: Path):
    file = tmp_path / "quick.toml"
    file.write_text('name = "quick"\n[[stage]]\nkind = "rl"\n')
    assert read_toml(file) == {"name": "quick", "stage": [{"kind": "rl"}]}


def test_read_toml_mistakes(tmp_path: Path):
    (tmp_path / "quick.toml").write_text("a = 1\nb = try\n")
    (tmp_path / "open.toml").write_text("a = [1,\n")
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"\n')
    with pytest.raises(ConfigError, match=r"quick\.toml: line 2: wanted TOML, came \"b = try\".*quotes"):
        read_toml(tmp_path / "quick.toml")
    with pytest.raises(ConfigError, match=r"open\.toml: line 1: wanted TOML"):
        read_toml(tmp_path / "open.toml")
    with pytest.raises(ConfigError, match=r"latin\.toml: wanted UTF-8 text, came byte 0xe9 at offset 5"):
        read_toml(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match=r"qick\.toml: .*no such file\. Did you mean 'quick\.toml'\?"):
        read_toml(tmp_path / "qick.toml")
    with pytest.raises(ConfigError, match=r"came a folder\. TOML files in it: .*quick\.toml"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match="Check the path"):
        read_toml(tmp_path / "quick.toml" / "deeper.toml")


def test_sampling_limits():
    for change in ({"temperature": -1}, {"max_new_tokens": 0}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1},
                   {"min_p": 1.1}, {"repetition_penalty": 0}, {"stop": [""]}):  # fmt: skip
        with pytest.raises(ConfigError):
            build(Sampling, change, "my.toml")
