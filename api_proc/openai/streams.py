"""GET /v1/streams/{id}: the rest of a recorded stream; and the header that has a stream recorded."""

import re

from aiohttp import web

from api_proc.openai.routing import number_of, tenant_of
from api_proc.server.errors import invalid
from api_proc.server.resume.serving import RESUME, show
from api_proc.server.resume.siblings import pass_on
from api_proc.server.service import SERVICE, Service
from quartet.wire.errors import RequestError
from quartet.wire.ids import Rid

MAX_WINDOW_S = 300.0

_STREAM = re.compile(r"^(?:chatcmpl-|cmpl-|msg_|resp_)?(?P<rid>[0-9a-f]{32})$")
_EVENT = re.compile(r"^(?:(?P<stream>[^:]*):)?(?P<number>\d{1,12})$")


def resume_window_s(request: web.Request, service: Service, is_stream: bool) -> float:
    """Return how long the response is to be kept without a reader; 0: it is not recorded. Only streams are."""
    header = request.headers.get(RESUME)
    if header is None:
        return 0.0
    window_s = number_of(float, header, None, f"the header {RESUME} must be a number of seconds")
    if not 0 < window_s <= MAX_WINDOW_S:
        raise invalid(None, f"the header {RESUME} must be above 0 and at most {MAX_WINDOW_S:g} seconds")
    return window_s if is_stream and not service.recordings.is_full else 0.0


async def read_on(request: web.Request) -> web.StreamResponse:
    """Stream what follows the event of the header Last-Event-ID, or of the parameter `starting_after`."""
    service = request.app[SERVICE]
    found = _STREAM.match(request.match_info["id"])
    rid = Rid(bytes.fromhex(found["rid"])) if found else Rid(b"")
    seen = _seen(request, rid)
    with service.open.one():
        owner = service.siblings.owner(rid)
        if owner is not None:
            return await pass_on(request, owner)
        return await show(request, service, service.recordings.find(rid, tenant_of(request, service)), seen)


def _seen(request: web.Request, rid: Rid) -> int | None:
    text = request.headers.get("Last-Event-ID", "")
    name = "the header Last-Event-ID"
    if not text:
        text, name = request.query.get("starting_after", ""), "starting_after"
    if not text:
        return None
    event = _EVENT.match(text)
    if event is None or event["stream"] not in (None, rid.hex()):
        raise RequestError(400, "invalid_value", f"{name} must be the id of an event of this stream, or its number")
    return int(event["number"])
