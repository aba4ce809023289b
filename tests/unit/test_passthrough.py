"""`train.transformers`: every field of TrainingArguments is ours, passed on, or refused with its reason."""

import dataclasses
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import transformers

from tunesmith import passthrough, schema
from tunesmith.passthrough import ALLOWED, OWNED, REFUSED, WORKERS, known_fields, problem
from tunesmith.recipe import Recipe

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
FIELDS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}


def test_every_field_is_in_one_of_the_three_lists():
    listed = [*OWNED, *ALLOWED, *REFUSED]
    assert len(listed) == len(set(listed))
    assert known_fields() == FIELDS
    (tested,) = re.findall(r"(?m)^transformers==(.+)$", CONSTRAINTS.read_text(encoding="utf-8"))
    if version("transformers") == tested:
        assert (FIELDS - set(listed), set(listed) - FIELDS) == (set(), set())
    for name in sorted(FIELDS - set(listed)):
        assert "newer than tunesmith" in str(problem({name: 1}))


def test_what_is_allowed_is_passed_on():
    workers = {"dataloader_num_workers": 1}
    assert [name for name in ALLOWED if problem({name: 1} | workers) is not None] == []
    assert problem({}) is None and problem({name: None for name in WORKERS}) is None


def test_what_is_ours_is_refused_by_its_name_here():
    assert problem({"learning_rate": 1}) == "learning_rate is tunesmith's own: set optimizer.learning_rate"
    options = {option.word for option in schema.options(Recipe)} | {"optimizer.type"}
    for name, ours in OWNED.items():
        assert problem({"run_name": "a", name: None}) == f"{name} is tunesmith's own: set {ours}"
        assert ours in options or " " in ours, ours


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_has_its_reason(name):
    assert problem({name: None}) == f"{name} cannot be set: {REFUSED[name]}"


@pytest.mark.parametrize("name", WORKERS)
def test_what_is_of_workers_needs_some(name):
    assert problem({name: 1}) == f"{name} needs dataloader_num_workers of 1 or more"


def test_an_unknown_field_has_near_names_that_can_be_set():
    hint = "Did you mean 'dataloader_num_workers'?"
    assert str(problem({"dataloader_num_worker": 1})).startswith(
        "TrainingArguments has no field 'dataloader_num_worker'."
    )
    assert hint[:-1] in str(problem({"dataloader_num_worker": 1}))
    assert "eval_on_start" not in str(problem({"eval_on_stat": True}))


def test_a_field_that_nobody_has_looked_at_is_refused(monkeypatch):
    monkeypatch.setattr(passthrough, "known_fields", lambda: {"train_faster"})
    assert problem({"train_faster": True}) == (
        "train_faster is newer than tunesmith, which does not know what it would change: open an issue"
    )
