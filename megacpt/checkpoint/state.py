"""The state of training on disk: fp32 master weights and optimizer moments, readable under any layout.

    tensors/master-00003.safetensors    what rank 3 owns of the masters: Hugging Face name -> its elements, flat
    tensors/exp_avg-00003.safetensors   the same of each of the optimizer's moments
    engine.json                         counters; of every tensor its shape, digests, and which rank has which part

Weights in the training dtype are not stored: they are the masters, rounded. Every rank writes what it owns and no rank
gathers anything, so a save is as fast as the ranks' disks together. A load reads ranges of the same files, in whole
rows where a tensor is cut along its columns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megacpt.checkpoint.channel import Channel
from megacpt.errors import CheckpointError
from megacpt.optim.adamw import WEIGHTS
from megacpt.parallel.fragments import MASTER, Fragment, Held, digests, overlaps
from megacpt.parallel.slices import Slice

TENSORS = "tensors"
ENGINE = "engine.json"


class Snapshot:
    """A copy in host memory of what this rank writes: training may go on while it is written.

    Args:
        held: what the rank holds.
    """

    def __init__(self, held: Iterable[Held]) -> None:
        self.fragments: list[Fragment] = []
        self.values: dict[str, dict[str, torch.Tensor]] = {}
        for part in held:
            if part.copy == 0:
                self.fragments.append(part.fragment)
                for kind, tensor in part.values.items():
                    self.values.setdefault(kind, {})[part.fragment.name] = tensor.to("cpu", copy=True)

    def num_bytes(self) -> int:
        """What the files will take, but for their headers."""
        return sum(tensor.nbytes for tensors in self.values.values() for tensor in tensors.values())

    def write(self, folder: Path, rank: int) -> dict[str, Any]:
        """Write a file per kind into `folder`/tensors, flushed to disk.

        Returns:
            what rank 0 has to know to write engine.json and the manifest.
        """
        files = {}
        (folder / TENSORS).mkdir(exist_ok=True)
        for kind, tensors in self.values.items():
            path = folder / _file(kind, rank)
            save_file(tensors, path, metadata={"format": "pt"})
            files[_file(kind, rank)] = file_record(path)
        fragments = []
        for fragment in self.fragments:
            values = {kind: tensors[fragment.name] for kind, tensors in self.values.items() if fragment.name in tensors}
            piece = fragment.piece.to_json() if fragment.piece else None
            place = {"rank": rank, "start": fragment.start, "stop": fragment.stop, "slice": piece}
            fragments.append((fragment.name, fragment.shape, place, digests(fragment, values)))
        return {"files": files, "fragments": fragments}


def file_record(path: Path) -> dict[str, Any]:
    """Flush a file to disk; its size and SHA-256, as the manifest has them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def engine_index(counters: dict[str, int], notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The content of engine.json from what all ranks' `Snapshot.write` returned."""
    tensors: dict[str, dict[str, Any]] = {}
    for note in notes:
        for name, shape, place, sums in note["fragments"]:
            tensor = tensors.setdefault(name, {"shape": list(shape), "digests": {}, "fragments": []})
            tensor["fragments"].append(place)
            for kind, digest in sums.items():
                tensor["digests"][kind] = (tensor["digests"].get(kind, 0) + digest) % 2**64
    for tensor in tensors.values():
        tensor["digests"] = {kind: f"{digest:016x}" for kind, digest in tensor["digests"].items()}
    return {"counters": counters, "tensors": dict(sorted(tensors.items()))}


def _file(kind: str, rank: int) -> str:
    return f"{TENSORS}/{kind}-{rank:05d}.safetensors"


class StoredState:
    """The state in a checkpoint, a `StateSource` for an engine of any layout.

    Args:
        checkpoint: its folder.
        progress: called with the bytes of each tensor that was filled.
    """

    def __init__(self, checkpoint: Path, progress: Callable[[int], None] = lambda num_bytes: None) -> None:
        self.checkpoint = checkpoint
        self.progress = progress
        index = json.loads((checkpoint / ENGINE).read_text())
        self.counters: dict[str, int] = index["counters"]
        self._tensors: dict[str, dict[str, Any]] = index["tensors"]
        self.kinds = tuple(dict.fromkeys(kind for tensor in self._tensors.values() for kind in tensor["digests"]))
        self._opened: dict[str, safe_open] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def num_bytes(self, name: str) -> int:
        """What all of a tensor's kinds take, in fp32."""
        tensor = self._tensors[name]
        return 4 * math.prod(tensor["shape"]) * len(tensor["digests"])

    def fill(self, fragment: Fragment, kind: str, values: torch.Tensor) -> None:
        stored = self._tensors.get(fragment.name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor '{fragment.name}'", where=str(self.checkpoint))
        if tuple(stored["shape"]) != fragment.shape:
            raise CheckpointError(
                f"'{fragment.name}' has another shape in the checkpoint",
                where=str(self.checkpoint),
                found=stored["shape"],
                expected=list(fragment.shape),
            )
        if kind in WEIGHTS and kind not in stored["digests"]:
            kind = MASTER  # of what was frozen until now
        num_real = fragment.num_real()
        if num_real < values.numel() or kind not in stored["digests"]:
            values.zero_()  # padding; or moments of what was frozen until now
        if kind not in stored["digests"]:
            return
        num_filled = 0
        for place in stored["fragments"]:
            piece = Slice(**place["slice"]) if place["slice"] else None
            source = Fragment(fragment.name, fragment.shape, piece, place["start"], place["stop"])
            for overlap in overlaps(fragment, source):
                overlap.copy(self._read(_file(kind, place["rank"]), fragment.name, *overlap.source), values)
                num_filled += math.prod(overlap.size)
        if num_filled != num_real:
            raise CheckpointError(
                f"the checkpoint has not all of '{fragment.name}'",
                where=str(self.checkpoint),
                found=f"{num_filled:,} elements",
                expected=f"{num_real:,}",
            )
        self.progress(values.nbytes)

    def whole(self, name: str, kind: str = MASTER) -> torch.Tensor:
        """A whole tensor, without vocabulary padding, in fp32."""
        shape = tuple(self._tensors[name]["shape"])
        values = torch.empty(math.prod(shape))
        self.fill(Fragment(name, shape, None, 0, values.numel()), kind, values)
        return values.view(shape)

    def check(self, held: Iterable[Held], channel: Channel) -> None:
        """Refuse a state that is not the stored one, bit for bit: every tensor, every replica of it. Collective.

        Nothing is compared of a tensor that was frozen then and is not now, or the other way round: its weights are
        rounded from then on, or no longer, and it has other kinds.

        Raises:
            CheckpointError: naming the first tensors that differ.
        """
        sums: dict[tuple[str, int, str], int] = {}
        thawed_or_frozen = set()
        for part in held:
            name = part.fragment.name
            if (len(part.values) == 1) != (len(self._tensors[name]["digests"]) == 1):  # what is frozen has masters only
                thawed_or_frozen.add(name)
                continue
            for kind, digest in digests(part.fragment, part.values).items():
                sums[name, part.copy, kind] = (sums.get((name, part.copy, kind), 0) + digest) % 2**64
        totals: dict[tuple[str, int, str], int] = {}
        passed_over: set[str] = set()
        for of_rank, other in channel.gather((sums, thawed_or_frozen)):
            passed_over |= other
            for key, digest in of_rank.items():
                totals[key] = (totals.get(key, 0) + digest) % 2**64
        expected = {
            (name, kind): int(digest, 16)
            for name, tensor in self._tensors.items()
            for kind, digest in tensor["digests"].items()
        }
        wrong = {name for (name, _, kind), total in totals.items() if total != expected.get((name, kind), 0)}
        missing = {name for name, _ in expected} - {name for name, _, _ in totals} - passed_over
        odd = channel.broadcast(sorted(wrong | missing)[:4])
        if odd:
            raise CheckpointError(
                "the state that was loaded is not the one that was saved",
                where=str(self.checkpoint),
                found=f"another digest of {', '.join(odd)}",
                hint="If `megacpt checkpoint verify` finds its files intact, megacpt is at fault: please report it.",
            )

    def _read(self, file: str, name: str, start: int, stop: int) -> torch.Tensor:
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(self.checkpoint / file, framework="pt")
            return self._opened[file].get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "a file of the checkpoint cannot be read",
                where=str(self.checkpoint / file),
                found=str(error).strip().partition("\n")[0],
                hint="`megacpt checkpoint verify` looks at all files.",
            ) from error
