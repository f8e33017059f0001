"""The shards of debug-tiny are where its recipe looks for them, and fit its model."""

from __future__ import annotations

from pathlib import Path

from megacpt.data.corpus import open_corpus
from megacpt.recipe import load_recipe
from megacpt_tools.debug_data import FOLDER, make_debug_data


def test_the_recipe_finds_enough_tokens_of_its_vocabulary(tmp_path: Path) -> None:
    recipe = load_recipe("debug-tiny")
    make_debug_data(tmp_path / "data")
    make_debug_data(tmp_path / "data")  # over what is there
    for domain in recipe.data.domains.values():
        (shards,) = domain.shards
        corpus = open_corpus([tmp_path / "data" / Path(shards).relative_to(FOLDER)])
        assert corpus.num_tokens > recipe.training.tokens
        assert corpus.num_documents > 1
        assert corpus.read(0, corpus.num_tokens).max() < recipe.model.config["vocab_size"]
