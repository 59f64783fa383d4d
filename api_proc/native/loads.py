"""GET /v1/loads and /get_load: how much the scheduler has to do, for routers; SGLang's shapes.

The figures are those of the scheduler's newest Snapshot, a second old at most.
"""

from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from api_proc.server.admission import SCHEDULER
from api_proc.server.bodies import json_response
from api_proc.server.errors import invalid
from api_proc.server.service import SERVICE, Service
from quartet.version import __version__

SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})


async def v1_loads(request: web.Request) -> web.Response:
    """Give the loads by data-parallel rank, of which there is one, as JSON or in Prometheus' text format.

    Parameters: `format` (`json`, `prometheus`; without it the header Accept decides), `include` and `dp_rank` as in
    SGLang.
    """
    service = request.app[SERVICE]
    loads = loads_of(service, *_wanted(request.query))
    if _is_plain(request):
        return web.Response(body=generate_latest(_Loads(loads)), headers={"Content-Type": CONTENT_TYPE})
    moment = datetime.fromtimestamp(service.wall_time(), UTC).isoformat()
    return json_response(
        {"timestamp": moment, "version": __version__, "accelerator": None, "num_accelerators": 1, "loads": loads}
    )


async def get_load(request: web.Request) -> web.Response:
    """Give the load as SGLang's older route does: requests and tokens by rank."""
    loads = loads_of(request.app[SERVICE])
    return json_response(
        [
            {
                "dp_rank": one["dp_rank"],
                "num_reqs": one["num_running_reqs"] + one["num_waiting_reqs"],
                "num_waiting_reqs": one["num_waiting_reqs"],
                "num_tokens": one["num_total_tokens"],
            }
            for one in loads
        ]
    )


def _wanted(query: Mapping[str, str]) -> tuple[int, set[str]]:
    """Return rank and sections of the parameters; raises RequestError 400."""
    include = {part.strip() for part in query.get("include", "all").split(",")}
    if not include <= SECTIONS:
        raise invalid("include", f"include may name {', '.join(sorted(SECTIONS))}")
    rank = query.get("dp_rank", "0")
    if not (rank.isascii() and rank.isdigit() and len(rank) <= 9):
        raise invalid("dp_rank", "dp_rank must be a number")
    return int(rank), include


def _is_plain(request: web.Request) -> bool:
    wanted = request.query.get("format")
    if wanted not in (None, "json", "prometheus"):
        raise invalid("format", "format must be json or prometheus")
    accept = request.headers.get("Accept", "")
    return wanted == "prometheus" or (wanted is None and "text/plain" in accept and "json" not in accept)


def loads_of(service: Service, rank: int = 0, include: Set[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the load of a rank; nothing for a rank that does not exist, and before the scheduler has reported."""
    snapshot = service.engine.snapshots.get(SCHEDULER)
    if snapshot is None or rank:
        return []
    gauges, counters = snapshot.gauges, snapshot.counters
    running, most = int(gauges.get("num_running_reqs", 0)), int(gauges.get("max_running_reqs", 0))
    waiting = int(gauges.get("num_queue_reqs", 0) + gauges.get("num_grammar_queue_reqs", 0))
    used = int(gauges.get("kv_used_tokens", 0))
    waiting_tokens = int(gauges.get("num_queue_tokens", 0))
    cached, computed = counters.get("cached_tokens", 0.0), counters.get("prefill_tokens", 0.0)
    load: dict[str, Any] = {
        "dp_rank": 0,
        "timestamp": service.wall_time(),
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_waiting_uncached_tokens": waiting_tokens,
        "num_used_tokens": used,
        "num_total_tokens": used + waiting_tokens,
        "max_total_num_tokens": int(gauges.get("kv_capacity_tokens", 0)),
        "max_running_requests": most,
        "token_usage": round(gauges.get("token_usage", 0.0), 4),
        "gen_throughput": round(service.output_rate.per_second(counters.get("output_tokens", 0.0)), 2),
        "cache_hit_rate": round(cached / (cached + computed), 4) if cached + computed else 0.0,
        "utilization": round(running / most, 4) if most else 0.0,
    }
    if include & {"all", "queues"}:
        load["queues"] = {"waiting": waiting, "grammar": 0, "paused": 0, "retracted": 0}
    return [load]


class _Loads(Collector):
    """The loads in Prometheus' form, under SGLang's names."""

    def __init__(self, loads: list[dict[str, Any]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        for load in self._loads:
            flat = {name: value for name, value in load.items() if name != "dp_rank" and not isinstance(value, dict)}
            flat |= {f"queues_{name}": value for name, value in load.get("queues", {}).items()}
            for name, value in flat.items():
                gauge = GaugeMetricFamily(f"sglang_{name}", f"{name} of /v1/loads", labels=["dp_rank"])
                gauge.add_metric([str(load["dp_rank"])], value)
                yield gauge
