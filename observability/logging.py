"""One structlog pipeline for the service, uvicorn, gunicorn and libraries: one JSON object a line on standard output.

An event is a constant word; data are keywords. JSON escapes what a client may have put into a value, and the terminal
format has its control characters escaped, so that no value can forge a line.
"""

import logging
import re
import sys
import traceback
from typing import Any, Literal, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

LogFormat = Literal["json", "pretty"]
# What could begin a line, move a cursor, or not be encoded.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OUR_LOGGERS = ("service", "auth", "observability", "tollbook")
_SERVER_LOGGERS = ("gunicorn.error", "gunicorn.access", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


def _add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A line written while a span is open says which."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", f"{span.trace_id:032x}")
        event.setdefault("span_id", f"{span.span_id:016x}")
    return event


def printable(text: str) -> str:
    """The text with control characters spelled out, so that it can forge no line and move no cursor."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def _escape_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {printable(key): printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _indented(out: TextIO, exc_info: ExcInfo) -> None:
    """A traceback whose every line shows that it is part of one. No local variables: they hold passwords."""
    lines = "".join(traceback.format_exception(*exc_info)).rstrip("\n").split("\n")
    out.write("\n" + "\n".join(f"  | {printable(line)}" for line in lines))


def _name_server_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Lines of libraries are sentences: they go under `message`, and `event` stays a word one can search for."""
    record: logging.LogRecord | None = event.get("_record")
    if record is not None and event.get("_from_structlog") is False:
        event["message"] = event.get("event", "")
        event["event"] = "log"
        event["logger"] = record.name
    return event


def _order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What a person looks for first comes first."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Send every logger of this process through the one pipeline. Safe to call again, which servers make necessary."""
    common: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        _add_trace,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: list[Processor]
    if log_format == "json":
        render = [structlog.processors.format_exc_info, _order, structlog.processors.JSONRenderer(default=str)]
    else:
        render = [
            _escape_values,
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=_indented),
        ]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                _name_server_event,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
            ],
            foreign_pre_chain=common,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Of libraries only warnings: at lower levels some write the values they handle, password hashes and prompts too.
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    for name in _SERVER_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(level.upper())
    # The canonical line stands for the access log.
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)


def get_logger(name: str) -> Any:
    """A structlog logger: `log.info("event_word", key=value)`."""
    return structlog.stdlib.get_logger(name)
