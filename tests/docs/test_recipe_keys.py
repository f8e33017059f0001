"""The reference of recipe keys says what the schema says."""

from __future__ import annotations

import pytest

from docs import recipe_keys
from docs.marked import replace_part
from megacpt.recipe import schema
from megacpt.recipe.load import _schema_keys


def test_the_page_is_up_to_date() -> None:
    page = recipe_keys.PAGE.read_text(encoding="utf-8")
    made = replace_part(page, "keys", recipe_keys.reference())
    made = replace_part(made, "rules", recipe_keys.cross_rules())
    assert made == page, "run: python -m docs.recipe_keys"


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (schema.Tokens | None, "tokens or null"),
        (schema.Stretch, "duration"),
        (schema.ParallelSection.model_fields["activation_checkpointing"].annotation, "`none` or `full`"),
    ],
)
def test_types_are_said_in_words(hint: object, words: str) -> None:
    assert recipe_keys.kind(hint) == words


def test_every_key_is_on_the_page() -> None:
    page = recipe_keys.reference()
    keys = [key for key, _ in _schema_keys()]
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    assert len(leaves) > 50
    for key in leaves:
        assert f"- **`{key.rpartition('.')[2]}`**" in page, key


def test_a_page_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match="0 parts"):
        replace_part("nothing here", "keys", "content")
