"""/livez depends on nothing; /readyz tells of the database and says no while the service drains."""

import asyncio

import httpx2

from service.app import create_app
from service.health import Health
from service.settings import Settings
from tests.observability.kit import until
from tests.service.test_http import UPSTREAM, process_restored, serving

NO_DATABASE = "postgresql+asyncpg://nobody@127.0.0.1:1/none"


async def test_livez_answers_without_anything_else(tmp_path):
    """Not even the lifespan has begun: there is no state, no key, no database."""
    with process_restored():
        app = create_app(Settings.model_validate({"state_dir": tmp_path / "none", "openai_base_url": UPSTREAM}))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            answer = await client.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert not (tmp_path / "none").exists()


async def test_it_is_ready_with_its_database(tmp_path):
    async with serving(tmp_path) as served:
        answer = await served.client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "database": "ok"})


async def test_it_is_ready_without_its_database_and_says_so(tmp_path):
    async with serving(tmp_path, database_url=NO_DATABASE, migrated=False) as served:
        health = served.state["health"]
        await until(lambda: not health.database_ok, "the database to be missed")
        answer = await served.client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "database": "unreachable"})
        assert (await served.client.get("/livez")).status_code == 200


async def test_it_is_not_ready_while_the_drain_file_is_there(tmp_path):
    async with serving(tmp_path) as served:
        drain_file = tmp_path / "draining"
        drain_file.touch()
        answer = await served.client.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining", "database": "ok"})
        assert (await served.client.get("/livez")).status_code == 200
        drain_file.unlink()
        assert (await served.client.get("/readyz")).status_code == 200


async def test_probes_are_not_in_the_metrics(tmp_path):
    async with serving(tmp_path) as served:
        for path in ("/livez", "/readyz", "/nowhere"):
            await served.client.get(path)
        metrics = (await served.client.get("/metrics")).text
    assert "http_requests_total{" in metrics
    assert "livez" not in metrics
    assert "readyz" not in metrics


async def test_a_database_that_comes_back_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr("service.health._CHECK_SECONDS", 0.01)
    up = False

    async def check() -> None:
        if not up:
            raise OSError("no route")

    health = Health(check, tmp_path / "draining")
    health.start()
    await until(lambda: not health.database_ok, "the database to be missed")
    up = True
    await until(lambda: health.database_ok, "the database to be found")
    await health.stop()


async def test_a_database_that_hangs_counts_as_unreachable(monkeypatch, tmp_path):
    monkeypatch.setattr("service.health._CHECK_SECONDS", 0.01)

    async def check() -> None:
        await asyncio.Event().wait()

    health = Health(check, tmp_path / "draining")
    health.start()
    await until(lambda: not health.database_ok, "the database to be missed")
    await health.stop()
