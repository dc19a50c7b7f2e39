"""The worker class that Gunicorn runs: Uvicorn with our limits."""

import os
import signal
import sys
import time
from typing import Any, Final, Never

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from observability.logging import get_logger
from service.protocol import LimitedHttpProtocol

log = get_logger("service.worker")

FLUSH_SECONDS: Final = 15  # at the end of a worker, for the books
_RETRY_SECONDS: Final = 2.0


class TollbookWorker(UvicornWorker):
    """Uvicorn on uvloop and httptools."""

    is_late = False  # set by `pre_fork`: the service had its workers already when this one began

    CONFIG_KWARGS = {  # noqa: RUF012 - the base class's shape
        "loop": "uvloop",
        "http": LimitedHttpProtocol,
        "ws": "none",
        "access_log": False,  # the canonical line stands for it
        "server_header": False,
        "proxy_headers": False,  # on only with trusted proxies, below
        "lifespan": "on",  # without it an application that fails to start would be served
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Streams go on for so long after SIGTERM; Gunicorn itself waits longer, so that the books can be flushed.
        self.config.timeout_graceful_shutdown = self.cfg.settings["graceful_timeout"].get() - FLUSH_SECONDS
        # Well within Gunicorn's limit, at which it takes a worker for dead.
        self.config.timeout_notify = max(1, self.timeout // 4)
        self.config.proxy_headers = bool(self.cfg.forwarded_allow_ips)

    def init_process(self) -> None:
        """Import the application and serve.

        Gunicorn halts, with every worker, when one cannot start. That is right at the first start; later, when a worker
        is replaced, it is not: a catalog that was broken since must not take the healthy ones down.
        """
        try:
            super().init_process()  # type: ignore[no-untyped-call]
        except SystemExit as error:
            if error.code != Arbiter.WORKER_BOOT_ERROR or not self.is_late:
                raise
            self._give_way()
        except Exception:
            if self.booted or not self.is_late:
                raise
            log.exception("worker_not_started")
            self._give_way()

    def _give_way(self) -> Never:
        time.sleep(_RETRY_SECONDS)  # Gunicorn starts another at once
        sys.exit(1)

    async def callback_notify(self) -> None:
        """Still alive. A worker whose master was killed ends too: nobody would restart or stop it."""
        if os.getppid() != self.ppid:
            os.kill(os.getpid(), signal.SIGTERM)
        await super().callback_notify()
