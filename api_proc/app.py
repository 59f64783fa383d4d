"""The aiohttp application: every route of the api process."""

from aiohttp import web

from api_proc.admin import queries, status
from api_proc.openai import models, streams
from api_proc.openai.chat import chat_completions
from api_proc.openai.completions import completions
from api_proc.server.middleware import echo_request_id, make_middleware
from api_proc.server.service import SERVICE, Service


def build_app(service: Service) -> web.Application:
    """Return the application; handlers find the service in it under SERVICE."""
    app = web.Application(middlewares=[make_middleware(service)], client_max_size=service.max_body_bytes)
    app[SERVICE] = service
    app.on_response_prepare.append(echo_request_id)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/streams/{id}", streams.read_on, allow_head=False)
    app.router.add_get("/v1/models", models.models)
    app.router.add_get("/v1/models/{id:.+}", models.model)
    app.router.add_get("/health", status.health)
    app.router.add_get("/ready", status.ready)
    app.router.add_get("/metrics", status.metrics)
    app.router.add_get("/topology", status.topology)
    app.router.add_get("/requests/{rid}/timeline", queries.timeline)
    app.router.add_get("/trace", queries.trace)
    app.router.add_get("/config", queries.config)
    app.router.add_post("/flush_cache", queries.flush_cache)
    app.router.add_get("/", status.index)
    return app
