"""/livez: this process only. /readyz: may traffic be sent here."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

router = APIRouter(tags=["health"])

_CHECK_SECONDS: Final = 2.0


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether this worker wants traffic, and how what it depends on is doing."""

    status: Literal["ready", "draining"]
    database: Literal["ok", "unreachable"]


@dataclass(slots=True)
class Health:
    """What this worker knows of itself."""

    check_database: Callable[[], Awaitable[None]]
    drain_file: Path  # while it exists, no worker wants traffic; whoever stops the service makes it
    database_ok: bool = True
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def draining(self) -> bool:
        """Whether new traffic should go elsewhere."""
        return self.drain_file.exists()

    def start(self) -> None:
        """Look at the database now and then; a probe never waits for it."""
        self._task = asyncio.create_task(self._watch(), name="health")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self.check_database()
                self.database_ok = True
            except Exception:  # noqa: BLE001 - whatever the driver raises, it means the same here
                self.database_ok = False
            await asyncio.sleep(_CHECK_SECONDS)


@router.get("/livez")
async def livez() -> Live:
    """The process is alive. Depends on nothing else, so that no outage elsewhere gets it killed."""
    return Live()


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(request: Request) -> JSONResponse:
    """Whether to send traffic here: no while it is draining.

    A database that is down is told but does not make it unready: whoever has a token is still served, and if every
    replica left at once nobody would be.
    """
    health: Health = request.state.health
    draining = health.draining
    ready = Ready(status="draining" if draining else "ready", database="ok" if health.database_ok else "unreachable")
    return JSONResponse(ready.model_dump(), status_code=503 if draining else 200)
