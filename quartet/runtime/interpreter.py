"""What a process sets in its Python interpreter: garbage collection."""

import gc


def defer_collection() -> None:
    """Keep the garbage collector off until `settle_memory`: an import makes no garbage, but many objects to look at."""
    gc.disable()


def settle_memory() -> None:
    """Take what start-up has made out of the garbage collector's sight, and let it run less often: a full collection
    of a large process would stop it for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    gc.enable()
