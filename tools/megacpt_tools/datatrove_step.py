"""A datatrove pipeline step that writes our shards: a corpus of the web's size is tokenized where it is filtered.

    from datatrove.executor import SlurmPipelineExecutor
    from megacpt_tools.datatrove_step import MegacptShards

    shards = MegacptShards("shards/web", "Meta-Llama-3-8B", num_tasks=512, keep_columns=("date", "score"))
    SlurmPipelineExecutor([reader, *filters, shards], tasks=512, ...).run()

Each task writes one slice below the folder, and `megacpt shards join shards/web` makes them one. A task reads its part
of the input in datatrove's own way, so the order of documents is datatrove's. A document's columns are looked up in its
metadata. Until its slice is written, a task keeps its documents as text in the folder. Needs the extra `datatrove`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megacpt.errors import DataError
from megacpt_tools.builder import BuildOptions, build_shards


class MegacptShards(PipelineStep):
    """Tokenizes the documents that reach it into a slice of a folder of shards.

    Args:
        output: folder of all slices.
        tokenizer: see `megacpt_tools.tokenizer.open_tokenizer`.
        num_tasks: tasks of the executor, each of which makes a slice.
        keep_columns: keys of the documents' metadata to keep; `id` is the document's own.
        options: of the build, by name (`megacpt_tools.builder.BuildOptions`).
    """

    name = "megacpt shards"
    type = "TOKENIZER"

    def __init__(
        self,
        output: str,
        tokenizer: str,
        num_tasks: int,
        keep_columns: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.output = output
        self.tokenizer = tokenizer
        self.options = BuildOptions(keep_columns=keep_columns, num_slices=num_tasks, divide_input=False, **options)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write this task's slice; yields the documents again."""
        if world_size != self.options.num_slices:
            raise DataError("each task makes a slice", found=f"{world_size} tasks", expected=self.options.num_slices)
        path = Path(self.output) / f".task_{rank:05}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for document in data or ():
                columns = {name: document.metadata.get(name) for name in self.options.keep_columns}
                if "id" in columns:
                    columns["id"] = document.id
                line = columns | {self.options.text_key: document.text}
                try:
                    file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
                except orjson.JSONEncodeError as error:
                    where = f"document {document.id}"
                    raise DataError("the document cannot be written as JSON", where=where, found=error) from None
                yield document
        with self.track_time():
            build_shards([path], self.tokenizer, self.output, self.options, index=rank, overwrite=True)
        path.unlink()
