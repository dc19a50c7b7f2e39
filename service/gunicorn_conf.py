"""Gunicorn's configuration, from our settings. `tollbook serve` prepares what must be there and starts it."""

from typing import Any

from gunicorn import glogging

from observability import multiprocess
from observability.logging import configure_logging
from service.settings import load_settings
from service.worker import FLUSH_SECONDS

_settings = load_settings()


class logger_class(glogging.Logger):  # noqa: N801 - the name of Gunicorn's setting
    """Gunicorn's own lines go through our pipeline."""

    def setup(self, cfg: Any) -> None:
        """Instead of handlers of its own."""
        self.loglevel = self.LOG_LEVELS[_settings.observability.log_level]
        self.cfg = cfg
        configure_logging(_settings.observability.log_format, _settings.observability.log_level)


wsgi_app = "service.main:app"
bind = [f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"]
workers = _settings.workers
worker_class = "service.worker.TollbookWorker"
keepalive = _settings.keepalive_seconds
max_requests = _settings.worker_max_requests
max_requests_jitter = _settings.worker_max_requests // 2  # so that the workers do not all leave at once
timeout = 60
graceful_timeout = _settings.graceful_timeout_seconds + FLUSH_SECONDS
forwarded_allow_ips = ",".join(_settings.http.trusted_proxies)
backlog = 4096
proc_name = "tollbook"
control_socket_disable = True
# Each worker imports the application after fork: threads and connections do not survive one.
preload_app = False


def on_starting(server: Any) -> None:
    """Before the first worker."""
    multiprocess.prepare_directory(_settings.state_dir / "metrics")
    server.used_slots = set()
    server.begun = 0


def pre_fork(server: Any, worker: Any) -> None:
    """In the master: the new worker takes the lowest free slot."""
    worker.slot = multiprocess.lowest_free_slot({other.slot for other in server.WORKERS.values()})
    worker.is_successor = worker.slot in server.used_slots
    server.used_slots.add(worker.slot)
    worker.is_late = server.begun >= server.num_workers
    server.begun += 1


def post_fork(_server: Any, worker: Any) -> None:
    """In the worker, before it imports the application."""
    multiprocess.use_slot(worker.slot, successor=worker.is_successor)


def child_exit(_server: Any, worker: Any) -> None:
    """In the master: a worker is gone, however it went."""
    multiprocess.release_slot(worker.slot)
