"""The worker class that Gunicorn runs: Uvicorn with our limits."""

import os
import signal
from typing import Any

from uvicorn_worker import UvicornWorker

FLUSH_SECONDS = 15  # at the end of a worker, for the books


class TollbookWorker(UvicornWorker):
    """Uvicorn on uvloop and httptools."""

    CONFIG_KWARGS = {  # noqa: RUF012 - the base class's shape
        "loop": "uvloop",
        "http": "httptools",
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

    async def callback_notify(self) -> None:
        """Still alive. A worker whose master was killed ends too: nobody would restart or stop it."""
        if os.getppid() != self.ppid:
            os.kill(os.getpid(), signal.SIGTERM)
        await super().callback_notify()
