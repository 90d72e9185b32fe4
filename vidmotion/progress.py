"""Shows the progress of a long piece of work: a bar on a terminal, log lines elsewhere."""

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
    """Yield `items`, and report how many of them are done.

    Args:
      items: the items to work through.
      what: the name of the work, in a word or two.
      total: the number of items; 0 takes the length of `items`, or leaves it unknown if they have none.
      unit: the name of the items, in the plural.
      every: the least number of seconds between two log lines.
      clock: a function that returns monotonic time in seconds; tests pass their own.
    """
    total = total or (len(items) if hasattr(items, "__len__") else 0)
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):  # only process 0 logs at INFO
        yield from tqdm(items, desc=what, total=total or None, unit=f" {unit}")
        return
    began = told = clock()
    for done, item in enumerate(items):
        now = clock()
        if done == 1:
            began = now  # the first item includes compilation, so its time is no guide
        if done and now - told >= every:
            of, left = f" of {total}" if total else "", ""
            if total and done > 1:
                rest = (now - began) / (done - 1) * (total - done)
                left = f", about {tqdm.format_interval(rest)} left"
            log.info("%s: %d%s %s%s", what, done, of, unit, left)
            told = now
        yield item
