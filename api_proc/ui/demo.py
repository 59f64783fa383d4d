"""POST /ui/kill, which exists with --demo alone: ends a process of the engine, to show that streams go on."""

import logging
import os
import signal

import msgspec
from aiohttp import web

from api_proc.server.bodies import decode_body, json_response, read_body
from api_proc.server.errors import invalid
from api_proc.server.service import SERVICE
from quartet.wire.errors import RequestError
from quartet.wire.ids import process_name

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 12


class KillRequest(msgspec.Struct, kw_only=True):
    """Body: the name of a process, such as `worker-0`."""

    process: str


_decoder = msgspec.json.Decoder(KillRequest)


async def kill(request: web.Request) -> web.Response:
    """Send SIGKILL to a process of the engine; the supervisor starts it again."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise RequestError(403, "forbidden_origin", "this route takes no request from a page of another origin")
    service = request.app[SERVICE]
    body = await read_body(request, MAX_BODY_BYTES, service.timeouts.body_s, lambda held: None)
    wanted = decode_body(_decoder, body).process
    pids = {process_name(one.role, one.rank): one.pid for one in service.engine.process_table.processes}
    if wanted not in pids:
        raise invalid("process", f"process must be one of {', '.join(pids)}")
    try:
        if not pids[wanted]:
            raise ProcessLookupError
        os.kill(pids[wanted], signal.SIGKILL)
    except ProcessLookupError:
        message = f"{wanted} is being started again already"
        raise RequestError(503, "engine_restarting", message, "process", 1.0) from None
    log.warning("%s (pid %d) is killed by POST /ui/kill", wanted, pids[wanted])
    return json_response({"killed": wanted, "pid": pids[wanted]})
