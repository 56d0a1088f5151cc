"""Threads for what may hang: streams and hooks must not take those in which other migrations' arcs are made.

What of a stream can be sent without waiting may be sent in those (`Sender.stopped`).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


async def at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make blocking calls, each in a thread of its own; all are waited for, then the first failure is raised."""
    if not calls:
        return
    threads = ThreadPoolExecutor(len(calls), "stream")
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.gather(*(loop.run_in_executor(threads, call) for call in calls), return_exceptions=True)
    finally:
        threads.shutdown(wait=False)
    for result in found:
        if isinstance(result, BaseException):
            raise result
