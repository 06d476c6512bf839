"""The routes: a page, and JSON for it and for anyone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import sys
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from unseen.data.images import Pixels
from unseen.deploy.listing import read_place
from unseen.deploy.server.batching import Batching
from unseen.deploy.server.description import MOST_NEIGHBOURS, description
from unseen.deploy.server.guard import Guard, refusal
from unseen.deploy.server.side import Answer, Query, Side, Stamp, stamp_of
from unseen.deploy.server.uploads import MOST_BYTES, MOST_PIXELS, Refused, decode, read_body
from unseen.deploy.verification import Thresholds, chosen

BATCH = 32
DECODERS = 2
"""Images that are decoded at once: one of 50 million pixels takes about 1 GB until it is resized."""
LOOK_EVERY = 1.0
"""Seconds between two looks at whether a gallery has changed."""
THUMBNAIL = 256
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("page.js", "elements.js", "filter.js", "results.js")
    },
}
"""Address → file and type. No other file can be asked for."""
Draw = Callable[[Pixels, NDArray[np.float32]], Pixels]
Read = Callable[[], Pixels]
"""Decodes an image, in the thread that makes it small."""


def application(
    sides: Sequence[Side],
    *,
    k: int,
    false_accepts: float,
    unknown_accepts: float,
    draw: Draw,
    hosts: Collection[str] | None,
    token: str | None,
) -> ASGIApp:
    """What uvicorn runs.

    Args:
        sides: bundles with their galleries; the page shows one, or two side by side.
        k: neighbours unless a request asks for another number.
        false_accepts: share of different pairs that may be accepted: it chooses the threshold.
        unknown_accepts: share of images of unknown classes, likewise.
        draw: an image `(S, S, 3)` uint8 and its attention `(h, w)` → the overlay `(S, S, 3)` uint8.
        hosts: that a request may name; any if None.
        token: that a request must bring, if any.

    Raises:
        ValueError: `k` is out of range, or no threshold was calibrated for a share.
    """
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise ValueError(f"k={k}: wanted 1 to {MOST_NEIGHBOURS} neighbours.")
    thresholds = [
        chosen(side.model.facts.get("thresholds"), false_accepts, unknown_accepts) for side in sides
    ]
    server = _Server(sides, thresholds, k, draw, description(len(sides), k, token is not None))
    app = Starlette(
        routes=server.routes(),
        exception_handlers={Refused: _refused, HTTPException: _not_found, Exception: _failed},
        lifespan=server.lifespan,
    )
    # Around all of it: what Starlette says of a failure needs the headers too.
    return Guard(app, hosts, token)


class _Server:
    def __init__(
        self,
        sides: Sequence[Side],
        thresholds: Sequence[Thresholds | None],
        k: int,
        draw: Draw,
        openapi: dict[str, Any],
    ) -> None:
        self.sides = list(sides)
        self.thresholds = thresholds
        self.k = k
        self.draw = draw
        self.openapi = openapi
        self.page = {
            address: Response((files(__package__) / "page" / name).read_bytes(), media_type=kind)
            for address, (name, kind) in PAGE.items()
        }
        self.batching: list[Batching[Query, tuple[Side, Answer]]] = []

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Threads live as long as the server."""
        # Made here, as they belong to the event loop.
        self.decoders = anyio.CapacityLimiter(DECODERS)
        self.artist = anyio.CapacityLimiter(1)
        self.batching = [Batching(partial(self._answers, number), BATCH) for number in range(len(self.sides))]
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()
        for batching in self.batching:
            batching.close()

    async def _watch(self) -> None:
        """Take a gallery as it is on disk when it has changed; who asks meanwhile gets the former one."""
        refused: dict[int, Stamp] = {}
        said: dict[int, str] = {}
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for number, side in enumerate(self.sides):
                if not side.has_changed or (now := stamp_of(side.gallery.folder)) == refused.get(number):
                    continue
                try:
                    self.sides[number] = await anyio.to_thread.run_sync(side.reopened)
                    said.pop(number, None)
                except Exception as error:  # whatever it is, the next look must come
                    if _is_of_the_gallery(error):
                        refused[number] = now
                    sentence = _unusable(error)
                    if sentence != said.get(number):
                        print(sentence, file=sys.stderr)
                    said[number] = sentence

    def _answers(self, number: int, queries: Sequence[Query]) -> list[tuple[Side, Answer]]:
        """Answers, and what they are of: it may be another one when they arrive."""
        side = self.sides[number]
        return [(side, answer) for answer in side.answer(queries)]

    def routes(self) -> list[Route]:
        pages = [Route(f"/{address}", partial(self.file, answer)) for address, answer in self.page.items()]
        return [
            *pages,
            Route("/about", self.about),
            Route("/examples", self.examples),
            Route("/image/{id}", self.image),
            Route("/openapi.json", self.describe),
            Route("/embed", self.embed, methods=["POST"]),
            Route("/search", self.search, methods=["POST"]),
            Route("/attention", self.attention, methods=["POST"]),
        ]

    async def file(self, answer: Response, _: Request) -> Response:
        return answer

    async def describe(self, _: Request) -> Response:
        return JSONResponse(self.openapi)

    async def about(self, _: Request) -> Response:
        bundles = await anyio.to_thread.run_sync(lambda: [_about(side) for side in self.sides])
        limits = {"bytes": MOST_BYTES, "pixels": MOST_PIXELS, "k": MOST_NEIGHBOURS}
        return JSONResponse({"bundles": bundles, "k": self.k, "limits": limits})

    async def examples(self, request: Request) -> Response:
        side = self.sides[self._side(request)]
        count, seed = _number(request, "count", 24, 1, MOST_NEIGHBOURS), _number(request, "seed", 0)
        label = _label(request, side)

        def chosen() -> list[dict[str, Any]]:
            return side.images(side.examples(count, seed, label))

        return JSONResponse({"images": await anyio.to_thread.run_sync(chosen)})

    async def image(self, request: Request) -> Response:
        read = self._stored(self._side(request), _whole(request.path_params["id"]))
        content = await anyio.to_thread.run_sync(_thumbnail, read, limiter=self.decoders)
        return Response(content, media_type="image/jpeg")

    async def embed(self, request: Request) -> Response:
        side = self._side(request)
        answered, answer = await self._ask(side, await self._query(request))
        return JSONResponse({"bundle": answered.gallery.bundle, "embedding": answer.embedding.tolist()})

    async def search(self, request: Request) -> Response:
        number = self._side(request)
        k = _number(request, "k", self.k, 1, MOST_NEIGHBOURS)
        label = _label(request, self.sides[number])
        asked, read = self._asked(request), await self._query(request)
        # One more, as the query itself may be among them.
        side, answer = await self._ask(number, read, k + (asked is not None), label)
        near = [
            (image, value) for image, value in zip(answer.ids, answer.similarities, strict=True) if image >= 0
        ]
        images = side.images(image for image, _ in near)
        thresholds = self.thresholds[number]
        found = [
            {
                **image,
                "similarity": round(float(value), 6),
                "is_same": thresholds and thresholds.is_same(float(value)),
            }
            for image, (_, value) in zip(images, near, strict=True)
            if asked is None or image["file"] != asked["file"]
        ]
        # Of one class alone the nearest does not say whether the image is of another.
        can_say = thresholds is not None and label is None and bool(found)
        return JSONResponse(
            {
                "bundle": side.gallery.bundle,
                "version": side.gallery.version,
                "query": asked,
                "is_known": thresholds.is_known(found[0]["similarity"]) if thresholds and can_say else None,
                "thresholds": thresholds and thresholds._asdict(),
                "neighbours": found[:k],
            }
        )

    async def attention(self, request: Request) -> Response:
        side = self._side(request)
        read = await self._query(request)
        draw = partial(_overlays, self.sides[side], read, self.draw)
        return JSONResponse({"taps": await anyio.to_thread.run_sync(draw, limiter=self.artist)})

    def _side(self, request: Request) -> int:
        return _number(request, "bundle", 0, 0, len(self.sides) - 1)

    def _named(self, request: Request) -> tuple[int, int] | None:
        """Whose gallery, and which image of it is the query, if it is one."""
        of = _number(request, "of", self._side(request), 0, len(self.sides) - 1)
        return (of, _number(request, "id", 0)) if "id" in request.query_params else None

    def _asked(self, request: Request) -> dict[str, Any] | None:
        """What is known of the query, if it is an image of a gallery."""
        named = self._named(request)
        if named is None:
            return None
        with _known():
            return self.sides[named[0]].images([named[1]])[0]

    async def _query(self, request: Request) -> Read:
        """The image that is asked about: of the body, or of a gallery."""
        named = self._named(request)
        if named is not None:
            return self._stored(*named)
        content = await read_body(request)
        return partial(decode, content)

    def _stored(self, side: int, id: int) -> Read:
        with _known():
            return partial(_read, self.sides[side].gallery.row(id)["path"], id)

    async def _ask(self, side: int, read: Read, k: int = 0, label: str | None = None) -> tuple[Side, Answer]:
        model = self.sides[side].model
        # In one go: what is decoded must not wait in memory for its turn to be prepared.
        image = await anyio.to_thread.run_sync(lambda: model.prepare(read()), limiter=self.decoders)
        return await self.batching[side].ask(Query(image, k, label))


def _is_of_the_gallery(error: Exception) -> bool:
    """Whether it stays until the gallery changes: a disk that is away or full memory may be well again."""
    return isinstance(error, ValueError) and not isinstance(error.__cause__, OSError)


def _unusable(error: Exception) -> str:
    if _is_of_the_gallery(error):
        return f"The gallery changed and cannot be used: {error} Its former state is searched."
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return (
        f"The gallery changed and could not be opened ({what}). Its former state is searched, and it is "
        f"tried again every {LOOK_EVERY:g} s."
    )


@contextlib.contextmanager
def _known() -> Any:
    try:
        yield
    except (KeyError, OverflowError):
        raise Refused(404, "There is no image with this id in the gallery.") from None


def _about(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "bundle": side.gallery.bundle,
        "facts": side.model.facts,
        "version": side.gallery.version,
        "size": side.model.size,
        "taps": side.taps,
        "images": len(side.gallery),
        "classes": [{"label": label, "images": count} for label, count in side.classes.items()],
    }


def _number(request: Request, name: str, default: int, low: int = 0, high: int | None = None) -> int:
    number = _whole(request.query_params.get(name, str(default)))
    if number < low or (high is not None and number > high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}" if high > low else f"{low}"
        raise Refused(422, f"'{name}' is no number that is taken: wanted {wanted}.")
    return number


def _whole(given: str) -> int:
    """The number that a text is, or −1: eighteen digits are what an id of 64 bits holds for sure."""
    return int(given) if given.isascii() and given.isdecimal() and len(given) <= 18 else -1


def _label(request: Request, side: Side) -> str | None:
    label = request.query_params.get("label")
    if label is not None and label not in side.classes:
        raise Refused(422, "There is no such class in the gallery.")
    return label


def _read(path: str, id: int) -> Pixels:
    try:
        return read_place(path)
    except ValueError:
        raise Refused(404, f"The file of image {id} is gone, or no image any more.") from None


def _thumbnail(read: Read) -> bytes:
    image = Image.fromarray(read())
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=3)
    return _encoded(image, "JPEG", quality=85)


def _overlays(side: Side, read: Read, draw: Draw) -> list[dict[str, Any]]:
    image, maps = side.model.attention(read())
    return [
        {
            "name": name,
            "height": weights.shape[0],
            "width": weights.shape[1],
            "peak": round(float(weights.max() * weights.size), 3),
            "overlay": _data_uri(_encoded(Image.fromarray(draw(image, weights)), "PNG")),
        }
        for name, weights in maps.items()
    ]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error.status, error.sentence)


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "There is nothing at this address.", 405: "This address takes another method."}
    answer = refusal(error.status_code, sentences.get(error.status_code, f"{error.detail}."))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(_: Request, error: Exception) -> Response:
    return refusal(500, "The server failed at this; its own messages say why.")
