"""When a dead process is started again (faults R12). Pure: time is an argument."""

BACKOFF_S = (0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
WINDOW_S = 60.0
HEALTHY_S = 60.0


class RestartPolicy:
    """The deaths of one process and the delay before each restart.

    Args:
        limit: deaths before readiness that are allowed within WINDOW_S.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._useless_deaths_s: list[float] = []
        self._streak = 0

    def on_death(self, now: float, lived_s: float, was_useful: bool) -> float | None:
        """Return how long to wait before the next start, or None to give up.

        `was_useful`: the process had become ready. The deaths of a useful process only delay its restarts.
        """
        if lived_s > HEALTHY_S:
            self._streak = 0
        if not was_useful:
            self._useless_deaths_s = [death for death in self._useless_deaths_s if now - death < WINDOW_S] + [now]
            if len(self._useless_deaths_s) > self._limit:
                return None
        delay_s = BACKOFF_S[min(self._streak, len(BACKOFF_S) - 1)]
        self._streak += 1
        return delay_s
