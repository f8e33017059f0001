"""The schema: every key explained, nothing changed after loading, values of the right kind only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from megacpt.errors import RecipeError
from megacpt.recipe import Recipe, load_recipe
from tests.recipe.conftest import Write


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        yield from sections_in(field.annotation)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from sections(annotation)
    for inner in get_args(annotation):
        yield from sections_in(inner)


@pytest.mark.parametrize("section", dict.fromkeys(sections(Recipe)), ids=lambda section: section.__name__)
def test_every_key_is_explained(section: type[BaseModel]) -> None:
    unexplained = [name for name, field in section.model_fields.items() if not field.description]
    assert not unexplained


def test_recipes_are_frozen(write: Write) -> None:
    recipe = load_recipe(write())
    with pytest.raises(ValidationError, match="frozen"):
        recipe.lr.peak = 1.0


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("parallel.tensor=two", "parallel.tensor: cannot use this value (found 'two', expected a valid integer)"),
        ("parallel.tensor=true", "parallel.tensor: cannot use this value (found True, expected a valid integer)"),
        ("parallel.tensor=0", "parallel.tensor: cannot use this value (found 0, expected greater than or equal to 1)"),
        (
            "parallel.data=some",
            "parallel.data: cannot use this value (found 'some', expected a valid integer or 'auto')",
        ),
        ("data.document_mask=1", "data.document_mask: cannot use this value (found 1, expected a valid boolean)"),
        ("parallel.zero_stage=4", "found 4, expected less than or equal to 3"),
        ("lr.peak=.inf", "lr.peak: cannot use this value"),
        ("lr.schedule=cosin", "lr.schedule: cannot use this value (found 'cosin', expected 'cosine', 'wsd'"),
        ("training.tokens=5Q", "training.tokens: '5Q' has the unknown unit 'Q'"),
        ("data.sequence_length=8K", "data.sequence_length: '8K' is ambiguous: write 8192"),
        ("lr.warmup=200%", "lr.warmup: '200%' is more than the whole run"),
        (
            "data.domains.law.role=old",
            "data.domains.law.role: cannot use this value (found 'old', expected 'new', 'replay'",
        ),
        ("data.domains.law.weight=-1", "data.domains.law.weight: cannot use this value (found -1"),
        ("name=a/b", "name: cannot use this value (found 'a/b'"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: this key is required"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: cannot use this value (found 1.0, expected less than 1)"),
    ],
)
def test_a_wrong_value_is_one_clear_line(write: Write, override: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [override])
    assert str(caught.value).startswith("--set: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["..", ".", "../other", "/etc/run", "a/../../b", "a\\b", "~", ".hidden", "-rf", "a\n", ""]
)
def test_a_name_does_not_lead_out_of_the_run_folder(name: str, write: Write) -> None:
    """Names of runs and of domains are parts of paths."""
    with pytest.raises(RecipeError, match="name: cannot use this value"):
        load_recipe(write(), [f"name={json.dumps(name)}"])
    with pytest.raises(RecipeError, match=r"data\.domains"):
        load_recipe(write(), [f"data.domains={{{json.dumps(name)}: {{role: new, shards: shards/x, weight: 1}}}}"])


def test_one_path_is_a_list_of_one(write: Write) -> None:
    domains = load_recipe(write()).data.domains
    assert domains["law"].shards == ("shards/law",)
    assert domains["web"].shards == ("shards/a", "shards/b")
    assert domains["web"].held_out == ()


def test_defaults_of_the_learning_rate(write: Write) -> None:
    rate = load_recipe(write()).lr
    assert rate.lowest == pytest.approx(1e-5)
    assert rate.phases(1000) == {"warmup": 10, "cooldown": 0, "decay": 0, "anneal": 0}
