"""A process in the place of the api process: serves the engine client's core while a benchmark uses the engine."""

import asyncio
from collections.abc import Awaitable, Callable

from quartet.client.async_engine import AsyncEngine
from quartet.client.core import ClientCore
from quartet.runtime.context import Context
from quartet.runtime.process import Main
from quartet.runtime.shell import Shell

POLL_S = 0.01


def client_main(work: Callable[[AsyncEngine], Awaitable[None]]) -> Main:
    """Return the main coroutine of a process that runs `work` once the engine accepts requests."""

    async def main(context: Context) -> None:
        server = context.config.server
        core = ClientCore(context.name, server.tokenizer_procs, server.detok_procs, context.epoch)
        shell = Shell(context, core)
        engine = AsyncEngine(core, shell, context.clock)

        async def start() -> None:
            while not engine.is_accepting:
                await asyncio.sleep(POLL_S)
            await work(engine)

        task = asyncio.create_task(start())
        try:
            await shell.serve({})
        finally:
            task.cancel()

    return main
