"""The figures of the rounds, with median and spread, as Markdown tables that read well as text."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from benchmarks.load import Result
from benchmarks.processes import VoidRunError

_FEWEST: Final = 20  # answers in a leg, below which not even a median says anything
_PACKAGES: Final = (
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "openai",
    "aiohttp",
    "pydantic",
    "opentelemetry-sdk",
    "prometheus-client",
    "structlog",
    "SQLAlchemy",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """One leg of one round. Shares are of one core, 0 to 1."""

    rate: float  # answers a second
    p50_ms: float
    p99_ms: float
    cpu_us: float  # CPU time that the measured process took for an answer
    busy: float  # share of its core that the measured process had
    other_busy: float  # share of the other core that upstream, collector and load had, as far as they run there
    reads: float  # how many reads an answer arrived in

    @classmethod
    def of(cls, result: Result, measured: str, *, shares_core: bool) -> "Figures":
        """The figures of a process that the load watched.

        Args:
            result: of the load.
            measured: the name it was watched under.
            shares_core: it runs on the other core, beside the load.

        Raises:
            VoidRunError: too few answers to say anything.
        """
        if result.timed < _FEWEST:
            raise VoidRunError(f"only {result.timed} answers in {result.seconds:.1f} s: no figure to rely on")
        percentiles = quantiles(result.latencies_us, n=100, method="inclusive")
        cpu = result.cpu_seconds
        there = sum(cpu.values()) - (0 if shares_core else cpu[measured])
        return cls(
            rate=result.timed / result.seconds,
            p50_ms=percentiles[49] / 1000,
            p99_ms=percentiles[98] / 1000,
            cpu_us=cpu[measured] / result.timed * 1e6,
            busy=cpu[measured] / result.seconds,
            other_busy=there / result.seconds,
            reads=result.pieces / result.timed,
        )


LEGS_HEADER: Final = (
    "", "answers/s", "p50 ms", "p99 ms", "CPU µs an answer", "had of its core", "other core busy", "reads an answer"
)  # fmt: skip


def leg_row(title: str, rounds: Sequence[Figures]) -> list[str]:
    """A leg, over all its rounds."""
    return [
        title,
        spread([figures.rate for figures in rounds], 0),
        f"{median(figures.p50_ms for figures in rounds):.2f}",
        spread([figures.p99_ms for figures in rounds], 2),
        spread([figures.cpu_us for figures in rounds], 0),
        f"{median(figures.busy for figures in rounds):.0%}",
        f"{median(figures.other_busy for figures in rounds):.0%}",
        f"{median(figures.reads for figures in rounds):.1f}",
    ]


RATIOS_HEADER: Final = ("", "by the clock", "by CPU time")


def ratio_row(title: str, ours: Sequence[Figures], theirs: Sequence[Figures]) -> list[str]:
    """How many answers the first gives for each of the second: by the rates, and by the CPU time of an answer."""
    pairs = list(zip(ours, theirs, strict=True))
    return [
        title,
        spread([our.rate / their.rate for our, their in pairs], 3),
        spread([their.cpu_us / our.cpu_us for our, their in pairs], 3),
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, smallest and largest."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; its first column is words, the others are figures."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in others) + " |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def machine() -> str:
    """Where and when this was measured."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {len(os.sched_getaffinity(0))} cores, "
        f"{model.group(1) if model else platform.machine()}; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}; tollbook {version('tollbook')}, {packages}."
    )
