"""The model's config: found where it is, and held to what the recipe promises."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from megacpt.errors import ModelError, RecipeError
from megacpt.recipe import check_promises, find_architecture, load_recipe
from tests.recipe.conftest import Write

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 131,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
FOLDER = "model={init: pretrained, path: model, config: null}"


def test_the_model_s_own_config_comes_before_the_recipe_s(write: Write) -> None:
    write("model/config.json", json.dumps(CONFIG))
    architecture = find_architecture(load_recipe(write(), [FOLDER, "model.config={rope_theta: 1e4}"]))
    assert architecture is not None and architecture.num_layers == 3


def test_without_the_model_the_recipe_s_config_will_do(write: Write) -> None:
    architecture = find_architecture(load_recipe(write(), ["model={init: pretrained, path: model}"]))
    assert architecture is not None and architecture.num_layers == 4
    assert find_architecture(load_recipe(write(), [FOLDER, "model.config={rope_theta: 1e4}"])) is None


def test_every_broken_promise_is_reported(write: Write) -> None:
    write("model/config.json", json.dumps(CONFIG))
    recipe = load_recipe(write(), [FOLDER, "model.config={rope_theta: 5e5, hidden_size: 65, vocab_size: 131}"])
    with pytest.raises(RecipeError) as caught:
        find_architecture(recipe)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 things are wrong with the recipe:"
    expected = "  --set: model.config.rope_theta: the model is not the one that the recipe expects"
    assert lines[0].startswith(f"{expected} (found 10000.0 in model/config.json, expected 500000.0)")
    assert "hidden_size" in lines[1]


@pytest.mark.parametrize("promise", ["{rope_theta: 5e5}", "{rope_parameters: {rope_theta: 5e5}}"])
@pytest.mark.parametrize(
    "spelling",
    [
        lambda theta: {"rope_theta": theta},
        lambda theta: {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}},
        lambda theta: {
            "rope_parameters": {"full_attention": {"rope_theta": theta}, "sliding_attention": {"rope_theta": 1e4}}
        },
    ],
    ids=["before transformers 5", "since", "by kind of layer"],
)
def test_the_rope_is_compared_in_every_spelling(
    promise: str, spelling: Callable[[float], dict[str, object]], write: Write
) -> None:
    recipe = load_recipe(write(), [FOLDER, f"model.config={promise}"])
    check_promises(recipe, spelling(5e5), "config.json")
    with pytest.raises(RecipeError, match=r"rope_theta: .*found 10000\.0 in config\.json, expected 500000\.0"):
        check_promises(recipe, spelling(1e4), "config.json")


def test_a_missing_key_breaks_no_promise_of_what_transformers_has_not_completed(write: Write) -> None:
    recipe = load_recipe(write(), [FOLDER, "model.config={rope_thta: 5e5}"])
    check_promises(recipe, CONFIG, "config.json")
    with pytest.raises(RecipeError, match=r"rope_thta: .*found no such key in config\.json.*Did you mean rope_theta\?"):
        check_promises(recipe, CONFIG, "config.json", is_complete=True)


def test_a_broken_config_json_is_named(write: Write) -> None:
    write("model/config.json", "{")
    with pytest.raises(ModelError, match=r"^model/config\.json: cannot read the model's config"):
        find_architecture(load_recipe(write(), [FOLDER]))
