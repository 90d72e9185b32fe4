"""How far a long piece of work has come: a bar where someone watches, lines of the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)


def watched(
    items: Iterable[Any],
    what: str,
    total: int = 0,
    unit: str = "batches",
    every: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Any]:
    """Pass `items` on, and say how many have been worked through.

    Args:
      items: whatever is worked through.
      what: the work, in a word or two.
      total: number of items; 0: their own length, or unknown where they have none.
      unit: what the items are.
      every: least number of seconds between two lines of the log.
      clock: seconds, monotonic; a test passes its own.
    """
    total = total or (len(items) if hasattr(items, "__len__") else 0)
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):  # not in silent processes of a job
        yield from tqdm(items, desc=what, total=total or None, unit=f" {unit}")
        return
    began = told = clock()
    for done, item in enumerate(items):
        now = clock()
        if done == 1:
            began = now  # what is compiled for the first item says nothing of the others
        if done and now - told >= every:
            of, left = f" of {total}" if total else "", ""
            if total and done > 1:
                rest = (now - began) / (done - 1) * (total - done)
                left = f", about {tqdm.format_interval(rest)} left"
            log.info("%s: %d%s %s%s", what, done, of, unit, left)
            told = now
        yield item
