# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""An ordered, bounded pipeline over threads: read ahead, work in parallel, deliver in order."""
from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterable, Iterator, Optional, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 4


def worker_count() -> int:
    """Threads that compress or decompress: one per usable core, at most four (memory is bounded by them)."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def ordered(items: Iterable[Item], work: Callable[[Item], Result], workers: Optional[int] = None) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in the order of the items.

    A thread of its own reads the items, ``workers`` threads do the work (which must release the interpreter lock to
    gain anything), and the caller's thread receives. At most ``2 * workers + 2`` items exist at a time. An exception
    of the items or of the work is raised to the caller where its item would have come; nothing after it is delivered.
    """
    count = workers or worker_count()
    pending: queue.Queue[Optional[Future[Result]]] = queue.Queue(maxsize=2 * count)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(count, thread_name_prefix="guestark-work")

    def read() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                pending.put(pool.submit(work, item))
            pending.put(None)
        except BaseException as error:  # pylint: disable=broad-except  # handed to the caller, never swallowed
            failed: Future[Result] = Future()
            failed.set_exception(error)
            pending.put(failed)

    reader = threading.Thread(target=read, name="guestark-read", daemon=True)
    reader.start()
    try:
        while True:
            future = pending.get()
            if future is None:
                return
            yield future.result()
    finally:
        stopped.set()
        _drain(pending)
        pool.shutdown(wait=True)


def _drain(pending: queue.Queue[Optional[Future[Result]]]) -> None:
    # a reader that waits for room in the queue must get it, or it would hold its source for ever
    while True:
        try:
            future = pending.get_nowait()
        except queue.Empty:
            return
        if future is not None:
            future.cancel()
