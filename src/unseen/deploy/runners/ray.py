"""A Ray cluster: Ray Data spreads the images over its nodes, this process puts what comes back in order."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from unseen.data.images import PassingError
from unseen.deploy.listing import located
from unseen.deploy.model import Model, default_device
from unseen.deploy.runners.local import Part, embed_here

BATCHES = 8
"""Batches that a worker takes at a time: reading of the next one hides behind the network, and a node that
dies loses no more."""
ATTEMPTS = 3
"""Times in a row that nodes may die before a single image comes back."""

PAUSE = 10.0
"""Seconds after which the cluster has noticed that a node is dead."""


class Ray:
    """Embeds on the nodes of a cluster, on as many workers as there is room for.

    Nodes need this package, and the images under the same paths as here; the model is sent to them. What they
    embed comes back here in the order of the places. Where a node dies, the others do again what did not
    arrive from it.

    Args:
        address: of the cluster: `auto` for the one that this machine is of; none starts one here, for as
            long as the work lasts.
        cpus: of each worker; threads follow.
        gpus: of each worker.
        device: where the network computes; none: a GPU if the worker has one.

    Raises:
        ImportError: Ray Data is not installed.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float, device: str | None) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ImportError("Ray Data is not installed: pip install 'unseen-dml[ray]'") from error
        self.ray: Any = ray
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.device = device if device or gpus else "cpu"

    def __call__(self, model: Model, places: Sequence[str], batch_size: int) -> Iterator[Part]:
        """See `Runner`.

        Raises:
            ValueError: no node is large enough for a worker, or a node does not see an image that is here.
            ConnectionError: there is no such cluster.
        """
        if not places:
            return
        ours = not self.ray.is_initialized()
        if ours:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="warning")
            logging.getLogger("ray.data").setLevel("WARNING")
        try:
            yield from self._embed(model.to("cpu"), places, batch_size)
        finally:
            if ours:
                self.ray.shutdown()

    def _embed(self, model: Model, places: Sequence[str], batch_size: int) -> Iterator[Part]:
        sent = self.ray.put(model)
        done, attempts = 0, 0
        while done < len(places):
            try:
                for block in self._blocks(sent, places, done, batch_size):
                    part = _received(block, places, done)
                    done += len(block["row"])
                    attempts = 0
                    yield part
            except self.ray.exceptions.RayTaskError:
                raise
            except self.ray.exceptions.RayError as error:
                # Ray would have the dead worker's images wait until there is room for another one like it,
                # which a cluster of fixed size never has.
                attempts += 1
                if attempts == ATTEMPTS:
                    raise ValueError(
                        f"Workers of the Ray cluster died {ATTEMPTS} times before an image came back "
                        f"({error}). Each node needs unseen-dml, and memory for the model and a batch."
                    ) from error
                time.sleep(PAUSE)

    def _blocks(
        self, sent: Any, places: Sequence[str], start: int, batch_size: int
    ) -> Iterator[Mapping[str, NDArray[Any]]]:
        """What workers give for the images from `start` on, in their order."""
        data, size = self.ray.data, BATCHES * batch_size
        blocks = [
            {"start": first, "places": list(places[first : first + size])}
            for first in range(start, len(places), size)
        ]
        dataset = data.from_items(blocks, override_num_blocks=len(blocks))
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.preserve_order = True
        workers: list[str] = []

        def options() -> dict[str, Any]:
            workers.append(f"unseen-{uuid4().hex}")
            return {"name": workers[-1], "max_restarts": 0, "max_task_retries": 0}

        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            embedded = dataset.map_batches(
                _Worker,
                fn_constructor_args=(sent, batch_size, max(1, int(self.cpus)), self.device),
                batch_size=None,
                compute=data.ActorPoolStrategy(min_size=min(self._room(), len(blocks))),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                ray_remote_args_fn=options,  # deprecated
            )
        try:
            yield from embedded.iter_batches(batch_size=None, batch_format="numpy")
        finally:
            self._end(workers)

    def _end(self, workers: Sequence[str]) -> None:
        """Make room: by itself Ray ends workers when nothing refers to them, which may be never."""
        for name in workers:
            with suppress(ValueError):  # it has ended
                self.ray.kill(self.ray.get_actor(name))

    def _room(self) -> int:
        """Workers that the nodes which are up have room for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        wanted = {name: count for name, count in (("CPU", self.cpus), ("GPU", self.gpus)) if count}
        room = sum(
            min((int(node.get(name, 0) // count) for name, count in wanted.items()), default=1)
            for node in nodes
        )
        if room:
            return room
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
        raise ValueError(
            f"runner.cpus={self.cpus:g} runner.gpus={self.gpus:g}: no node of the Ray cluster is as large; "
            f"the most cores of a node are {most['CPU']:g}, the most GPUs {most['GPU']:g}. Ask for less."
        )


class _Worker:
    """On a node: the model, and what it makes of a block of places."""

    def __init__(self, sent: Any, batch_size: int, threads: int, device: str | None) -> None:
        import ray

        self.model: Model = ray.get(sent).to(device or default_device())
        self.batch_size, self.threads = batch_size, threads

    def __call__(self, block: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        [start], [places] = block["start"].tolist(), block["places"].tolist()
        places = list(places)
        embeddings = np.zeros((len(places), self.model.size), np.float32)
        unreadable: dict[str, str] = {}
        passing = ""
        try:
            for part in embed_here(self.model, places, self.batch_size, self.threads):
                embeddings[part.rows] = part.embeddings
                unreadable |= part.unreadable
        except PassingError as error:  # as an exception it would arrive wrapped in Ray's own
            passing = str(error)
        return {
            "row": np.arange(start, start + len(places)),
            "embedding": embeddings,
            "unreadable": np.array([unreadable.get(place, "") for place in places], dtype=np.object_),
            "missing": np.array([place in unreadable and not _is_here(place) for place in places]),
            "passing": np.array([passing] * len(places), dtype=np.object_),
            "node": np.array([os.uname().nodename] * len(places), dtype=np.object_),
        }


def _received(block: Mapping[str, NDArray[Any]], places: Sequence[str], start: int) -> Part:
    """The block that was due, if nothing is wrong with it."""
    rows, node = block["row"], block["node"][0]
    if rows.tolist() != list(range(start, start + len(rows))):
        raise RuntimeError(f"Ray gave images {rows[0]} to {rows[-1]} where image {start} was due.")
    if block["passing"][0]:
        raise PassingError(f"On node '{node}': {block['passing'][0]}")
    for row in rows[block["missing"]]:
        if _is_here(places[row]):
            raise ValueError(
                f"Node '{node}' of the Ray cluster does not see '{places[row]}', which is here. Images must "
                "lie on a file system that all nodes share, under the same path on each."
            )
    good = block["unreadable"] == ""
    unreadable = {places[row]: str(text) for row, text in zip(rows, block["unreadable"], strict=True) if text}
    return Part(block["embedding"][good], rows[good].tolist(), unreadable)


def _is_here(place: str) -> bool:
    return located(place)[0].exists()
