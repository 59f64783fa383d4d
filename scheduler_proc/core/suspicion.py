"""What speaks against one request: deaths of the worker and failed steps with it on board. suspects.py changes it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Suspicion:
    """What speaks against one request. It is cleared with `cleared_at` outputs."""

    failed_steps: int = 0
    deaths: int = 0
    deaths_on_trial: int = 0
    cleared_at: int = 0
    had_no_output: bool = False

    @property
    def needs_trial(self) -> bool:
        """Whether it may only run with requests that are cleared."""
        return self.deaths > 1 or self.had_no_output

    @property
    def runs_alone(self) -> bool:
        """Whether it runs without any company: it was on board of failed steps."""
        return self.failed_steps > 1
