import io
import logging
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout

import pytest
import structlog

from observability.logging import LogFormat, configure_logging
from tests.observability.kit import Desk


class Pipeline:
    """The log pipeline of a process, written where a test can read it."""

    def __init__(self) -> None:
        # Bytes, as a real standard output is: what cannot be encoded cannot be written.
        self._written = io.BytesIO()
        self._stdout = io.TextIOWrapper(self._written, "utf-8", newline="", write_through=True)

    def configure(self, log_format: LogFormat = "json", level: str = "debug") -> None:
        with redirect_stdout(self._stdout):
            configure_logging(log_format, level)
        # A logger that kept this pipeline would take it into the tests that follow.
        structlog.configure(cache_logger_on_first_use=False)

    def read(self) -> str:
        """What was written since the last time it was asked."""
        found = self._written.getvalue().decode()
        self._written.seek(0)
        self._written.truncate()
        return found


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    """Not configured yet; undone afterwards."""
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield Pipeline()
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def logged(pipeline: Pipeline) -> Callable[[], str]:
    """What was logged as JSON since the last time it was asked."""
    pipeline.configure(level="info")
    return pipeline.read
