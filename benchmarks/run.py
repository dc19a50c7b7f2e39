"""What one worker on one core serves with everything on, beside the same upstream asked directly.

`python -m benchmarks.run` takes five minutes, with `--quick` two. The legs are interleaved and repeated, and at the end
the books are compared: a run in which ledger, metrics, log, upstream and clients do not count the same is void.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from benchmarks import collector, upstream, wire
from benchmarks.load import Job, Result
from benchmarks.processes import Cores, Helper, VoidRunError, apply_load
from benchmarks.report import LEGS_HEADER, RATIOS_HEADER, Figures, leg_row, machine, ratio_row, spread, table
from benchmarks.tollbook import Tally, Tollbook, make_state

CLIENTS: Final = 32
_WARM_UP_SECONDS: Final = 1.0  # the load's own start is in it
_QUIET_SHARE: Final = 0.9  # of its core, below which the clock tells of the neighbours too
_MAX_CALLS: Final = 1_000_000  # in one leg: a bound for a machine that is faster than we think


class Target(StrEnum):
    """Who answers, in the words of the tables."""

    ALONE = "upstream, a core to itself"
    DIRECT = "upstream, direct"
    ON = "Tollbook, all on"
    QUIET = "Tollbook, no traces or log"


# What an operator would switch; metrics and ledger stay on, or there would be nothing to check the count against.
QUIET: Final = {"TOLLBOOK_TRACING_ENABLED": "false", "TOLLBOOK_LOG_LEVEL": "error"}


@dataclass(frozen=True, slots=True)
class Leg:
    """Something to be measured once a round."""

    target: Target
    stream: bool = False
    clients: int = CLIENTS

    @property
    def title(self) -> str:
        """For the tables."""
        what = "streams" if self.stream else "calls"
        return f"{self.target}: {what}{'' if self.clients > 1 else ', one client'}"


LEGS: Final = (
    *(Leg(target, stream) for stream in (False, True) for target in Target),
    Leg(Target.DIRECT, clients=1),
    Leg(Target.ON, clients=1),
)


_UPSTREAM: Final = {Target.ALONE, Target.DIRECT}


class Bench:
    """Everything that runs, and what was measured."""

    def __init__(self, resources: ExitStack, users: int) -> None:
        self.cores = Cores.choose()
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tollbook-bench-")))
        self.upstream = resources.enter_context(Helper("benchmarks.upstream", self.cores.upstream))
        self.collector = resources.enter_context(Helper("benchmarks.collector", self.cores.upstream))
        names = make_state(directory / "users", users)
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.collector.port}"}
        self.services = {
            target: resources.enter_context(self._service(directory / target.name, env))
            for target, env in ((Target.ON, endpoint), (Target.QUIET, QUIET))
        }
        for service in self.services.values():
            service.wait_ready()
        self.tokens = {target: service.tokens(names) for target, service in self.services.items()}
        self.figures: dict[Leg, list[Figures]] = defaultdict(list)
        self.answered: Counter[tuple[str, bool]] = Counter()  # by target, and whether it was a stream

    def _service(self, directory: Path, env: dict[str, str]) -> Tollbook:
        directory.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        return Tollbook(
            directory,
            state=directory.parent / "users",
            port=port,
            upstream_port=self.upstream.port,
            core=self.cores.service,
            env=env,
        )

    def measure(self, leg: Leg, seconds: float) -> None:
        """One leg of one round."""
        result = self._load(leg, seconds)
        measured = "upstream" if leg.target in _UPSTREAM else "service"
        figures = Figures.of(result, measured, shares_core=leg.target == Target.DIRECT)
        self.figures[leg].append(figures)
        print(f"  {leg.title}: {figures.rate:,.0f}/s, {figures.cpu_us:.0f} µs CPU", file=sys.stderr)

    def warm_up(self) -> None:
        """A worker's first calls open connections and fill caches: they are in the books, not in the figures."""
        for target in self.services:
            for stream in (False, True):
                self._load(Leg(target, stream), 1.0)

    def _load(self, leg: Leg, seconds: float) -> Result:
        service = self.services.get(leg.target)
        watch = {"upstream": [self.upstream.pid], "collector": [self.collector.pid]}
        if service:
            watch["service"] = service.pids()
        self.upstream.move(self.cores.service if leg.target == Target.ALONE else self.cores.upstream)
        starts_at = time.monotonic() + _WARM_UP_SECONDS
        job = Job(
            port=service.port if service else self.upstream.port,
            stream=leg.stream,
            connections=leg.clients,
            tokens=self.tokens[leg.target if service else Target.ON],
            first_number=self.answered.total(),
            starts_at=starts_at,
            ends_at=starts_at + seconds,
            max_calls=_MAX_CALLS,
            watch=watch,
        )
        result = apply_load(job, self.cores.load)
        self.answered[leg.target, leg.stream] += result.answered
        return result

    def close_books(self) -> tuple[list[list[str]], bool]:
        """Stops the services and compares what was counted; a row for each, and whether all agree."""
        rows, agree = [], True
        for target, service in self.services.items():
            calls = self.answered[target, False] + self.answered[target, True]
            books = {"metrics": service.metrics()}
            service.stop()
            books["ledger"] = service.ledger()
            if target == Target.ON:
                books["log"] = service.log()
            agree &= all(tally == Tally.of(calls) for tally in books.values())
            counted = [f"{books[name].calls:,}" if name in books else "off" for name in ("ledger", "metrics", "log")]
            spans = self.collector.counts(collector.SPANS).get(f"chat {wire.MODEL}", 0)
            rows.append([target, f"{calls:,}", *counted, f"{spans:,}" if target == Target.ON else "off"])
        served = self.upstream.counts(upstream.SERVED)
        agree &= (served["calls"], served["streams"]) == tuple(
            sum(count for (_, stream), count in self.answered.items() if stream is wanted) for wanted in (False, True)
        )
        return rows, agree

    def report(self) -> str:
        """The tables."""
        found = self.figures
        ratios = [
            ratio_row(f"{ours} / {theirs}: {what}", found[Leg(ours, stream)], found[Leg(theirs, stream)])
            for ours, theirs in ((Target.ON, Target.DIRECT), (Target.ON, Target.ALONE), (Target.ON, Target.QUIET))
            for what, stream in (("calls", False), ("streams", True))
        ]
        one = list(zip(found[Leg(Target.ON, clients=1)], found[Leg(Target.DIRECT, clients=1)], strict=True))
        added = [spread([getattr(on, name) - getattr(direct, name) for on, direct in one], 2) for name in _LATENCIES]
        had = min(
            figures.busy for leg in LEGS if leg.target in self.services and leg.clients > 1 for figures in found[leg]
        )
        noise = f"In its most disturbed leg the service had {had:.0%} of its core."
        if had < _QUIET_SHARE:
            noise += " Others used it too: the rates fall with that share; the CPU time of an answer rises, but less."
        return "\n\n".join(
            [
                noise,
                table(LEGS_HEADER, [leg_row(leg.title, found[leg]) for leg in LEGS]),
                table(RATIOS_HEADER, ratios),
                f"Added for one client at a time: p50 {added[0]} ms, p99 {added[1]} ms.",
            ]
        )


_LATENCIES: Final = ("p50_ms", "p99_ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: short legs, few users")
    quick = parser.parse_args().quick
    rounds, seconds, users = (3, 2.0, 4) if quick else (5, 4.0, 50)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all we started is ended
    try:
        agree = _run(rounds, seconds, users)
    except VoidRunError as error:
        sys.exit(f"\nThese figures are void: {error}")
    if not agree:
        sys.exit("\nThese figures are void: the books do not agree with the clients.")
    print("\nThe clients, the upstream, the ledger, the metrics and the log counted the same calls and tokens.")


def _run(rounds: int, seconds: float, users: int) -> bool:
    """Measures and prints; whether the books agree."""
    load_before = os.getloadavg()[0]
    with ExitStack() as resources:
        bench = Bench(resources, users)
        bench.warm_up()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            # There and back, so that a machine that grows slower or busier does not favour a leg.
            for leg in LEGS if number % 2 == 0 else reversed(LEGS):
                bench.measure(leg, seconds)
        books, agree = bench.close_books()
    print(f"{machine()} Load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after.")
    print(f"{rounds} rounds of {seconds:.0f} s a leg, {CLIENTS} clients, {users} users; median (least to most).\n")
    print(bench.report(), "\n")
    print(table(("", "clients", "ledger", "metrics", "log", "call spans exported"), books))
    return agree


if __name__ == "__main__":
    main()
