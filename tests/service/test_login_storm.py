"""Five hundred logins at once, while fifty streams run."""

import asyncio
import itertools
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from auth.database import Database
from auth.passwords import Passwords
from auth.users import Users
from service.database import make_engine
from tests.support.calls import CHAT, body
from tests.support.login_storm import Login, storm
from tests.support.scripts import BRIEF_CHUNKS
from tests.support.service import RunningService
from tests.support.tools import raise_file_limit, unavailable

STREAMS, LOGINS, USERS = 50, 500, 25
HASH_THREADS, HASH_MEMORY_KIB = 2, 47104
"""The service's defaults, in each worker."""
MARGIN_KIB = 64 * 1024
"""What a worker may take for 250 connections and what they carry, beside the memory of hashing."""
USUAL_RATIO = 3.0
"""How many times as long as without a storm the usual gap between chunks, the median, may be in it."""
CALM_RATIO, CROWD_RATIO = 50.0, 8.0
"""How many times as long the gap that 99 of 100 do not pass may be in the storm as without one, and as when as many
requests come at once that are refused by their form. The latter is what hashing adds; all are measured in one run."""
PASSWORD = "correct horse battery staple"
NO_LOGINS = [Login("", "", "203.0.113.200")] * LOGINS


@pytest.fixture(scope="module")
def stormed(service_options, tmp_path_factory):
    """A service of its own that believes who says where a login comes from."""
    raise_file_limit()
    env = service_options["env"] | {"TOLLBOOK_TRUSTED_PROXIES": "127.0.0.1"}
    directory = tmp_path_factory.mktemp("storm")
    with RunningService(directory, catalog=service_options["catalog"], env=env) as running:
        asyncio.run(add_users(running))
        yield running


async def add_users(service):
    engine = make_engine(f"sqlite+aiosqlite:///{service.state_dir / 'tollbook.db'}")
    passwords = Passwords(time_cost=1, memory_cost_kib=HASH_MEMORY_KIB, parallelism=1, threads=1, max_waiting=1)
    for number in range(USERS):
        await Users(Database(engine)).add(f"user-{number}", PASSWORD, ["llm"], passwords=passwords)
    passwords.close()
    await engine.dispose()


@pytest.fixture
def elsewhere():
    """A process that is ready to send."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(storm, "http://127.0.0.1", []).result()
        yield pool


def logins():
    """Right and wrong passwords, mixed, each user at an address of their own."""
    return [
        Login(f"user-{n % USERS}", PASSWORD if n % 3 else "wrong password", f"203.0.113.{n % USERS}")
        for n in range(LOGINS)
    ]


class Stream:
    """One that is being read: what came, and when."""

    def __init__(self, marker):
        self.marker = marker
        self.begun = asyncio.Event()
        self.content = b""
        self.times = []

    async def read(self, http):
        sent = body("brief-chunks", self.marker, stream=True, stream_options={"include_usage": True})
        async with http.post(CHAT, json=sent) as answer:
            assert answer.status == 200
            async for piece in answer.content.iter_any():
                self.content += piece
                self.times.append(asyncio.get_running_loop().time())
                self.begun.set()


async def run_streams(service, marker, meanwhile=None):
    """All at once, and `meanwhile` from when the last has begun. The streams once all have ended, and its result."""
    streams = [Stream(f"{marker}-{number}") for number in range(STREAMS)]
    headers = {"Authorization": f"Bearer {service.token()}"}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        aiohttp.ClientSession(service.base_url, headers=headers, connector=connector) as http,
        asyncio.TaskGroup() as group,
    ):
        for stream in streams:
            group.create_task(stream.read(http))
        for stream in streams:
            await stream.begun.wait()
        result = await meanwhile if meanwhile is not None else None
    return streams, result


def gap(streams, percent):
    """Seconds between two pieces of a stream: so many of 100 are not longer."""
    gaps = sorted(later - earlier for stream in streams for earlier, later in itertools.pairwise(stream.times))
    return gaps[len(gaps) * percent // 100]


def peak_kib(pid):
    """The most memory that a process ever had since `reset_peak`, KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def reset_peak(pid):
    """Begin anew at what the process has now; that, KiB."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        unavailable("the peak of a process's memory cannot be reset here")
    return peak_kib(pid)


def login_events(service):
    """How many logins were counted, by result and by reason."""
    counted: Counter[str] = Counter()
    for sample in service.metrics():
        if sample.name == "tollbook_auth_events_total" and sample.labels["event"] == "login":
            for label in ("result", "reason"):
                counted[sample.labels[label]] += int(sample.value)
    return counted


def check_answers(answers, counted):
    """Each was answered in one of the ways there are, and counted so."""
    statuses = Counter(answer.status for answer in answers)
    assert len(answers) == LOGINS
    assert {200, 400, 503} <= statuses.keys() <= {200, 400, 429, 503}, statuses
    assert {(answer.status, answer.error, answer.retry_after) for answer in answers if answer.status != 429} == {
        (200, "", None),
        (400, "invalid_grant", None),
        (503, "temporarily_unavailable", "1"),
    }
    throttled = [answer for answer in answers if answer.status == 429]
    assert all(answer.error == "slow_down" and int(answer.retry_after or 0) >= 1 for answer in throttled)
    assert counted["busy"] > 0
    assert counted["refused"] == statuses[400] + statuses[429]
    assert counted["error"] == statuses[503]
    assert counted["ok"] >= statuses[200]  # the database may still fail who has proved who they are


@pytest.mark.slow
async def test_a_login_storm_neither_holds_up_streams_nor_fills_memory(stormed, upstream, elsewhere, marker):
    async def send(logins):
        return await asyncio.get_running_loop().run_in_executor(elsewhere, storm, stormed.base_url, logins)

    await run_streams(stormed, f"{marker}-warm", send(NO_LOGINS))
    calm, _ = await run_streams(stormed, f"{marker}-calm")
    crowded, _ = await run_streams(stormed, f"{marker}-crowd", send(NO_LOGINS))
    workers, counted = stormed.children(), login_events(stormed)
    before = {pid: reset_peak(pid) for pid in workers}
    streams, answers = await run_streams(stormed, f"{marker}-storm", send(logins()))

    for stream in (*calm, *crowded, *streams):
        assert stream.content == bytes(upstream.wait_request(f'"{stream.marker}"').sent)
        assert stream.content.count(b"tick ") == BRIEF_CHUNKS
    check_answers(answers, login_events(stormed) - counted)
    assert stormed.children() == workers
    for pid in workers:
        assert peak_kib(pid) <= before[pid] + HASH_THREADS * HASH_MEMORY_KIB + MARGIN_KIB
    assert gap(streams, 50) < USUAL_RATIO * gap(calm, 50)
    assert gap(streams, 99) < CALM_RATIO * gap(calm, 99)
    assert gap(streams, 99) < CROWD_RATIO * gap(crowded, 99)
