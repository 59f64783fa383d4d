"""Reads the file of --simulated-script: a JSON list of {"contains": text, "reply": text}."""

import msgspec

from quartet.runtime.home import expand_home
from quartet.wire.config import ScriptedReply
from quartet.wire.errors import ConfigError


def read_script(path: str) -> tuple[ScriptedReply, ...]:
    """Return the replies in the file, or none without a path; raises ConfigError for one that cannot be read."""
    if not path:
        return ()
    try:
        return msgspec.json.decode(expand_home(path).read_bytes(), type=tuple[ScriptedReply, ...])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"simulated_script is {path!r}, which cannot be read: {error}") from error
