"""The service under test: `tollbook serve` as an operator runs it, with a state directory and users of its own."""

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from auth.database import Database
from auth.passwords import Passwords
from auth.scopes import Scope
from auth.users import Users
from benchmarks import wire
from benchmarks.processes import Started, clean_environment
from service.database import make_engine, migrate

_PASSWORD: Final = "correct horse battery staple"
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Tally:
    """What a book says of all calls."""

    calls: int
    ok: int  # those that ended well
    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, calls: int) -> "Tally":
        """What it must be for so many calls of this benchmark."""
        return cls(calls, calls, calls * wire.INPUT_TOKENS, calls * wire.OUTPUT_TOKENS)


def make_state(directory: Path, users: int) -> list[str]:
    """A state directory with a database of users; returns their names. Services get a copy each."""
    names = [f"user-{number:03}" for number in range(users)]
    directory.mkdir(mode=0o700)

    async def fill() -> None:
        engine = make_engine(f"sqlite+aiosqlite:///{directory / 'tollbook.db'}")
        # The cost of a hash as the service has it by default, so that a login does not hash the password anew.
        passwords = Passwords(time_cost=1, memory_cost_kib=47104, parallelism=1, threads=1, max_waiting=users)
        try:
            await migrate(engine)
            for name in names:
                await Users(Database(engine)).add(name, _PASSWORD, [Scope.LLM], passwords=passwords)
        finally:
            passwords.close()
            await engine.dispose()

    asyncio.run(fill())
    return names


def catalog(upstream_port: int) -> str:
    """One model, with a price, so that costs are worked out too. JSON is YAML."""
    upstream = {"name": "fake", "base_url": f"http://127.0.0.1:{upstream_port}/v1"}
    price = {"version": "bench", "input": "0.15", "output": "0.60"}
    return json.dumps({"models": [{"name": wire.MODEL, "upstream": upstream, "price": price}]})


class Tollbook(Started):
    """One worker on one core."""

    def __init__(
        self, directory: Path, *, state: Path, port: int, upstream_port: int, core: int, env: Mapping[str, str]
    ) -> None:
        self.port = port
        self._directory = directory
        shutil.copytree(state, directory / "state")
        (directory / "tollbook.yaml").write_text(catalog(upstream_port))
        settings = {
            "TOLLBOOK_STATE_DIR": str(directory / "state"),
            "TOLLBOOK_CATALOG": str(directory / "tollbook.yaml"),
            "TOLLBOOK_PORT": str(port),
            "TOLLBOOK_WORKERS": "1",
            "TOLLBOOK_LOG_FORMAT": "json",
            **env,
        }
        with self._log.open("wb") as log:
            # In a directory without an .env, which would change settings.
            super().__init__(
                [str(Path(sys.executable).with_name("tollbook")), "serve"],
                core,
                cwd=directory,
                env=clean_environment(settings),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def _log(self) -> Path:
        return self._directory / "log.jsonl"

    def wait_ready(self) -> None:
        """Until /readyz says so.

        Raises:
            RuntimeError: it never does; with the end of its log.
        """
        give_up = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < give_up:
            try:
                if httpx2.get(f"{self._url}/readyz", timeout=5).is_success:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"tollbook serve is not ready: {self._log.read_text()[-2000:]}")

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        """Gunicorn's arbiter and its worker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *(int(child) for child in children)]

    def tokens(self, names: list[str]) -> list[str]:
        """An access token of each user, from /token."""
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            forms = ({"grant_type": "password", "username": name, "password": _PASSWORD} for name in names)
            return [client.post("/token", data=form).raise_for_status().json()["access_token"] for form in forms]

    def ledger(self) -> Tally:
        """What the ledger says. Call it when the service has stopped, and so has written all."""
        query = "SELECT count(*), sum(outcome = 'ok'), sum(input_tokens), sum(output_tokens) FROM ledger"
        with closing(sqlite3.connect(self._directory / "state" / "tollbook.db")) as database:
            return Tally(*database.execute(query).fetchone())

    def metrics(self) -> Tally:
        """What /metrics says."""
        answer = httpx2.get(f"{self._url}/metrics", timeout=60).raise_for_status()
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name == "tollbook_calls_total":
                    sums["calls"] += int(sample.value)
                    sums[sample.labels["outcome"]] += int(sample.value)
                elif sample.name == "tollbook_tokens_total":
                    sums[sample.labels["type"]] += int(sample.value)
        return Tally(sums["calls"], sums["ok"], sums["input"], sums["output"])

    def log(self) -> Tally:
        """What the canonical log lines say. Call it when the service has stopped."""
        sums: Counter[str] = Counter()
        with self._log.open("rb") as lines:
            for line in lines:
                if b'"outcome": ' in line:
                    entry = json.loads(line)
                    sums.update({"calls": 1, entry["outcome"]: 1})
                    sums.update(input=entry["input_tokens"], output=entry["output_tokens"])
        return Tally(sums["calls"], sums["ok"], sums["input"], sums["output"])
