"""What is continued, and what a recipe may change on the way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megacpt.assemble.data import bounded, plan
from megacpt.assemble.resume import (
    FREE,
    _candidates,
    check_continues,
    choose_checkpoint,
    continued_history,
    run_folder,
    state,
)
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import STATE
from megacpt.data.history import CorpusRecord, History, Settings
from megacpt.data.stream import Stream, record_of
from megacpt.errors import CheckpointError
from megacpt.recipe import Resolved
from tests.assemble.recipes import resolved
from tests.checkpoint.states import save_checkpoint
from tests.data.memory_corpus import MemoryCorpus

TEXTS = {name: CorpusRecord(180, 9, "t", ("one", "two")) for name in ("law", "web")}


def history(values: Resolved) -> History:
    return History.begin(0, plan(values), TEXTS)


def save(run: Path, values: Resolved, step: int = 5) -> Path:
    """A checkpoint of `values` in the run folder."""
    return save_checkpoint(run, **state(values, history(values), step))


def test_the_state_says_where_the_run_stands(tmp_path: Path) -> None:
    saved = json.loads((save(tmp_path, resolved(tmp_path)) / "state.json").read_text())
    assert (saved["step"], saved["tokens"], saved["dtype"]) == (5, 5 * 128, "float32")
    assert saved["layout"] == {"pipeline": 1, "tensor": 1, "data": 1, "ZeRO": 1}
    assert saved["recipe"]["lr"]["peak"] == 1e-3


@pytest.mark.parametrize("change", ["name=other", "logging.tensorboard=false", "training.stop_at_step=7"])
def test_an_equal_recipe_continues(change: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    assert check_continues(resolved(tmp_path), checkpoint)["step"] == 5
    assert check_continues(resolved(tmp_path, change), checkpoint)["step"] == 5


FREE_CHANGES = {
    "name": "name=other",
    "logging": "logging.folder=elsewhere",
    "evaluation": "evaluation.every=50%",
    "forgetting": "forgetting.law=0.02",
    "checkpoint": "checkpoint.keep_last=7",
    "training.stop_at_step": "training.stop_at_step=9",
    "data.domains.*.held_out": "data.domains.web.held_out=new-web",
    "loss.kernel": "loss.kernel=reference",
    "data.special_tokens": "data.special_tokens=as_built",
    "guard": "guard.on_spike=rollback",
    "parallel": "parallel.zero_stage=0",
    "batch.micro_rows": "batch.micro_rows=2",
    "model.attention": "model.attention=eager",
    "model.vocab_multiple": "model.vocab_multiple=64",
    "optimizer.reset": "optimizer.reset=true",
}


@pytest.mark.parametrize("key", FREE)
def test_what_does_not_change_the_computation_is_free(key: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    changed = resolved(tmp_path, FREE_CHANGES[key])
    assert changed.recipe != resolved(tmp_path).recipe
    check_continues(changed, checkpoint)


def test_a_controller_goes_on_with_the_held_out_text_that_it_began_with(tmp_path: Path) -> None:
    steered = [f"data.domains.{name}.held_out={name}" for name in ("law", "web")] + ["mixture.controller=ddk"]
    checkpoint = save(tmp_path, resolved(tmp_path, *steered))
    for change in ("evaluation.tokens_per_domain=9K", "data.domains.web.held_out=new-web"):
        with pytest.raises(CheckpointError, match=change.partition("=")[0]):
            check_continues(resolved(tmp_path, *steered, change), checkpoint)
    check_continues(resolved(tmp_path, *steered, "evaluation.every=50%"), checkpoint)


def test_the_page_names_what_is_free() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    promise = page.partition("**What may change.**")[2].partition("must be as it was")[0]
    assert [key for key in FREE if f"`{key}`" not in promise] == []


@pytest.mark.parametrize(
    "changes, said",
    [
        (["seed=1"], [r"seed: 0 then, 1 in .*seed"]),
        (["lr.peak=2e-3"], [r"lr\.peak: 0\.001 then, 0\.002"]),
        (["training.tokens=25600"], [r"training\.tokens: 12800 then, 25600"]),
        (["data.domains.law.max_epochs=3"], [r"data\.domains\.law\.max_epochs: 4\.0 then, 3\.0"]),
        (["data.domains.law.shards=other"], [r"data\.domains\.law\.shards: .*law.* then, .*other"]),
        (["loss.z_loss=0.1"], [r"loss\.z_loss: 0\.0 then, 0\.1"]),
        (
            ["data.domains.new={role: replay, shards: x, weight: 1}"],
            [r"data\.domains\.new: not there then, .*--accept data\.domains\.new"],
        ),
        (["seed=1", "lr.peak=2e-3"], ["seed: 0 then", r"lr\.peak: 0\.001"]),
    ],
)
def test_what_changes_the_computation_is_refused_all_at_once(
    changes: list[str], said: list[str], tmp_path: Path
) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    for part in said:
        with pytest.raises(CheckpointError, match=rf"the recipe contradicts the checkpoint: .*{part}"):
            check_continues(resolved(tmp_path, *changes), checkpoint)


@pytest.mark.parametrize("accepted", ["lr.peak", "lr", "*.peak", "*"])
def test_accepted_keys_and_sections(accepted: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    check_continues(resolved(tmp_path, "lr.peak=2e-3"), checkpoint, (accepted,))


@pytest.mark.parametrize("accepted", ["lr.pea", "l", "lr.peak.value", "peak", "lr.min", ""])
def test_other_keys_accept_nothing(accepted: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    with pytest.raises(CheckpointError, match=r"lr\.peak"):
        check_continues(resolved(tmp_path, "lr.peak=2e-3"), checkpoint, (accepted,))


def test_a_key_that_the_checkpoint_does_not_know_stands_for_its_default(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    state = json.loads((checkpoint / STATE).read_text())
    del state["recipe"]["data"]["packing"], state["recipe"]["loss"]["z_loss"]
    (checkpoint / STATE).write_text(json.dumps(state))
    check_continues(resolved(tmp_path), checkpoint)
    with pytest.raises(CheckpointError, match=r"loss\.z_loss: 0\.0 then, 0\.1"):
        check_continues(resolved(tmp_path, "loss.z_loss=0.1"), checkpoint)


def test_parts_may_change_where_they_are_only_measured(tmp_path: Path) -> None:
    law = "data.domains.law"
    measured = save(tmp_path / "measured", resolved(tmp_path, f"{law}.parts_by=source"))
    check_continues(resolved(tmp_path), measured)
    check_continues(resolved(tmp_path, f"{law}.parts_by=site"), measured)
    weighted = f"{law}={{parts_by: source, part_weights: {{forum: 0.5}}}}"
    with pytest.raises(CheckpointError, match=r"law\.part_weights\.forum: None then, 0\.5"):
        check_continues(resolved(tmp_path, weighted), measured)
    check_continues(resolved(tmp_path, weighted), measured, (f"{law}.parts_by", f"{law}.part_weights"))
    checkpoint = save(tmp_path / "weighted", resolved(tmp_path, weighted))
    with pytest.raises(CheckpointError, match=r"law\.parts_by: 'source' then, 'site'"):
        check_continues(resolved(tmp_path, weighted.replace("source", "site")), checkpoint)


def test_another_layout_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(tmp_path, resolved(tmp_path))
    check_continues(resolved(tmp_path, "parallel.tensor=2", "parallel.zero_stage=2", world_size=4), checkpoint)
    said = "pipeline 1, tensor 1, data 1, ZeRO 1 goes on as pipeline 1, tensor 2, data 2, ZeRO 2"
    assert said in capsys.readouterr().err


def continued(folder: Path, now: Resolved, texts: dict[str, CorpusRecord], *accepted: str) -> History:
    """The history that goes on from a checkpoint of the small recipe, through the JSON of its state."""
    saved = json.loads((save(folder, resolved(folder)) / "state.json").read_text())
    return continued_history(saved, plan(now), texts, folder, accepted, {"law": ["law/a", "law/b"]})


def test_an_equal_recipe_goes_on_with_the_stored_history(tmp_path: Path) -> None:
    changed = history(resolved(tmp_path)).set_weights(3, {"law": 1}).jump(4, 16)
    saved = {"step": 5, "data": json.loads(json.dumps(changed.to_json()))}
    assert continued_history(saved, plan(resolved(tmp_path)), TEXTS, tmp_path) == changed


def test_an_edited_mixture_holds_from_the_checkpoint_on(tmp_path: Path) -> None:
    now = resolved(tmp_path, "data.domains.web.weight=3", "batch.global_rows=4")
    went_on = continued(tmp_path, now, TEXTS)
    assert went_on.settings(4) == Settings({"law": 0.75, "web": 0.25}, 16, 8)
    assert went_on.settings(5) == Settings({"law": 0.5, "web": 0.5}, 16, 4)
    assert (went_on.first_sample(5), went_on.first_sample(6)) == (40, 44)


def test_a_checkpoint_of_a_version_with_other_keys_goes_on(tmp_path: Path) -> None:
    now = resolved(tmp_path)
    saved = json.loads((save(tmp_path, now) / "state.json").read_text())
    expected = continued_history(saved, plan(now), TEXTS, tmp_path, recipe=now.recipe)
    saved["recipe"]["no_more"] = True
    assert continued_history(saved, plan(now), TEXTS, tmp_path, recipe=now.recipe) == expected


def test_a_domain_that_may_be_read_more_often_leaves_later(tmp_path: Path) -> None:
    """Law has 11 rows and gives 6 of 8 in a step; its end was planned by the recipe that wrote the checkpoint."""
    leaves = "data.domains.law={max_epochs: %d, when_exhausted: renormalise}"
    texts = {name: MemoryCorpus([20] * 9) for name in TEXTS}
    records = {name: record_of(text) for name, text in texts.items()}

    def leaving(now: Resolved, saved: dict[str, Any], records: dict[str, CorpusRecord]) -> tuple[int, dict[str, Any]]:
        """The first step without law, and what the checkpoint of the run that goes on holds."""
        accepted = ["data.domains.law.shards"]
        history = continued_history(saved, plan(now), records, tmp_path, accepted, recipe=now.recipe)
        _, rows = bounded(now, Stream(texts, history))
        without = [step for step in range(99) if "law" not in rows.history.settings(step).weights]
        return without[0], json.loads(json.dumps(state(now, rows.history, 5)))

    was = resolved(tmp_path, leaves % 4)
    saved = json.loads(json.dumps(state(was, History.begin(0, plan(was), records), 1)))
    step, saved = leaving(was, saved, records)
    assert (step, saved["step"]) == (7, 5)
    assert leaving(was, saved, records)[0] == 7
    assert leaving(resolved(tmp_path, leaves % 8), saved, records)[0] == 14
    grown = records["law"].tokens * 2 - 1
    more = records | {"law": replace(records["law"], tokens=grown, shards=("another",))}
    assert leaving(was, saved, more)[0] > 7


@pytest.mark.parametrize(
    "now, said",
    [
        (
            CorpusRecord(240, 12, "t", ("one", "two", "three")),
            r"tokens 180 before, 240 now.*1 shard added behind the 2",
        ),
        (CorpusRecord(180, 9, "t", ("two", "one")), "domain law: the shards come in another order"),
        (CorpusRecord(180, 9, "t", ("one", "2")), r"domain law: the content of shard 2 \(law/b\) of 2 changed"),
        (CorpusRecord(180, 9, "u", ("one", "two")), "domain law: tokenizer t before, u now"),
        (CorpusRecord(180, 9, "t", ("one", "two"), subset="s"), "all documents before, a part of the documents now"),
        (CorpusRecord(90, 4, "t", ("one",)), "2 shards before, 1 now, and not only added ones"),
    ],
)
def test_other_text_is_refused_or_accepted_on_record(now: CorpusRecord, said: str, tmp_path: Path) -> None:
    texts, values = TEXTS | {"law": now}, resolved(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=rf"the data is not that of the checkpoint: .*{said}.*: --accept data\.domains\.law\.shards\.",
    ):
        continued(tmp_path, values, texts)
    with pytest.raises(CheckpointError, match="the data is not that"):
        continued(tmp_path, values, texts, "data.domains.web.shards")
    went_on = continued(tmp_path, values, texts, "data.domains.law.shards")
    assert went_on.latest_corpus("law") == now
    (accepted,) = went_on.accepted
    assert accepted.at_step == 5 and re.search(said, accepted.what)


def test_other_insertions_are_refused_or_accepted_on_record(tmp_path: Path) -> None:
    values = resolved(tmp_path)
    texts = [TEXTS | {"insertions": CorpusRecord(tokens, 3, shards=(f"{tokens}",))} for tokens in (30, 33)]
    began = History.begin(0, plan(values), texts[0])
    saved = {"step": 5, "data": json.loads(json.dumps(began.to_json()))}
    with pytest.raises(
        CheckpointError, match=r"domain insertions: tokens 30 before, 33 now.*--accept data\.insertions"
    ):
        continued_history(saved, plan(values), texts[1], tmp_path, ["data.domains.law.shards"])
    went_on = continued_history(saved, plan(values), texts[1], tmp_path, ["data.insertions"])
    assert went_on.latest_corpus("insertions") == texts[1]["insertions"] and went_on.accepted
    assert went_on.first_sample(9) == began.first_sample(9)


def test_a_fresh_run_starts_in_an_empty_folder(tmp_path: Path) -> None:
    assert choose_checkpoint(None, tmp_path / "run", Channel()) is None
    assert choose_checkpoint("auto", tmp_path / "run", Channel()) is None


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_folder_that_holds_a_run_is_not_begun_anew(has_checkpoint: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if has_checkpoint:
        save(run, resolved(tmp_path))
    else:
        (run / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError, match=r"already holds a run\. .*--resume auto.*--set name=NEW"):
        choose_checkpoint(None, run, Channel())


def test_the_newest_or_the_one_named_is_continued(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    older, newer = (save(run, resolved(tmp_path), step) for step in (5, 12))
    elsewhere = save(other, resolved(tmp_path), 3)
    assert choose_checkpoint("auto", run, Channel()) == newer
    assert choose_checkpoint(str(older), run, Channel()) == older
    (older / "state.json").write_text('{"milestones": ["pre_anneal"]}')
    assert _candidates(str(older.with_name("pre_anneal")), run) == ([older], None)
    assert choose_checkpoint(str(other), run, Channel()) == elsewhere
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        choose_checkpoint(str(tmp_path / "nowhere"), run, Channel())


def test_the_run_folder_is_named_after_the_run(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, "logging.folder=/data/runs", "name=pilot").recipe
    assert run_folder(recipe) == Path("/data/runs/pilot")
