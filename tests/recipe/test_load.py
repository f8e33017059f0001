"""Reading: where every key came from, what wins over what, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from megacpt.errors import RecipeError
from megacpt.recipe import dump_recipe, load, load_recipe, recipes_folder
from tests.recipe.conftest import MINIMAL, Write


def refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides or [])
    return str(caught.value)


def test_a_recipe_knows_where_its_keys_were_written(write: Write) -> None:
    recipe = load_recipe(write(), ["lr.warmup=2%"])
    assert recipe.where("data.domains.web.shards") == "run.yaml:16: data.domains.web.shards"
    assert recipe.where("lr.peak") == "run.yaml:18: lr.peak"
    assert recipe.where("lr.warmup") == "--set: lr.warmup"
    assert recipe.where("batch.micro_rows") == "run.yaml:17: batch.micro_rows", "a default has its section's place"
    assert recipe.where("optimizer.eps") == "optimizer.eps"
    assert recipe.placed("lr.peak") == "run.yaml:18: lr.peak"
    for no_key in ("lr.peek", "batch.jsonl", "run.yaml:18: lr.peak", "some/folder", None):
        assert recipe.placed(no_key) == no_key


def test_numbers_are_read_as_yaml_1_2(write: Write) -> None:
    override = "model.config.x={a: 1e-5, b: 1.5E+3, c: 010, d: off, e: 1:30, f: 2001-01-01, g: true, h: ~, i: 1e}"
    read = load_recipe(write(), [override]).model.config["x"]
    expected = {
        "a": 1e-5,
        "b": 1500.0,
        "c": 10,
        "d": "off",
        "e": "1:30",
        "f": "2001-01-01",
        "g": True,
        "h": None,
        "i": "1e",
    }
    assert read == expected
    assert [type(value) for value in read.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lr={schedule: wsd, peak: 3e-5, min: 0.0, decay: 15.5%, decay_shape: linear, warmup: 1K}"],
        [
            "batch={global_tokens: 4Ki, global_rows: null, micro_rows: 2}",
            "parallel.data=2",
            "parallel.partition=[2, 2]",
            "parallel.pipeline=2",
        ],
        ["logging.wandb={project: p, tags: [a, b]}", "evaluation.every=null", "training.stop_at_step=7", "name=other"],
        [
            "model={init: pretrained, path: 'a: #b', revision: '1e5', tokenizer: '010', config: {x: .inf, y: 'no'}}",
            "data.domains.code={role: anchor, held_out: x}",
        ],
    ],
)
def test_what_is_dumped_is_read_back_equal(write: Write, overrides: list[str]) -> None:
    recipe = load_recipe(write(), overrides)
    again = load_recipe(write("again.yaml", dump_recipe(recipe)))
    assert again == recipe
    assert again != load_recipe(write(), [*overrides, "seed=17"])


def test_the_name_is_the_file_s_and_is_not_inherited(write: Write) -> None:
    write("parent.yaml", f"name: parent\n{MINIMAL}")
    assert load_recipe(write("child.yaml", "extends: parent")).name == "child"
    assert load_recipe("parent").name == "parent"


def test_later_sources_win_key_by_key(write: Write) -> None:
    write("parent.yaml")
    write("fast.yaml", "lr: {peak: 2e-4, warmup: 3%}\nseed: 1")
    path = write("child.yaml", "extends: [parent, fast.yaml]\nlr: {warmup: 5%}\ndata: {domains: {law: {weight: 2}}}")
    recipe = load_recipe(path, ["seed=3"])
    assert (recipe.lr.peak, str(recipe.lr.warmup), recipe.seed) == (2e-4, "5%", 3)
    assert recipe.data.domains["law"].weight == 2
    assert recipe.data.domains["law"].role == "new"
    assert recipe.where("lr.peak") == "fast.yaml:1: lr.peak"
    assert recipe.where("lr.warmup") == "child.yaml:2: lr.warmup"


def test_null_drops_an_inherited_mapping_and_sets_a_value_to_none(write: Write) -> None:
    write("parent.yaml")
    recipe = load_recipe(
        write("child.yaml", "extends: parent\ndata: {domains: {web: null}}\nevaluation: {every: null}")
    )
    assert list(recipe.data.domains) == ["law"]
    assert recipe.evaluation.every is None


def test_extended_files_are_looked_for_beside_and_among_the_shipped(write: Write) -> None:
    write("folder/parent.yaml")
    assert load_recipe(write("folder/child.yaml", "extends: parent")).seed == 0
    assert load_recipe(write("big.yaml", "extends: llama3-8b-medical")).model.path == "meta-llama/Meta-Llama-3-8B"
    message = refusal(write("lost.yaml", "seed: 1\nextends: nowhere"))
    assert message.startswith("lost.yaml:2: extends a recipe that does not exist (found nowhere")


def test_a_circle_of_extends_is_refused(write: Write) -> None:
    write("b.yaml", "extends: c")
    write("c.yaml", "extends: a")
    message = refusal(write("a.yaml", "extends: b"))
    assert "extend each other in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml" in message


def test_the_same_parent_twice_is_no_circle(write: Write) -> None:
    write("root.yaml")
    write("left.yaml", "extends: root\nseed: 1")
    write("right.yaml", "extends: root\nseed: 2")
    assert load_recipe(write("leaf.yaml", "extends: [left, right]")).seed == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            MINIMAL + "optimizer:\n  weight_decy: 0.1\n",
            "run.yaml:21: optimizer.weight_decy: unknown key. Did you mean weight_decay?",
        ),
        (MINIMAL + "optimiser: {}\n", "run.yaml:20: optimiser: unknown key. Did you mean optimizer?"),
        (
            MINIMAL.replace("domains:", "stages:\n  - {at: 50%, weight: {law: 1}}\n  domains:"),
            "run.yaml:15: data.stages.0.weight: unknown key. Did you mean weights?",
        ),
        (MINIMAL + "peak: 1\n", "run.yaml:20: peak: unknown key. Did you mean lr.peak?"),
        (MINIMAL + "zzz: 1\n", "run.yaml:20: zzz: unknown key. Known here: name, seed, model,"),
        (
            MINIMAL + "logging:\n  wandb: {project: p, api_key: k}\n",
            "run.yaml:21: logging.wandb.api_key: unknown key. A recipe holds no secrets",
        ),
        (
            MINIMAL.replace("weight: 3", "wieght: 3, weight: 3"),
            "run.yaml:15: data.domains.law.wieght: unknown key. Did you mean weight?",
        ),
        (MINIMAL.replace("peak: 1e-4", ""), "run.yaml:18: lr.peak: this key is required. The highest learning rate"),
        (MINIMAL.replace("training: {tokens: 1M}", ""), "training: this key is required"),
        (MINIMAL + "seed: 1\nseed: 2\n", "run.yaml:21: seed: the key appears twice (found another one at run.yaml:20)"),
        (
            MINIMAL.replace("global_rows: 16", "global_rows: 16, global_rows: 8"),
            "run.yaml:17: batch.global_rows: the key appears twice",
        ),
        (MINIMAL + "1: 2\n", "run.yaml:20: a key must be text (found 1)"),
        (MINIMAL + "seed: &x 1\nname: *x\n", "run.yaml:21: aliases are not read (found *x)"),
        (MINIMAL + "seed: !!python/name:os.system ''\n", "run.yaml:20: seed: cannot read the value"),
        (MINIMAL + "seed: [1\n", "this is not YAML"),
        ("- a\n", "run.yaml:1: a recipe is a mapping of sections"),
        ("", "run.yaml: a recipe is a mapping of sections"),
        ("extends: {a: b}\n", "run.yaml:1: extends: cannot extend this"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_clear_line(write: Write, text: str, complaint: str) -> None:
    message = refusal(write("run.yaml", text))
    assert complaint in message
    assert "\n" not in message


def test_every_mistake_is_reported_at_once(write: Write) -> None:
    text = MINIMAL.replace("peak: 1e-4", "peak: high").replace("1M", "1Q").replace("role: new", "role: gnu")
    first, *lines = refusal(write("run.yaml", text)).splitlines()
    assert first == "3 things are wrong with the recipe:"
    assert [re.match(r"  run\.yaml:(\d+): ([a-z.]+): ", line).groups() for line in lines] == [  # type: ignore[union-attr]
        ("15", "data.domains.law.role"),
        ("18", "lr.peak"),
        ("19", "training.tokens"),
    ]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("lr.peek=1", "--set: lr.peek: unknown key. Did you mean peak?"),
        ("lr", "--set: cannot read the override (found lr, expected section.key=value)"),
        ("lr..peak=1", "--set: cannot read the override"),
        ("lr.peak=[1", "--set: this is not YAML"),
        ("model=3", "--set: model: cannot use this value (found 3"),
        ("lr.peak.x=3", "--set: lr.peak: cannot use this value"),
        (
            "data.domains.lau.weight=3",
            "--set: data.domains.lau.role: this key is required. Did you mean the domain law?",
        ),
        ("name=a/b", "--set: name: cannot use this value (found 'a/b', expected letters, digits, - and _, with a"),
        ("data.domains.law.held_out=null", "cannot use this value (found None, expected a list)"),
    ],
)
def test_a_wrong_override_is_one_clear_line(write: Write, override: str, complaint: str) -> None:
    assert complaint in refusal(write(), [override])


def test_an_unknown_name_suggests_the_nearest(write: Write) -> None:
    assert "Did you mean llama3-8b-medical?" in refusal(Path("llama-8b-medical"))
    assert "Did you mean base/llama3-8b?" in refusal(Path("llama3-8b"))


def test_a_name_that_is_both_shipped_and_a_file_is_ambiguous(write: Write) -> None:
    write("debug-tiny.yaml")
    assert "both a shipped recipe and a file in the current directory" in refusal(Path("debug-tiny"))
    with pytest.raises(RecipeError, match="both a shipped"):
        load_recipe("debug-tiny.yaml")
    assert load_recipe("./debug-tiny.yaml").training.tokens == 1_000_000


def test_the_shipped_recipes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (recipes_folder() / "debug-tiny.yaml").is_file()
    monkeypatch.setattr(load, "__file__", str(tmp_path / "lib" / "megacpt" / "recipe" / "load.py"))
    assert recipes_folder() == Path(sys.prefix) / "share" / "megacpt" / "recipes"
    monkeypatch.setenv("MEGACPT_RECIPES", str(tmp_path))
    assert recipes_folder() == tmp_path
