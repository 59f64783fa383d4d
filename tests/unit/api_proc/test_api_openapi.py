"""The OpenAPI document has every route of the application, and its references lead somewhere."""

import json
import re
from typing import Any

from api_proc import openapi
from api_proc.app import build_app
from api_proc.openai.schema import ChatRequest

WITHOUT_BODY = {"/flush_cache"}
"""Routes that are posted to without a body."""


async def test_every_route_is_in_the_document(make_api: Any) -> None:
    api = await make_api(serve_version=True, demo=True)
    status, found, _ = await api.get("/openapi.json")
    assert (status, found["openapi"]) == (200, "3.1.0")
    served = {
        (route.resource.canonical, route.method.lower())
        for route in build_app(api.service).router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")
    }
    described = {(path, method) for path, methods in found["paths"].items() for method in methods}
    assert described == served
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert ("requestBody" in operation) == (method != "get" and path not in WITHOUT_BODY), (path, method)
            names = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert names == set(re.findall(r"{(\w+)}", path))
    operations = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(set(operations)) == len(operations)


async def test_references_lead_to_schemas(make_api: Any) -> None:
    api = await make_api(demo=True)
    found = openapi.document(build_app(api.service))
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert references and references <= found["components"]["schemas"].keys()
    chat = found["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"] and set(chat["properties"]) <= set(ChatRequest.__struct_fields__)
    assert "audio" not in chat["properties"] and chat["properties"]["n"]["maximum"] == 16
    assert openapi.BODIES.keys() <= found["paths"].keys() and openapi.QUERIES.keys() <= found["paths"].keys()
