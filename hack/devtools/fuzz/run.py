"""Runs the targets, and says what came of them."""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

import structlog

from devtools.fuzz.answers import answers
from devtools.fuzz.base import Result, Target, run
from devtools.fuzz.control import agent, operator
from devtools.fuzz.parsers import frames, messages, parses
from devtools.fuzz.records import journal_files
from devtools.fuzz.sockets import broker, keeper

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files are made and renamed by the hundred thousand

TARGETS = (
    Target("frames", 500, frames),
    Target("parses", 150, parses),
    Target("messages", 250, messages),
    Target("operator", 60, operator),
    Target("agent", 15, agent),
    Target("journal", 15, journal_files),
    Target("keeper", 50, keeper),
    Target("broker", 40, broker),
    Target("hooks", 10, answers),
)


def quiet() -> None:
    """What is tested logs every refusal: nobody reads millions of them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def run_all(inputs: int, seed: int, names: tuple[str, ...]) -> list[Result]:
    """Every target in turn; a line for each."""
    chosen = [target for target in TARGETS if not names or target.name in names]
    shares = sum(target.share for target in chosen)
    results = []
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as scratch:
        for target in chosen:
            (Path(scratch) / target.name).mkdir()
            result = await run(target, -(-inputs * target.share // shares), seed, Path(scratch) / target.name)
            print(result.line(), flush=True)
            for crash in result.crashes:
                print(f"CRASH {crash}", flush=True)
            results.append(result)
    return results


def main() -> int:
    """Exit status 1 if anything crashed."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same inputs")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="; ".join(t.name for t in TARGETS))
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - {target.name for target in TARGETS}
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(t.name for t in TARGETS)}")
    quiet()
    results = asyncio.run(run_all(arguments.inputs, arguments.seed, tuple(arguments.targets)))
    crashes = sum(len(result.crashes) for result in results)
    print(f"inputs: {sum(result.inputs for result in results)}, crashes: {crashes}")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
