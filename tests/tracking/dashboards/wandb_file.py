"""Reads the file of an offline W&B run: LevelDB's log format, whose records are wandb's protocol buffers."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path):
    content = Path(path).read_bytes()
    assert content[:4] == b":W&B"
    place, parts = FILE_HEADER, []
    while place + CHUNK_HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + CHUNK_HEADER])
        chunk = content[place + CHUNK_HEADER : place + CHUNK_HEADER + length]
        if len(chunk) < length:  # killed while it wrote
            return
        place += CHUNK_HEADER + length
        parts.append(chunk)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []


def read(folder):
    """Everything that the only run below a run's folder holds."""
    [path] = Path(folder).glob("wandb/offline-run-*/*.wandb")
    return read_file(path)


def read_file(path):
    found = SimpleNamespace(
        run=None, config={}, summary={}, history=[], metrics=[], artifacts=[], exit_code=None
    )
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "summary":
            _update(found.summary, record.summary.update)
        elif kind == "history":
            row = {}
            _update(row, record.history.item)
            found.history.append(row)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(content, items):
    for item in items:
        keys = list(item.nested_key) or [item.key]
        content["/".join(keys) if len(keys) == 1 else ".".join(keys)] = json.loads(item.value_json)
