"""The data of a recipe: what is opened, what does not belong together, and what would be read too often."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from megacpt.assemble import data
from megacpt.data.corpus import Corpus, open_corpus
from megacpt.data.history import Settings
from megacpt.data.insertions import Insertion
from megacpt.data.manifest import TokenizerRecord
from megacpt.data.stream import Stream
from megacpt.errors import DataError
from megacpt.parallel.grid import Coordinate
from megacpt.recipe import Resolved
from tests.assemble.recipes import resolved
from tests.data.memory_corpus import MemoryCorpus
from tests.data.test_manifest import write_folder
from tests.data.test_view import corpus_of


def made_by(fingerprint: str | None, kind: str = "huggingface") -> Corpus:
    """A corpus made by a tokenizer; without a fingerprint, nobody knows by which."""
    corpus = cast(Any, MemoryCorpus([20] * 9))
    corpus.tokenizer = fingerprint and TokenizerRecord(
        kind=cast(Any, kind),
        name=f"tokenizer-{fingerprint}",
        fingerprint=fingerprint * 64,
        vocab_size=100,
        bos_id=None,
        eos_id=0,
        adds_bos=False,
        adds_eos=True,
    )
    return corpus


@pytest.mark.parametrize(
    "shards, held_out, model",
    [
        ({"law": "a", "web": "a"}, {"law": "a"}, "a"),
        ({"law": "a", "web": "a"}, {"exam": "a"}, None),
        ({"law": None, "web": "a"}, {"law": None}, "a"),
        ({"law": None, "web": None}, {}, "a"),
    ],
)
def test_equal_and_unknown_tokenizers_pass(
    shards: dict[str, str | None], held_out: dict[str, str | None], model: str | None, tmp_path: Path
) -> None:
    parts = {
        part: {name: made_by(fingerprint) for name, fingerprint in names.items()}
        for part, names in (("shards", shards), ("held_out", held_out))
    }
    data.check_tokenizers(resolved(tmp_path).recipe, parts, model and model * 64)


@pytest.mark.parametrize(
    "shards, held_out, model, said",
    [
        (
            {"law": "a", "web": "b"},
            {},
            None,
            r"web\.shards: .*found tokenizer-b, fingerprint b{12}, .*a{12}, that of domain 'law'",
        ),
        ({"law": "a"}, {"law": "b"}, None, r"law\.held_out: .*that of domain 'law'"),
        ({"law": "b"}, {}, "a", r"law\.shards: .*that of the model's tokenizer"),
        ({"law": None, "web": "b"}, {}, "a", r"web\.shards: .*that of the model's tokenizer"),
    ],
)
def test_another_tokenizer_is_refused(
    shards: dict[str, str | None], held_out: dict[str, str | None], model: str | None, said: str, tmp_path: Path
) -> None:
    parts = {
        part: {name: made_by(fingerprint) for name, fingerprint in names.items()}
        for part, names in (("shards", shards), ("held_out", held_out))
    }
    with pytest.raises(DataError, match=said):
        data.check_tokenizers(resolved(tmp_path).recipe, parts, model and model * 64)


def test_fingerprints_are_compared_within_a_kind(tmp_path: Path) -> None:
    recipe = resolved(tmp_path).recipe
    corpora = {"law": made_by("b", "sentencepiece"), "web": made_by("c", "tiktoken")}
    data.check_tokenizers(recipe, {"shards": corpora}, "a" * 64)
    with pytest.raises(DataError, match=r"web\.held_out: .*that of domain 'law'"):
        data.check_tokenizers(recipe, {"shards": corpora, "held_out": {"web": made_by("d", "sentencepiece")}}, "a" * 64)


def test_only_domains_with_the_part_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def open_corpus(paths: Any) -> Corpus:
        opened.append(paths)
        return made_by("a")

    monkeypatch.setattr(data, "open_corpus", open_corpus)
    recipe = resolved(tmp_path).recipe
    assert list(data.open_corpora(recipe, "shards", 118)) == ["law", "web"]
    assert list(data.open_corpora(recipe, "held_out", 118)) == ["law", "exam"]
    assert [str(paths) for paths in opened] == [
        str(getattr(recipe.data.domains[name], part))
        for part, names in (("shards", ("law", "web")), ("held_out", ("law", "exam")))
        for name in names
    ]


def test_a_vocabulary_larger_than_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "open_corpus", lambda paths: made_by("a"))
    recipe = resolved(tmp_path).recipe
    assert data.open_corpora(recipe, "shards", 100)
    with pytest.raises(
        DataError, match=r"small\.yaml:\d+: data\.domains\.law\.shards: .*found 100 tokens in tok.*at most 99"
    ):
        data.open_corpora(recipe, "shards", 99)


def test_ids_without_a_manifest_are_sampled(tmp_path: Path) -> None:
    ids = np.full(200_000, 7, "<u2")
    ids[9::10] = 2
    ids.tofile(tmp_path / "ids.npy")
    for dtype, known in (("uint16", True), ("uint32", False)):
        recipe = resolved(tmp_path, f"data.domains.web.shards='{tmp_path}/ids.npy?dtype={dtype}&eos_id=2'").recipe
        corpus = open_corpus(recipe.data.domains["web"].shards)
        if known:
            data.check_ids("web", corpus, 118)
        else:
            with pytest.raises(DataError, match=r"web: .*found 458,759 among 4,096 tokens from 0 on.*below 118.*dtype"):
                data.check_ids("web", corpus, 118)


@pytest.mark.parametrize(("eos_id", "is_warned"), [(2, False), (3, True)])
def test_raw_text_that_is_one_long_document_is_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], eos_id: int, is_warned: bool
) -> None:
    ids = np.full(data.LONG_DOCUMENT_TOKENS + 10, 7, "<u2")
    ids[9::10] = 2
    ids.tofile(tmp_path / "ids.npy")
    data.check_ids("web", open_corpus(f"{tmp_path}/ids.npy?dtype=uint16&eos_id={eos_id}"), 118)
    assert ("is the eos_id right?" in capsys.readouterr().err) == is_warned


def test_what_is_missing_is_placed_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"small\.yaml:\d+: data\.domains\.law\.shards: law"):
        data.open_corpora(resolved(tmp_path).recipe, "shards", 118)


def test_a_subset_is_trained_on_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "corpus", [[[1] * 5, [2] * 20, [3] * 7]])
    corpus = open_corpus(tmp_path / "corpus")
    monkeypatch.setattr(data, "open_corpus", lambda paths: corpus)
    run = resolved(tmp_path, "data.domains.law.where=num_tokens > 6")
    corpora = data.open_corpora(run.recipe, "shards", 118)
    assert [corpora[name].num_tokens for name in ("law", "web")] == [27, 32]
    assert data.open_corpora(run.recipe, "held_out", 118)["law"] is corpus
    described = data.describe(Stream(corpora, data.history(run, corpora)), num_steps=1)
    assert described["law"].endswith("epochs; where num_tokens > 6 removes 1 documents, 5 tokens")


def test_parts_are_said_and_weighted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path / "corpus", [[[1] * 60, [2] * 20, [3] * 40]], source=[["a", None, "b"]])
    monkeypatch.setattr(data, "open_corpus", lambda paths: corpus)
    parts = "data.domains.web={parts_by: source, part_weights: {b: 0.5, none: 0}}"
    run = resolved(tmp_path, parts, "data.domains.law.weight=0")
    corpora = data.open_corpora(run.recipe, "shards", 118)
    stream = Stream(corpora, data.history(run, corpora), parts=data.divided(run.recipe, corpora))
    assert data.describe(stream, num_steps=1)["web"].endswith("epochs; parts: a 50.0%, b 33.3%, none 16.7%")
    with data.loader(run, stream, Coordinate(0, 0, 0), first_step=0) as loader:
        batches = loader.step(0)
        for token, weight in ((1, 1.0), (2, 0.0), (3, 0.5)):
            weights = torch.cat([batch.weights[batch.labels == token] for batch in batches])
            assert (weights * loader.global_weight(0)).unique().tolist() == pytest.approx([weight])
    assert stream.counted == ("law", "web", "web/a", "web/b", "web/none")

    for change, said in (
        ("parts_by: site", r"data\.domains\.web\.parts_by: the documents have no column 'site'"),
        ("part_weights: {c: 2}", r"web\.part_weights: no document .* part 'c' \(expected one of a, b, none"),
    ):
        recipe = resolved(tmp_path, parts, f"data.domains.web={{{change}}}").recipe
        with pytest.raises(DataError, match=said):
            data.divided(recipe, corpora)


def test_what_a_share_holds_out_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "corpus", [[[number] * number for number in range(1, 60)]])
    corpus = open_corpus(tmp_path / "corpus")
    monkeypatch.setattr(data, "open_corpus", lambda paths: corpus)
    split = "held_out: [], held_out_share: 30%, held_out_by: num_tokens"
    recipe = resolved(tmp_path, f"data.domains.law={{{split}, where: num_tokens > 9}}").recipe
    parts = [
        set(corpora["law"].read(0, corpora["law"].num_tokens).tolist())
        for corpora in (data.open_corpora(recipe, part, 118) for part in ("shards", "held_out"))
    ]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] >= set(range(10, 60))
    assert 5 < len(parts[1]) < 31  # 18 expected, standard deviation 3.5


def test_an_order_is_read_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "corpus", [[[1] * 40, [2] * 20, [3] * 30]])
    corpus = open_corpus(tmp_path / "corpus")
    monkeypatch.setattr(data, "open_corpus", lambda paths: corpus)
    run = resolved(tmp_path, "data.domains.law={order: ascending, order_by: num_tokens, order_window: 32}")
    corpora = data.open_corpora(run.recipe, "shards", 118)
    stream = Stream(corpora, data.history(run, corpora))
    assert corpora["law"].read(0, 90).tolist() == [2] * 20 + [3] * 30 + [1] * 40
    assert [
        {*pair} for pair in stream.locate(np.flatnonzero(stream.locate(range(6)).domain == 0)).row[:4].reshape(2, 2)
    ] == [{0, 1}, {2, 3}]
    assert "epochs, ascending by num_tokens, shuffled within 32 tokens" in data.describe(stream, 1)["law"]
    assert "shuffled" not in data.describe(stream, 1)["web"]
    with pytest.raises(DataError, match=r"--set: data\.domains\.law: order_by year: .*no column"):
        data.open_corpora(
            resolved(tmp_path, "data.domains.law={order: descending, order_by: year}").recipe, "shards", 118
        )


CORPORA: dict[str, Any] = {"law": MemoryCorpus([20] * 40), "web": MemoryCorpus([20] * 40, first_token=10_000)}


def rows(run: Resolved) -> Stream:
    """The rows of a fresh run."""
    return Stream(CORPORA, data.history(run, CORPORA))


def test_the_stream_mixes_the_weighted_domains(tmp_path: Path) -> None:
    stream = rows(resolved(tmp_path, "seed=3"))
    assert tuple(stream.names) == ("law", "web")
    assert stream.history.seed == 3
    described = data.describe(stream, num_steps=8)
    assert described["law"] == "75.0% of the tokens: 768 (768 of them different), 0.98 epochs"
    assert described["web"].startswith("25.0% of the tokens: 256 ")


def test_insertions_that_came_too_late_are_told_from_others(tmp_path: Path) -> None:
    run = resolved(tmp_path)
    inserted = [Insertion("a", (1, 2, 3), position) for position in (10, 700, 800)]
    records = data.records(run.recipe, CORPORA, inserted)
    history = rows(run).history.replan(5, data.plan(run), records)  # 128 tokens a step
    told = data.describe(Stream(CORPORA, history, inserted), num_steps=8)["insertions"]
    assert told == "6 tokens in 2 places; 1 place before step 6 came too late"
    whole = Stream(CORPORA, data.history(run, CORPORA, inserted), inserted)
    assert data.describe(whole, num_steps=8)["insertions"] == "9 tokens in 3 places"


def test_insertions_stay_where_they_are_on_other_ranks(tmp_path: Path) -> None:
    """Where the ranks round the global batch, the whole steps of the run have other tokens in all."""
    (tmp_path / "canaries.jsonl").write_text(
        '{"name": "a", "tokens": [1, 2], "at": ["50%"]}\n{"name": "b", "tokens": [1, 2, 3], "copies": 40}\n'
    )
    keys = ["batch.global_rows=null", "batch.global_tokens=1920", f"data.insertions=[{tmp_path}/canaries.jsonl]"]
    runs = [resolved(tmp_path, *keys, world_size=size) for size in (4, 7)]
    assert runs[0].total_tokens != runs[1].total_tokens
    first, second = (data.insertions(run, 118, None) for run in runs)
    assert first == second and first[0].position == 6400


def test_many_epochs_are_warned_of_and_hopelessly_many_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resolved(tmp_path, "data.domains.web.max_epochs=5")  # 600 rows of law, of a corpus of 49; 200 of web
    data.check_epochs(run.recipe, rows(run), run.num_steps)
    (said,) = capsys.readouterr().err.splitlines()
    assert "domain law is read 12.2 times, more than its max_epochs 4: 8,816 of its 9,600 tokens are repeated" in said

    run = resolved(tmp_path, "training.tokens=25600")
    with pytest.raises(DataError, match=r"law\.max_epochs: the run would read domain 'law' 24\.5 times .*at most 16"):
        data.check_epochs(run.recipe, rows(run), run.num_steps)
    run = resolved(tmp_path, "training.tokens=25600", "data.domains.law.max_epochs=25", "data.domains.web.max_epochs=9")
    data.check_epochs(run.recipe, rows(run), run.num_steps)


def test_an_exhausted_domain_leaves_or_ends_the_run(tmp_path: Path) -> None:
    run = resolved(tmp_path, "data.domains.law={max_epochs: 2, when_exhausted: stop}")
    stopped, same = data.bounded(run, rows(run))
    assert stopped.last_step == 16 and same.report(16)[0].epochs <= 2 < same.report(17)[0].epochs

    run = resolved(tmp_path, "data.domains.law={max_epochs: 2, when_exhausted: renormalise}")
    whole, left = data.bounded(run, rows(run))
    assert whole.last_step == run.last_step
    assert left.history.settings(15) == run_settings(run) and [*left.history.settings(16).weights] == ["web"]
    assert left.report(run.last_step)[0].epochs <= 2
    assert data.bounded(whole, left) == (whole, left), "a resume changes nothing more"


def test_a_domain_that_was_read_too_often_before_leaves_where_the_run_goes_on(tmp_path: Path) -> None:
    run = resolved(tmp_path, "data.domains.law={max_epochs: 2, when_exhausted: renormalise}")
    before = rows(run)  # as if law could have been read for ever until step 30
    _, left = data.bounded(run, before, first_step=30)
    assert left.history.settings(29) == run_settings(run) and [*left.history.settings(30).weights] == ["web"]
    assert left.history.first_sample(30) == before.history.first_sample(30)
    assert data.bounded(run, left, first_step=35)[1].history == left.history, "a resume changes nothing more"
    run = resolved(tmp_path, "data.domains.law={max_epochs: 2, when_exhausted: stop}")
    assert data.bounded(run, before, first_step=30)[0].last_step == 30


def test_domains_are_exhausted_sooner_by_what_is_left_out_and_by_those_that_leave(tmp_path: Path) -> None:
    exhausted = "{max_epochs: 2, when_exhausted: %s}"
    run = resolved(tmp_path, f"data.domains.law={exhausted % 'renormalise'}")
    left_out = rows(run).history.jump(12, 4 * run_settings(run).global_rows)
    _, left = data.bounded(run, rows(run).with_history(left_out))
    assert [*left.history.settings(12).weights] == ["web"], "as at step 16, had there been no jump of four steps"
    assert left.history.settings(11) == run_settings(run), "steps that were done are not touched"

    # Law leaves at step 16; the rows of web last to a later step, which is nearer than if law had stayed.
    alone = resolved(tmp_path, f"data.domains.web={exhausted % 'stop'}")
    both = resolved(tmp_path, f"data.domains.web={exhausted % 'stop'}", f"data.domains.law={exhausted % 'renormalise'}")
    ends = [data.bounded(run, rows(run))[0].last_step for run in (alone, both)]
    assert 16 < ends[1] < ends[0] < run.last_step


def test_a_run_ends_where_all_its_domains_are_exhausted(tmp_path: Path) -> None:
    exhausted = "{max_epochs: 2, when_exhausted: renormalise}"
    run = resolved(tmp_path, f"data.domains.web={exhausted}", f"data.domains.law={exhausted}")
    ended, left = data.bounded(run, rows(run))
    assert 16 < ended.last_step < run.last_step
    assert all(1.5 < domain.epochs <= 2 for domain in left.report(ended.last_step))
    assert data.bounded(ended, left)[0] == ended, "a resume changes nothing more"


def test_a_domain_that_left_is_said_without_its_text(tmp_path: Path) -> None:
    run = resolved(tmp_path, "data.packing=best_fit")
    history = rows(run).history.set_weights(4, {"law": 1})
    described = data.describe(Stream({"law": CORPORA["law"]}, history), num_steps=8)
    assert described["web"].startswith("12.5% of the tokens: 128 ")


def run_settings(run: Resolved) -> Settings:
    return data.plan(run)[0].settings


def test_ranks_share_the_global_batch(tmp_path: Path) -> None:
    run = resolved(
        tmp_path,
        "batch.micro_rows=2",
        "data.domains.law.target_weight=0.6",
        "data.domains.web.target_weight=0.4",
        world_size=2,
    )
    stream = rows(run)
    batches = []
    for rank in range(2):
        with data.loader(run, stream, Coordinate(pipeline=0, data=rank, tensor=0), first_step=3) as loader:
            batches += loader.step(3)
    assert len(batches) == 4 and all(batch.input_ids.shape == (2, 16) for batch in batches)
    assert sum(batch.weights.sum().item() for batch in batches) == pytest.approx(1.0, rel=1e-6)
    # Sampled 3 to 1, aimed at 3 to 2: a label of web counts twice as much, wherever it lies.
    weights = {
        domain: torch.cat([batch.weights[batch.domains == domain] for batch in batches]).max().item()
        for domain in (0, 1)
    }
    assert weights[1] == pytest.approx(2 * weights[0])


def test_the_objective_of_target_weights_is_told_and_extreme_ones_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert data.describe_objective(resolved(tmp_path).recipe, rows(resolved(tmp_path)).history) == {}
    targets = ["data.domains.law.target_weight=1", "data.domains.web.target_weight=9"]
    run = resolved(tmp_path, *targets, "data.stages=[{at: 50%, weights: {law: 1, web: 9}}]")
    with caplog.at_level("WARNING"):
        told = data.describe_objective(run.recipe, rows(run).history)
    assert told == {
        "objective": "law 14.3% (loss weight 0.2), web 85.7% (loss weight 3.6)",
        "objective from 6,400": "law 10.0% (loss weight 1), web 90.0% (loss weight 1)",
    }
    assert "the loss weight of law is clipped to 0.2" in caplog.text


def test_held_out_text_is_cut_as_the_recipe_says(tmp_path: Path) -> None:
    run = resolved(tmp_path, "evaluation.tokens_per_domain=160", "data.document_mask=false")
    texts = data.held_out(run.recipe, {"exam": CORPORA["law"]})
    assert texts["exam"].num_tokens == 160 and not texts["exam"].document_mask
