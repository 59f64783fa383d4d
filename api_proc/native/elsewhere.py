"""Routes of OpenAI's API, and of other engines', for what this server does not do: each is refused in one line."""

from aiohttp import web
from aiohttp.typedefs import Handler

from quartet.wire.errors import RequestError

ELSEWHERE = {
    "embeddings": ("/v1/embeddings", "/embeddings", "/api/embed"),
    "rankings and scores": ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/v1/classify", "/classify"),
    "pooled vectors": ("/pooling", "/encode"),
    "images": ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
    "speech and transcripts": ("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
    "videos": ("/v1/videos",),
    "realtime sessions": ("/v1/realtime",),
    "moderations": ("/v1/moderations",),
    "files and batches": ("/v1/files", "/v1/batches", "/v1/messages/batches"),
    "conversations": ("/v1/conversations", "/v1/responses/compact"),
    "adapters": ("/load_lora_adapter", "/unload_lora_adapter", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
}
"""Paths by what they would give."""


def add_routes(app: web.Application) -> None:
    """Add the routes, for any method."""
    for what, paths in ELSEWHERE.items():
        for path in paths:
            app.router.add_route("*", path, _refusal(what))


def _refusal(what: str) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise RequestError(
            404,
            "unsupported_route",
            f"this server generates text from text, by chat and text completions; it serves no {what}: "
            "use a server that is made for them",
        )

    return refuse
