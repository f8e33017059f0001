"""Every shipped recipe, as its README promises it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megacpt.recipe import dump_recipe, explain, find_architecture, load_recipe, recipes_folder, resolve

WORLD_SIZES = {
    "debug-tiny": 2,
    "smollm2-135m-medical": 2,
    "llama3-8b-medical": 16,
    "llama3-8b-stability-gap": 16,
    "llama3-8b-syne": 16,
}
PARAMETERS = {
    "gemma2-9b": 9_241_705_984,
    "gemma3-1b": 999_885_952,
    "llama3-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "olmo2-7b": 7_298_617_344,
    "phi3-mini": 3_821_079_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}
"""As the published weights hold."""


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", names(recipes_folder()))
def test_a_shipped_recipe_plans_its_run(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    resolved = resolve(recipe, WORLD_SIZES[name])
    assert resolved.architecture is not None, "it can be planned before anything is downloaded"
    assert f"{name}, on {WORLD_SIZES[name]} processes" in explain(resolved)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_recipe(copy) == recipe


@pytest.mark.parametrize("name", names(recipes_folder() / "base"))
def test_a_base_has_the_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"extends: base/{name}\n"
        "data: {sequence_length: 4096, domains: {d: {role: new, shards: d, weight: 1}}}\n"
        "batch: {global_rows: 8}\nlr: {peak: 1e-5}\ntraining: {tokens: 1B}\n"
    )
    recipe = load_recipe(path)
    architecture = find_architecture(recipe)
    assert architecture is not None and architecture.is_known
    assert architecture.num_parameters == PARAMETERS[name]
    assert explain(resolve(recipe, 8))


def test_the_table_lists_every_recipe_once() -> None:
    linked = re.findall(r"^\| \[.*?\]\((.*?)\.yaml\)", (recipes_folder() / "README.md").read_text(), re.MULTILINE)
    files = [path.relative_to(recipes_folder()).with_suffix("").as_posix() for path in recipes_folder().rglob("*.yaml")]
    assert sorted(linked) == sorted(files)


def test_the_table_s_tensor_parallelism_is_possible_and_the_most() -> None:
    table = (recipes_folder() / "README.md").read_text()
    for name, most in re.findall(r"^\| \[base/(.*?)\].*\| (\d+) \|$", table, re.MULTILINE):
        config = load_recipe("debug-tiny", [f"model.config={{{_values(name)}}}"])
        architecture = find_architecture(config)
        assert architecture is not None
        sizes = (architecture.num_heads, architecture.num_kv_heads, architecture.intermediate_size)
        assert max(n for n in range(1, sizes[1] + 1) if not any(size % n for size in sizes)) == int(most), name


def _values(base: str) -> str:
    text = (recipes_folder() / "base" / f"{base}.yaml").read_text()
    return ", ".join(re.findall(r"^    (\w+: \S+)$", text, re.MULTILINE))
