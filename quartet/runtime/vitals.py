"""What every process reports of itself, by the name of the metric."""

import os
import resource
import time
from collections import Counter
from pathlib import Path

from quartet.runtime.core import Metrics

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
START_TIME_FIELD = 19
"""Of /proc/self/stat, counted behind the name of the program: when the process started, in clock ticks."""


class Vitals:
    """Memory, processor time, start-up time, frames that waited (`queue_depth`) and frames that were dropped.

    Args:
        dropped: counts frames not acted upon, by reason; read only.
    """

    def __init__(self, dropped: "Counter[str]") -> None:
        self.queue_depth = 0
        self._dropped = dropped
        self._start_up_s = 0.0

    def on_ready(self) -> None:
        """Note how long the start has taken; only of the first readiness."""
        self._start_up_s = self._start_up_s or _age_s()

    def metrics(self, role: str) -> Metrics:
        """Return the metrics of this process, which has that role."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        label = f'{{role="{role}"}}'
        gauges = {
            f"process_resident_memory_bytes{label}": float(resident_pages * PAGE_BYTES),
            f"process_start_up_seconds{label}": self._start_up_s,
            f"ipc_queue_depth{label}": float(self.queue_depth),
        }
        dropped = {f'frames_dropped{{reason="{reason}"}}': float(count) for reason, count in [*self._dropped.items()]}
        return Metrics(gauges, {f"process_cpu_seconds{label}": used.ru_utime + used.ru_stime, **dropped})

    def with_metrics(self, role: str, core: Metrics) -> tuple[dict[str, float], dict[str, float]]:
        """Return gauges and counters of the whole process; what the core counts by itself stands before ours."""
        own = self.metrics(role)
        return {**own.gauges, **core.gauges}, {**own.counters, **core.counters}


def _age_s() -> float:
    """Return the seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
