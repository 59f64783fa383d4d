"""The aiohttp application: every route of the api process."""

from aiohttp import web

from api_proc.admin import queries, status
from api_proc.anthropic import messages
from api_proc.anthropic.errors import ANTHROPIC
from api_proc.native import abort, elsewhere, generate, health, info, loads, tokens
from api_proc.openai import models, streams
from api_proc.openai.chat import chat_completions
from api_proc.openai.completions import completions
from api_proc.openapi import openapi
from api_proc.responses.responses import responses
from api_proc.server.cors import Cors
from api_proc.server.dialects import DIALECTS
from api_proc.server.middleware import echo_request_id, make_middleware
from api_proc.server.service import SERVICE, Service
from api_proc.ui import demo, page, stream
from api_proc.ui.feed import FEED, Feed


def build_app(service: Service) -> web.Application:
    """Return the application; handlers find the service in it under SERVICE."""
    cors = Cors(service)
    app = web.Application(middlewares=[make_middleware(service, cors)], client_max_size=service.max_body_bytes)
    app[SERVICE] = service
    app[DIALECTS] = (ANTHROPIC,)
    app.on_response_prepare.extend([echo_request_id, cors.on_prepare])
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/responses", responses)
    app.router.add_post("/v1/messages", messages.messages)
    app.router.add_post("/v1/messages/count_tokens", messages.count_tokens)
    app.router.add_get("/v1/streams/{id}", streams.read_on, allow_head=False)
    app.router.add_get("/v1/models", models.models)
    app.router.add_get("/v1/models/{id:.+}", models.model)
    app.router.add_get("/health", status.health)
    app.router.add_get("/ready", status.ready)
    if not service.config.monitoring.disable_metrics:
        app.router.add_get("/metrics", status.metrics)
    app.router.add_get("/topology", status.topology)
    app.router.add_get("/requests/{rid}/timeline", queries.timeline)
    app.router.add_get("/trace", queries.trace)
    app.router.add_get("/config", queries.config)
    app.router.add_post("/flush_cache", queries.flush_cache)
    app.router.add_get("/flush_cache", queries.flush_cache, allow_head=False)
    if service.config.server.disable_ui:
        app.router.add_get("/", status.index)
    else:
        _add_page(app, service)
    app.router.add_get("/openapi.json", openapi)
    _add_native_routes(app, service)
    elsewhere.add_routes(app)
    return app


def _add_page(app: web.Application, service: Service) -> None:
    """Add the page for browsers and what it needs."""
    app[FEED] = feed = Feed(service)
    app.cleanup_ctx.append(feed.run)
    app.router.add_get("/", page.index)
    app.router.add_get("/ui/stream", stream.stream, allow_head=False)
    if service.config.server.demo:
        app.router.add_post("/ui/kill", demo.kill)


def _add_native_routes(app: web.Application, service: Service) -> None:
    """Add the routes that SGLang and vLLM have beside OpenAI's; routers and benchmarks use them."""
    for prefix in ("", "/v1"):
        app.router.add_post(f"{prefix}/tokenize", tokens.tokenize)
        app.router.add_post(f"{prefix}/detokenize", tokens.detokenize)
    for method in ("POST", "PUT"):
        app.router.add_route(method, "/generate", generate.generate)
    for name in ("/server_info", "/get_server_info"):
        app.router.add_get(name, info.server_info)
    for name in ("/model_info", "/get_model_info"):
        app.router.add_get(name, info.model_info)
    app.router.add_get("/kv_event_sources", info.kv_event_sources)
    app.router.add_get("/v1/loads", loads.v1_loads)
    app.router.add_get("/get_load", loads.get_load)
    app.router.add_get("/health_generate", health.health_generate, allow_head=False)
    app.router.add_post("/abort_request", abort.abort_request)
    if service.config.server.serve_version:
        app.router.add_get("/version", info.version)
