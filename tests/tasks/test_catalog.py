"""The catalog: a plain table becomes a task, and a slip of the pen is answered with what was meant."""

import subprocess
import sys

import pytest

from zifio.config import Config, ConfigError, build
from zifio.tasks.catalog import TaskConfig, make_task, read_task
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


def test_tasks_and_data_do_not_import_torch():
    rooms = "zifio.tasks.catalog, zifio.tasks.episode, zifio.data.tokenizer, zifio.data.pack, zifio.data.sources"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
