"""`megacpt stream`: which rows a run reads when, from the data history in its checkpoint alone.

No shard is opened: the order is a function of the history, which names the sizes of all texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megacpt.errors import DataError, as_argument
from megacpt.units import counted, parse_count

if TYPE_CHECKING:
    from megacpt.data.history import CorpusRecord
    from megacpt.data.stream import Stream

_SAMPLES_AT_A_TIME = 1 << 12


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="list samples: step, domain, epoch, row, tokens")
    show.add_argument(
        "run_folder", type=Path, metavar="RUN", help="a run folder (its newest checkpoint) or a checkpoint"
    )
    show.add_argument(
        "--from", type=as_argument(parse_count), default=0, metavar="N", dest="first", help="first sample (default: 0)"
    )
    show.add_argument(
        "--count", type=as_argument(parse_count), default=16, metavar="K", help="how many samples (default: 16)"
    )
    show.set_defaults(action=_show)
    history = actions.add_parser("history", help="list what happened to the data, and what is planned")
    history.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder or a checkpoint")
    history.set_defaults(action=_history)
    diff = actions.add_parser("diff", help="find the first step at which two runs read different rows")
    diff.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder or a checkpoint")
    diff.add_argument("other", type=Path, metavar="OTHER", help="another one")
    diff.set_defaults(action=_diff)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked."""
    result: int = arguments.action(arguments)
    return result


def read_stream(path: Path) -> tuple[Stream, int]:
    """The stream of a run folder or checkpoint, without texts, and the steps done there.

    Raises:
        CheckpointError: there is no complete checkpoint.
        DataError: its data history cannot be read.
    """
    from megacpt.checkpoint.folder import find_checkpoint, read_state
    from megacpt.data.history import History
    from megacpt.data.stream import Stream
    from megacpt.errors import CheckpointError

    checkpoint = find_checkpoint(path)
    state = read_state(checkpoint)
    if "data" not in state:
        raise CheckpointError("the checkpoint has no data history", where=str(checkpoint))
    return Stream({}, History.from_json(state["data"])), state["step"]


def _show(arguments: argparse.Namespace) -> int:
    from megacpt.data.mixture import MAX_SAMPLES

    stream, _ = read_stream(arguments.run_folder)
    first, stop = arguments.first, arguments.first + arguments.count
    if stop > MAX_SAMPLES:
        raise DataError("no run has so many samples", found=f"{stop:,}", expected=f"at most {MAX_SAMPLES:,}")
    widest = max(map(len, stream.names))
    print(f"{'sample':>12} {'step':>9}  {'domain':{widest}} {'epoch':>5} {'row':>10}  tokens of the domain")
    for begin in range(first, stop, _SAMPLES_AT_A_TIME):
        samples = range(begin, min(begin + _SAMPLES_AT_A_TIME, stop))
        location = stream.locate(samples)
        for sample, domain, _, epoch, row, cut in zip(samples, *(part.tolist() for part in location), strict=True):
            step = stream.history.step_of(sample)
            first_token, end = stream.cuts[domain][cut].tokens_of(row)
            when = "never" if step is None else f"{step + 1}"
            tokens = f"{first_token:,} to {end - 1:,}"
            print(f"{sample:>12} {when:>9}  {stream.names[domain]:{widest}} {epoch:>5} {row:>10}  {tokens}")
    return 0


def _history(arguments: argparse.Namespace) -> int:
    stream, done = read_stream(arguments.run_folder)
    history = stream.history
    events: list[tuple[int, str]] = []
    for generation in history.corpora:
        record = generation.record
        documents, shards = counted(record.documents, "document"), counted(len(record.shards), "shard")
        text = f"{documents}, {record.tokens:,} tokens in {shards}"
        text += "" if record.order == "shuffled" else f", {record.order}".replace("as_stored", "as stored")
        text += "" if record.packing == "concat" else f", packed by {record.packing}".replace("_", " ")
        events.append((generation.from_step, f"domain {generation.domain}: {text}"))
    for segment in history.segments:
        settings = segment.settings
        total = sum(settings.weights.values())
        shares = ", ".join(f"{name} {weight / total:.1%}" for name, weight in settings.weights.items() if weight)
        batch = f"{settings.global_rows} rows x {settings.sequence_length}"
        events.append((segment.from_step, f"{shares}; {batch}, from token {history.tokens(segment.from_step):,}"))
    events += [(jump.at_step, f"{jump.num_samples:,} samples left out: {jump.reason}") for jump in history.jumps]
    events += [(accepted.at_step, f"accepted: {accepted.what}") for accepted in history.accepted]
    for step, what in sorted(events, key=lambda event: event[0]):
        print(f"after step {step:>8}  {'planned: ' if step > done else ''}{what}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from megacpt.data.insertions import DOMAIN as INSERTIONS

    stream, done = read_stream(arguments.run_folder)
    other, other_done = read_stream(arguments.other)
    if stream.history.latest_corpus(INSERTIONS) != other.history.latest_corpus(INSERTIONS):
        print("what is inserted differs, and is not compared")
    num_steps = min(done, other_done)
    parting = stream.history.parting(other.history)
    step = first_difference(stream, other, num_steps if parting is None else min(parting, num_steps), num_steps)
    if step is None:
        print(f"the same rows in all {num_steps:,} steps that both have done")
        return 0
    print(f"the same rows in {step:,} steps; they differ in step {step + 1:,}")
    for path, each in ((arguments.run_folder, stream), (arguments.other, other)):
        settings, first = each.history.settings(step), each.history.first_sample(step)
        print(f"  {path}: {settings.global_rows} rows of {settings.sequence_length} from sample {first:,}")
    for name in other_texts(stream, other, step):
        print(f"  the text of domain {name} is another")
    return 1


def first_difference(stream: Stream, other: Stream, first_step: int, num_steps: int) -> int | None:
    """The first step in [first_step, num_steps) at which two streams read different rows; None if there is none."""
    for step in range(first_step, num_steps):
        rows = rows_of(stream, step)
        if rows != rows_of(other, step) or {name for name, _, _ in rows} & {*other_texts(stream, other, step)}:
            return step
    return None


def other_texts(stream: Stream, other: Stream, step: int) -> list[str]:
    """The domains whose rows of equal number hold other text in two streams; shards behind the others change none."""
    texts, others = (
        {each.domain: each.record for each in one.history.corpora if each.from_step <= step} for one in (stream, other)
    )

    def is_same(one: CorpusRecord, two: CorpusRecord) -> bool:
        same = ("tokenizer", "packing", "subset")
        shards = zip(one.shards, two.shards, strict=False)
        return all(getattr(one, key) == getattr(two, key) for key in same) and all(a == b for a, b in shards)

    return [name for name in texts if name in others and not is_same(texts[name], others[name])]


def rows_of(stream: Stream, step: int) -> list[tuple[str, int, int]]:
    """(domain, sequence length, row) of each sample of a step."""
    location = stream.locate(stream.samples(step))
    places = zip(location.domain.tolist(), location.cut.tolist(), location.row.tolist(), strict=True)
    return [(stream.names[domain], stream.cuts[domain][cut].sequence_length, row) for domain, cut, row in places]
