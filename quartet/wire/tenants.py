"""Whose request it is: names of tenants, and their weights as --tenant-weights gives them."""

import hashlib
import math
from collections.abc import Sequence

DEFAULT = "default"
"""In --tenant-weights the name of every tenant that it does not name."""
NAME_CHARACTERS = 16


def tenant_named(text: str) -> str:
    """Return the tenant that an API key, or a user's name, stands for: the first hex digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:NAME_CHARACTERS]


def parse_tenant_weights(given: Sequence[str]) -> dict[str, float]:
    """Return the weight of each tenant named by `NAME=WEIGHT`, in one text or several; raises ValueError, which says
    what is wrong."""
    weights: dict[str, float] = {}
    for part in ",".join(given).split(",") if given else ():
        name, separator, text = part.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not separator or not name or not 0 < weight < math.inf:
            raise ValueError(f"{part!r} is not NAME=WEIGHT with a weight above 0, such as {DEFAULT}=1")
        if name in weights:
            raise ValueError(f"{name!r} has two weights")
        weights[name] = weight
    return weights
