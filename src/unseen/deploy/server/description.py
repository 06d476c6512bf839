"""The server in OpenAPI."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from unseen.deploy.server.uploads import FORMATS, MOST_BYTES, MOST_PIXELS

MOST_NEIGHBOURS = 100


def description(sides: int, k: int, with_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
        sides: bundles that are served.
        k: neighbours unless a request asks for another number.
        with_token: whether a token must be brought.
    """
    security: dict[str, Any] = {"security": [{"bearer": []}]} if with_token else {}
    schemes = {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if with_token else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "unseen",
            "version": version("unseen-dml"),
            "description": "Embeddings of images, and the most similar images of a gallery.",
        },
        "paths": _paths(_parameters(sides, k)),
        "components": {"schemas": SCHEMAS, **schemes},
        **security,
    }


def _paths(known: dict[str, Any]) -> dict[str, Any]:
    bundle, image, of = known["bundle"], known["id"], known["of"]
    return {
        "/about": {"get": _operation("The bundles, their classes, and the limits.", "About")},
        "/examples": {
            "get": _operation(
                "Some images of the gallery, of as many classes as there are.",
                "Examples",
                [bundle, known["count"], known["seed"], known["label"]],
            )
        },
        "/image/{id}": {
            "get": {
                **_operation("A small JPEG of an image of the gallery.", None, [known["place"], bundle]),
                "responses": {
                    "200": {"description": "The image.", "content": {"image/jpeg": {}}},
                    "default": _refusal(),
                },
            }
        },
        "/embed": {"post": _question("The embedding of an image.", "Embedding", [bundle, image, of])},
        "/search": {
            "post": _question(
                "The most similar images of the gallery, the query itself left out.",
                "Neighbours",
                [bundle, known["k"], known["label"], image, of],
            )
        },
        "/attention": {
            "post": _question("Where each layer looks, as pictures.", "Attention", [bundle, image, of])
        },
    }


def _operation(summary: str, schema: str | None, parameters: list[Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": _refusal(),
        },
    }


def _question(summary: str, schema: str, parameters: list[Any]) -> dict[str, Any]:
    types: dict[str, Any] = {f"image/{name.lower()}": {} for name in FORMATS}
    return {
        **_operation(summary, schema, parameters),
        "requestBody": {
            "description": f"The bytes of an image, at most {MOST_BYTES // 1_000_000} MB and "
            f"{MOST_PIXELS // 1_000_000} million pixels. Its type is told by its content. "
            "Not needed with `id`.",
            "content": {**types, "application/octet-stream": {}},
        },
    }


def _refusal() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "description": "Why there is no answer, in one sentence.",
        "content": {"application/json": {"schema": schema}},
    }


def _parameters(sides: int, k: int) -> dict[str, Any]:
    def query(name: str, words: str, **schema: Any) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": words, "schema": schema}

    whole: dict[str, Any] = {"type": "integer", "minimum": 0}
    side = {**whole, "maximum": sides - 1, "default": 0}
    neighbours = {"type": "integer", "minimum": 1, "maximum": MOST_NEIGHBOURS}
    return {
        "bundle": query("bundle", "Which bundle, counted from 0.", **side),
        "id": query("id", "An image of the gallery in place of a body.", **whole),
        "of": query("of", "Whose gallery `id` is of, where that is not `bundle`.", **side),
        "k": query("k", "How many neighbours.", **neighbours, default=k),
        "label": query("label", "Class that they must be of.", type="string"),
        "count": query("count", "How many images.", **neighbours, default=24),
        "seed": query("seed", "Another number gives other images.", **whole, default=0),
        "place": {"name": "id", "in": "path", "required": True, "schema": whole},
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: Any) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
IMAGE = {
    "id": WHOLE,
    "label": {"type": "string", "description": "Its class; empty where it is not known."},
    "name": {"type": "string", "description": "Of the file, without its folder."},
    "file": {"type": "string", "description": "Of two galleries of the same files, the same."},
}
TRUTH = {"type": "boolean"}
RATES = {
    "same": _object(threshold=NUMBER, false_accepts=NUMBER, false_rejects=NUMBER),
    "known": _object(threshold=NUMBER, unknown_rejected=NUMBER, known_found=NUMBER),
}
VERSION = {"type": "string", "description": "Of the gallery; another one after images came or went."}
BUNDLE = {"type": "string", "description": "Hash of the bundle; embeddings of another cannot be compared."}
SCHEMAS: dict[str, Any] = {
    "Error": _object(error=TEXT),
    "Embedding": _object(bundle=BUNDLE, embedding=_list(NUMBER)),
    "Image": _object(**IMAGE),
    "Neighbours": _object(
        bundle=BUNDLE,
        version=VERSION,
        query=_or_null({"$ref": "#/components/schemas/Image"}),
        is_known=_or_null(
            {**TRUTH, "description": "The nearest image is similar enough to be of the same class."}
        ),
        thresholds=_or_null({**_object(**RATES), "description": "As calibrated, with their measured rates."}),
        neighbours=_list(
            _object(
                **IMAGE,
                similarity={"type": "number", "description": "Cosine, −1 … 1."},
                is_same=_or_null({**TRUTH, "description": "At or above the threshold `same`."}),
            )
        ),
    ),
    "Examples": _object(images=_list({"$ref": "#/components/schemas/Image"})),
    "Attention": _object(
        taps=_list(
            _object(
                name=TEXT,
                height=WHOLE,
                width=WHOLE,
                peak={"type": "number", "description": "The strongest position ÷ even attention."},
                overlay={"type": "string", "description": "A PNG as a data URI."},
            )
        )
    ),
    "About": _object(
        bundles=_list(
            _object(
                name=TEXT,
                bundle=BUNDLE,
                version=VERSION,
                facts={"type": "object", "description": "What the bundle says of itself."},
                size=WHOLE,
                taps=_list(TEXT),
                images=WHOLE,
                classes=_list(_object(label=TEXT, images=WHOLE)),
            )
        ),
        k=WHOLE,
        limits=_object(bytes=WHOLE, pixels=WHOLE, k=WHOLE),
    ),
}
