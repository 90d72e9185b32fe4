"""Measures the speed of parts of this package on this machine, and prints a table.

    python docs/results/throughput.py                   # all of `MEASURES`
    python docs/results/throughput.py heads --size 128

A measure is a unit and a function of the parsed arguments that yields rows (what was measured, units per second of
wall clock, units per second of one core's time). New measures are added to `MEASURES`. On a machine that is also doing
other work, compare the last column.

Heads: draws new frames each time, in pairs (`frames=2`) and in clips of 8 and 16, with another person in every clip.
`render` draws one clip per call and `render_many` 128 frames per call, each in one thread and in two. `loader` measures
what training sees in its first epoch, when the cache is empty: factors are drawn, frames are rendered, and both are
joined into batches of 64 frames, with one and with two of the loader's threads.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vidmotion.data import heads
from vidmotion.data.pipeline import Loader

Row = tuple[str, float, float]


def rates(count: int, run: Callable[[], None]) -> tuple[float, float]:
    """Calls `run`, which makes `count` units; returns units per second of wall clock and per second of core time."""
    wall, core = time.perf_counter(), time.process_time()
    run()
    return count / (time.perf_counter() - wall), count / (time.process_time() - core)


def dealt(threads: int, work: Callable[[int], object], starts: range) -> Callable[[], None]:
    """Returns a function that calls `work(start)` for all `starts`, in the given number of threads."""

    def run():
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))

    return run


def measure_heads(arguments: argparse.Namespace) -> Iterator[Row]:
    size, total = arguments.size, arguments.count
    rng = np.random.default_rng(0)
    for frames in (2, 8, 16):
        clips = max(1, total // frames)
        who = [heads.sample_identity(rng) for _ in range(clips)]
        how = [heads.sample_motion(rng, frames) for _ in range(clips)]
        together = max(1, 128 // frames)

        def one(start, who=who, how=how):
            heads.render(who[start], how[start], size)

        def many(start, who=who, how=how, together=together):
            part = slice(start, start + together)
            heads.render_many(who[part], how[part], size)

        many(0)
        for name, work, step in (("render", one, 1), ("render_many", many, together)):
            for threads in (1, 2):
                run = dealt(threads, work, range(0, clips, step))
                what = f"{name}, clips of {frames}, threads: {threads}"
                yield what, *rates(clips * frames, run)
        batch = max(1, 64 // frames)
        for threads in (1, 2):
            source = heads.HeadsSource(size, frames, clips, seed=threads, cache=True)
            with Loader(source, batch_size=batch, num_threads=threads) as loader:
                batches, steps = loader.iterate(), clips // batch

                def read(batches=batches, steps=steps):
                    for _ in range(steps):
                        next(batches)

                what = f"loader, clips of {frames}, threads: {threads}"
                yield what, *rates(steps * batch * frames, read)


# name -> (function, unit)
MEASURES = {"heads": (measure_heads, "frames")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "measures", nargs="*", help=f"which to take, of {', '.join(MEASURES)}; all by default"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument(
        "--count", type=int, default=2048, help="number of frames for each row of heads"
    )
    arguments = parser.parse_args()
    for name in arguments.measures:
        if name not in MEASURES:
            parser.error(f"there is no measure {name!r}; choose from {', '.join(MEASURES)}")
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before the start, {arguments.size} px")
    for name in arguments.measures or MEASURES:
        measure, unit = MEASURES[name]
        print(f"\n| {name} | {unit}/s | {unit}/s of a core |\n|---|---|---|")
        for what, wall, core in measure(arguments):
            print(f"| {what} | {wall:,.0f} | {core:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
