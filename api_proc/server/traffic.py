"""The line of the log that says every ten seconds what the engine does, while it does something."""

import asyncio
import logging
from typing import Any, NamedTuple

from api_proc.server.admission import SCHEDULER
from api_proc.server.service import Service
from quartet.wire.frames import Snapshot

log = logging.getLogger("quartet.traffic")

PERIOD_S = 10.0
RETRACTED = (
    "the KV cache was full: %d requests were put back in %.0f s, %d tokens are computed again, new-token ratio "
    "%.2f -> %.2f. If it goes on, give it more memory (--mem-fraction-static, --max-total-tokens), fewer requests at "
    "once (--max-running-requests) or a larger --schedule-conservativeness"
)


class Line(NamedTuple):
    """One line of the log."""

    level: int
    text: str
    fields: dict[str, Any]


class Traffic:
    """Compares Snapshots of the scheduler; sans-IO."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None
        self._last_s = 0.0

    def lines(self, snapshot: Snapshot, now: float) -> list[Line]:
        """Return what is to be logged of the time since the last call; nothing of an idle engine."""
        last, period_s = self._last, now - self._last_s
        self._last, self._last_s = snapshot, now
        if last is None or last.epoch != snapshot.epoch or period_s <= 0:
            return []
        gauges = snapshot.gauges
        grown = {name: value - last.counters.get(name, 0.0) for name, value in snapshot.counters.items()}
        queried, hits = grown.get("input_tokens", 0.0), grown.get("cached_tokens", 0.0)
        figures = {
            "num_running_reqs": int(gauges.get("num_running_reqs", 0)),
            "num_queue_reqs": int(gauges.get("num_queue_reqs", 0) + gauges.get("num_grammar_queue_reqs", 0)),
            "token_usage": round(gauges.get("token_usage", 0.0), 4),
            "cache_hit_rate": round(hits / queried, 4) if queried else 0.0,
            "prompt_throughput": round(queried / period_s, 1),
            "gen_throughput": round(grown.get("output_tokens", 0.0) / period_s, 1),
            "new_token_ratio": round(gauges.get("new_token_ratio", 0.0), 3),
        }
        lines = []
        if any(figures[name] for name in ("num_running_reqs", "num_queue_reqs", "prompt_throughput", "gen_throughput")):
            lines.append(Line(logging.INFO, _words(figures), figures))
        if retracted := int(grown.get("retractions", 0.0)):
            again, ratio = int(grown.get("recomputed_tokens", 0.0)), gauges.get("new_token_ratio", 0.0)
            text = RETRACTED % (retracted, period_s, again, last.gauges.get("new_token_ratio", 0.0), ratio)
            lines.append(Line(logging.WARNING, text, {"num_retracted_requests": retracted, "recomputed_tokens": again}))
        return lines


def _words(figures: dict[str, Any]) -> str:
    return (
        "running {num_running_reqs}, queued {num_queue_reqs}, KV used {token_usage:.1%}, "
        "cache hit {cache_hit_rate:.1%}, prompt {prompt_throughput} tok/s, output {gen_throughput} tok/s, "
        "new-token ratio {new_token_ratio}".format_map(figures)
    )


async def log_traffic(service: Service, period_s: float = PERIOD_S) -> None:
    """Log the lines of the whole engine; for one api process. Never returns."""
    traffic = Traffic()
    while True:
        snapshot = service.engine.snapshots.get(SCHEDULER)
        if snapshot is not None:
            for line in traffic.lines(snapshot, service.clock.now()):
                log.log(line.level, "%s", line.text, extra={"fields": line.fields})
        await asyncio.sleep(period_s)
