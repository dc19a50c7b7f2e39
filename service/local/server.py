"""llama.cpp's own OpenAI-compatible HTTP server, kept to loopback, in a process that does nothing else."""

import contextlib
import json
import os
import selectors
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from typing import Any

from service.local.model import MODEL_NAME, load_engine, weights_path

SLOTS = 4
"""Answers written at the same time; llama.cpp batches them and keeps further calls waiting."""
CONTEXT_TOKENS = 4096
"""Prompt and answer together, in each slot. The model was trained on 8192, which would double the cache of 380 MB."""

# A model of this size gains nothing from more. Nor does it take every core: its threads wait for each other by
# spinning, so beside a busy service two of them on two cores are far slower than one.
_MAX_THREADS = 4
_ERRORS_ONLY = 1  # llama.cpp's verbosity
_STOP_SECONDS = 5
_STDIN = 0


class PortTakenError(RuntimeError):
    """Something else listens there; llama.cpp would only say that it could not start."""


def serve(host: str, port: int) -> None:
    """Serve the model until SIGTERM, SIGINT, or the end of the parent (standard input, if it is a pipe, is closed).

    Answers being written at that time get a few seconds to end. One JSON line on standard error says that the model is
    ready, another that it stops.

    Raises:
        LocalModelError: the extra is not installed.
        PortTakenError: the port is in use.
    """
    with _signals() as signals:
        server = _start(host, port)
        _say("model_ready", model=MODEL_NAME, host=host, port=port, slots=SLOTS, context_tokens=CONTEXT_TOKENS)
        _say("model_stopping", reason=_wait_for_end(signals))
        # The destructor waits for open streams, however long they are, and no Python code runs meanwhile to cut them
        # off. The kernel's alarm does.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_STOP_SECONDS)
        del server


def _start(host: str, port: int) -> Any:
    engine = load_engine()
    params = engine.CommonParams()
    params.model.path = str(weights_path())
    params.model_alias = {MODEL_NAME}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    params.cont_batching = True
    params.cpuparams.n_threads = min(_MAX_THREADS, max(1, _usable_cores() // 2))
    params.verbosity = _ERRORS_ONLY
    # Its defaults keep up to 8 GiB of old prompts, show the current ones to whoever asks and let every web page in.
    params.cache_ram_mib = 0
    params.endpoint_slots = False
    params.ui = False
    params.cors_origins = ""
    _check_free(host, port)
    return engine.Server(params)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(f"cannot listen on {host} port {port}: {error.strerror}") from error


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor on which each SIGTERM and SIGINT arrives as a byte.

    The byte is written by the C handler, so a signal that comes while the model is being loaded is not lost.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)
        os.close(reader)


def _wait_for_end(signals: int) -> str:
    """Block until there is a reason to stop, and say which."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        if _stdin_is_leash():
            selector.register(_STDIN, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                received = os.read(key.fd, 1)
                if key.fd == signals:
                    return signal.Signals(received[0]).name
                if not received:
                    return "parent_gone"


def _stdin_is_leash() -> bool:
    """A pipe (or a socket, which asyncio uses for one on some systems) has somebody at its other end."""
    with contextlib.suppress(OSError):
        mode = os.fstat(_STDIN).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return False


def _say(event: str, **data: object) -> None:
    sys.stderr.write(json.dumps({"event": event, **data}) + "\n")
    sys.stderr.flush()
