"""`tollbook run`: all of it on one machine. A model when no upstream is named, the service, and what to type next."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

from auth.keyfiles import KeyFileError
from observability.logging import configure_logging
from service.bootstrap import DATABASE_ERRORS, FirstAdmin, ensure_ready, load_catalog, prepare_state_dir
from service.llm.catalog import CatalogError
from service.local.model import MODEL_LICENCE, MODEL_NAME, LocalModelError
from service.local.supervisor import ProcessError, Supervisor
from service.local.upstream import LocalUpstream
from service.settings import Settings, SettingsError
from service.worker import FLUSH_SECONDS

_HANG_SECONDS = 5  # past the time that Gunicorn itself allows its workers
_QUESTION = "Why is the sky blue?"
_ANY_MODEL = "MODEL-NAME"
_UNKNOWN_PASSWORD = "PASSWORD"  # noqa: S105  # the word to be replaced in the line to copy


class RunError(RuntimeError):
    """`run` cannot start here; the message names the setting to change."""


async def run(settings: Settings) -> int:
    """Start everything, say what to type, and stay until Ctrl-C, SIGTERM or SIGHUP, or until the service ends.

    Stopping goes in order: the service, which lets open streams end, then the model. A second Ctrl-C does not wait.
    Returns the exit status: 0 when told to stop, 1 when it could not start, else that of the service.
    """
    return await _Run(settings).run()


class _Run:
    def __init__(self, settings: Settings) -> None:
        watch = settings.observability
        on_terminal = sys.stdout.isatty() and "log_format" not in watch.model_fields_set
        self._log_format = "pretty" if on_terminal else watch.log_format
        self._settings = settings
        self._base_url = f"http://{_reachable(settings.host)}:{settings.port}"
        self._progress = Console(stderr=True)
        self._processes: list[Supervisor] = []

    async def run(self) -> int:
        configure_logging(self._log_format, self._settings.observability.log_level)
        work = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        for number in _stop_signals():
            loop.add_signal_handler(number, self._stop, work)
        try:
            return await work
        except asyncio.CancelledError:
            return 0
        except (RunError, ProcessError, LocalModelError, CatalogError, SettingsError, KeyFileError) as error:
            self._say(f"Error: {error}")
            return 1

    def _stop(self, work: asyncio.Task[int]) -> None:
        if work.cancelling():
            for process in self._processes:
                process.hurry()
        else:
            self._say("Stopping. Open streams may end first; Ctrl-C again does not wait for them.")
            work.cancel()

    async def _work(self) -> int:
        settings = self._settings
        _check_free(settings.host, settings.port)
        prepare_state_dir(settings)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_only_one(settings.state_dir))
            local, model = self._choose_upstream()
            env = {
                **os.environ,
                "TOLLBOOK_WORKERS": str(settings.workers),
                "TOLLBOOK_LOG_FORMAT": self._log_format,
            }
            if local:
                with self._step(f"Loading {MODEL_NAME} ({MODEL_LICENCE})"):
                    self._processes.append(local.process)
                    await stack.enter_async_context(local.process)
                local.write_catalog()
                env["TOLLBOOK_CATALOG"] = str(local.catalog)
            with self._step("Preparing the database"):
                admin = await self._prepare_database()
            if admin:
                # At once: the password is nowhere else, and the rest may still fail.
                _print_admin(admin)
            service = self._service(env)
            self._processes.append(service)
            self._say(f"Starting the service with {settings.workers} workers")  # no spinner: it writes its own log
            await stack.enter_async_context(service)
            self._print_lines(admin, model)
            status = await service.wait()
            self._say(f"Error: the service ended by itself (status {status})")
            return status if status > 0 else 1

    def _choose_upstream(self) -> tuple[LocalUpstream | None, str]:
        """The embedded model, unless an upstream is named, and the model to ask for in the lines to copy."""
        settings = self._settings
        if not (settings.catalog or settings.openai_api_key or settings.openai_base_url):
            return LocalUpstream(settings.state_dir), MODEL_NAME
        default = load_catalog(settings).default_model
        if default:
            return None, default.name
        return None, _ANY_MODEL if settings.openai_base_url else "gpt-4o-mini"

    async def _prepare_database(self) -> FirstAdmin | None:
        try:
            return await ensure_ready(self._settings, generate_admin=True)
        except DATABASE_ERRORS as error:
            raise RunError(f"The database cannot be used: {error}") from error
        except ValueError as error:
            raise RunError(f"TOLLBOOK_ADMIN_USERNAME or TOLLBOOK_ADMIN_PASSWORD: {error}") from error

    def _service(self, env: dict[str, str]) -> Supervisor:
        return Supervisor(
            "the service",
            [sys.executable, "-m", "service.cli", "serve"],
            health_url=f"{self._base_url}/readyz",
            env=env,
            grace_seconds=self._settings.graceful_timeout_seconds + FLUSH_SECONDS + _HANG_SECONDS,
        )

    def _print_lines(self, admin: FirstAdmin | None, model: str) -> None:
        username = admin.username if admin else self._settings.admin_username
        password = admin.password if admin else _UNKNOWN_PASSWORD
        hint = "" if admin else f" (put yours for {_UNKNOWN_PASSWORD}; `tollbook users passwd {username}` sets another)"
        model_hint = f" (put the name of one for {_ANY_MODEL})" if model == _ANY_MODEL else ""
        # Not through Rich, which would wrap and colour what is to be copied. In one write: the workers log to the same
        # place, and a line of theirs between these would be copied too.
        lines = (
            f"Tollbook is ready at {self._base_url}, with its pages at {self._base_url}/docs. Ctrl-C stops it.",
            f"# 1. Get a token{hint}",
            token_line(self._base_url, username, password),
            f"# 2. Call the model with curl{model_hint}",
            curl_line(self._base_url, model),
            f"# 3. Call it with the openai SDK{model_hint}",
            sdk_line(self._base_url, model),
        )
        typer.echo("\n".join(lines))

    def _say(self, text: str) -> None:
        self._progress.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _step(self, text: str) -> Iterator[None]:
        if self._progress.is_terminal:
            with self._progress.status(f"{text} ..."):
                yield
        else:
            self._say(text)
            yield


def _stop_signals() -> set[signal.Signals]:
    hang_up = set() if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else {signal.SIGHUP}  # ignored under nohup
    return {signal.SIGINT, signal.SIGTERM} | hang_up


def token_line(base_url: str, username: str, password: str) -> str:
    """A line for bash that puts a token into $TOKEN."""
    form = [f"--data-urlencode {shlex.quote(pair)}" for pair in (f"username={username}", f"password={password}")]
    pick = r"""sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p'"""
    return f"TOKEN=$(curl -sS {base_url}/token -d grant_type=password {' '.join(form)} | {pick})"


def curl_line(base_url: str, model: str) -> str:
    """A line for bash that calls the model."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 60})
    return (
        f'curl -sS {base_url}/v1/chat/completions -H "Authorization: Bearer $TOKEN" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def sdk_line(base_url: str, model: str) -> str:
    """The same through the openai package, with this interpreter; the package reads the two variables by itself."""
    code = (
        f"from openai import OpenAI; print(OpenAI().chat.completions.create(model={json.dumps(model)}, "
        f'messages=[{{"role": "user", "content": "{_QUESTION}"}}], max_tokens=60).choices[0].message.content)'
    )
    return f"OPENAI_BASE_URL={base_url}/v1 OPENAI_API_KEY=$TOKEN {_interpreter()} -c {shlex.quote(code)}"


def _interpreter() -> str:
    """This interpreter, as short as it can be said from here. Not resolved: the link is what makes it the venv's."""
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")


def _print_admin(admin: FirstAdmin) -> None:
    lines = ("First admin, shown once:", f"  user name  {admin.username}", f"  password   {admin.password}")
    typer.echo("\n".join(lines))


def _reachable(host: str) -> str:
    """The host part of a URL at which a service that listens on `host` can be reached from this machine."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Raise RunError when another `run` uses the directory: it would lose its catalog to us."""
    with (state_dir / "run.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"TOLLBOOK_STATE_DIR: another `tollbook run` uses {state_dir.absolute()}.") from error
        yield


def _check_free(host: str, port: int) -> None:
    """Raise RunError unless the service can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As Gunicorn does: without it a port is in use for a minute after its last connection.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise RunError(f"TOLLBOOK_HOST: {host} cannot be resolved ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(f"Port {port} on {host} is already in use. Set TOLLBOOK_PORT to a free one.") from error
        raise RunError(f"Cannot listen on TOLLBOOK_HOST {host}, TOLLBOOK_PORT {port}: {error.strerror}.") from error
