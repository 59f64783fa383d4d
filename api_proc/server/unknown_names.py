"""Names of fields that no API here knows, each logged once."""

import logging
import re

log = logging.getLogger(__name__)

MOST_LOGGED = 256
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")


class UnknownNames:
    """Logs each unknown name once; bounded, since clients choose names. Values are never logged."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def note(self, name: str) -> None:
        """Log a name unless it has been, or too many have."""
        if name not in self._logged and len(self._logged) < MOST_LOGGED and _NAME.match(name):
            self._logged.add(name)
            log.info("the unknown field %s of a request is ignored; this is logged once", name)
