"""GET /: the page for browsers, the JSON index for other clients."""

import base64
import functools
import hashlib
import re
from pathlib import Path

from aiohttp import web

from api_proc.admin import status

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


async def index(request: web.Request) -> web.Response:
    """Give the page to a browser, and name and version of the server to any other client."""
    if "text/html" in request.headers.get("Accept", ""):
        text, headers = page()
        return web.Response(text=text, content_type="text/html", headers=headers)
    response = await status.index(request)
    response.headers["Vary"] = "Accept"
    return response


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers."""
    text = Path(__file__).with_name("page.html").read_text()
    return text, {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy_of(text),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }


def policy_of(text: str) -> str:
    """Return a Content-Security-Policy that admits the page's own style and script by their digests, and nothing else.

    Trusted Types without a policy: text never becomes HTML.
    """
    digests: dict[str, list[str]] = {"style": [], "script": []}
    for kind, source in _INLINE.findall(text):
        digests[kind].append("'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(digests['script'])}",
            f"style-src {' '.join(digests['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
