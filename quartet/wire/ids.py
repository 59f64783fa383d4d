"""The identifiers of the engine, as distinct types.

Everything here is plain data; nothing depends on the rest of Quartet.
"""

from enum import IntEnum
from typing import Annotated, NewType

import msgspec

Rid = NewType("Rid", bytes)
"""128-bit request id, 16 bytes, chosen by the api process that accepted the request."""

Epoch = NewType("Epoch", int)
"""Incarnation number of a process, given by the supervisor; it only rises."""

Handle = NewType("Handle", int)
"""Short name the scheduler gives to one attempt of one choice on the token path to a detokenizer."""


Address = Annotated[str, msgspec.Meta(pattern="^[a-z]{1,12}-[0-9]{1,3}$")]
"""The name of a process that is to be answered (`process_name`); the codec refuses any other text."""


class Role(IntEnum):
    """The kinds of processes. The value travels in every frame header."""

    SUPERVISOR = 0
    API = 1
    TOKENIZER = 2
    SCHEDULER = 3
    WORKER = 4
    DETOK = 5
    WEIGHTS = 6
    STANDBY = 7

    @property
    def label(self) -> str:
        """The name used on the command line, in `/topology` and in socket file names."""
        return self.name.lower()


def process_name(role: Role, rank: int) -> str:
    """Return the address of one process, e.g. `detok-0`: its socket's file name without the suffix."""
    return f"{role.label}-{rank}"
