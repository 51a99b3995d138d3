"""The catalog: a plain table becomes a task, and a slip of the pen is answered with what was meant."""

import subprocess
import sys

import pytest

from zifio.config import Config, ConfigError, build
from zifio.tasks.catalog import TaskConfig, make_task, named_table, named_task, read_task
from zifio.tasks.splits import Splits
from zifio.tasks.sums import ChainMod, ChainSum


class Recipe(Config):
    task: TaskConfig = ChainSum()


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ({"name": "chain_sum", "min_terms": 10, "max_terms": 10}, ChainSum(min_terms=10, max_terms=10)),
        ({"name": "chain_mod", "working": "totals"}, ChainMod(working="totals")),
        ({"name": "splits", "junk": 0.7}, Splits(junk=0.7)),
    ],
)
def test_a_table_becomes_its_task(data, task):
    assert read_task(data, "recipe.toml") == task
    recipe = build(Recipe, {"task": data}, "recipe.toml")
    assert make_task(recipe.task) == task
    assert build(Recipe, recipe.model_dump(), "again") == recipe
    assert recipe.digest() != Recipe().digest()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "chain_sun"}, ["chain_sum", "chain_mod", "splits"]),
        ({"name": "chain_sum", "min_term": 6}, ["min_term", "Did you mean 'min_terms'"]),
        ({"name": "chain_sum", "modulus": 10}, ["modulus"]),
        ({"name": "chain_mod", "min_terms": "6"}, ["min_terms", "integer"]),
        ({"name": "chain_mod", "min_terms": 6, "max_terms": 5}, ["min_terms", "max_terms", "5"]),
        ({}, ["name"]),
    ],
    ids=str,
)
def test_a_slip_is_an_error_that_says_what_was_meant(data, words):
    with pytest.raises(ConfigError) as caught:
        read_task(data, "recipe.toml")
    assert all(word in str(caught.value) for word in ["recipe.toml", *words])


RECIPE = """
task = { name = "chain_mod", min_terms = 6, max_terms = 8 }
[[stage]]
name = "plain"
[[stage]]
name = "other"
task = { name = "splits" }
"""


def test_a_word_of_the_command_line_becomes_its_task(tmp_path):
    recipe = tmp_path / "try.toml"
    recipe.write_text(RECIPE)
    assert named_task("chain_sum") == ChainSum()
    assert named_task("chain_sum:max_terms=9,working=totals") == ChainSum(max_terms=9, working="totals")
    assert named_task(f"{recipe}") == named_task(f"{recipe}:plain") == ChainMod(min_terms=6, max_terms=8)
    assert named_task(f"{recipe}:other") == Splits()


def test_options_part_where_a_key_follows():
    assert named_table("x:a=1,b=[1,2],c=d, e f,g.h=true") == {
        **{"name": "x", "a": 1, "b": [1, 2], "c": "d, e f"},
        "g": {"h": True},
    }
    assert named_table("some/mine.jsonl") == {"name": "custom", "path": "some/mine.jsonl"}
    assert named_table("a:b.parquet:verifier=integer") == {
        **{"name": "custom", "path": "a:b.parquet", "verifier": "integer"},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chain_sun", ["chain_sum"]),
        ("chain_sum:max_term=9", ["Did you mean 'max_terms'"]),
        ("chain_sum:9", ["key=value", "'9'"]),
        ("missing.toml", ["missing.toml", "no such file"]),
    ],
)
def test_a_word_that_means_no_task_is_explained(text, words):
    with pytest.raises(ConfigError) as caught:
        named_task(text)
    assert all(word in str(caught.value) for word in words)


def test_a_recipe_without_that_stage_or_without_a_task_is_explained(tmp_path):
    recipe = tmp_path / "try.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(ConfigError, match="Did you mean 'other'"):
        named_task(f"{recipe}:othr")
    recipe.write_text("seed = 1")
    with pytest.raises(ConfigError, match="recipe with a task"):
        named_task(str(recipe))


def test_tasks_and_data_do_not_import_torch():
    rooms = "zifio.tasks.catalog, zifio.tasks.episode, zifio.data.tokenizer, zifio.data.pack, zifio.data.sources"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
