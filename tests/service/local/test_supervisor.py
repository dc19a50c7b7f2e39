"""The supervisor, with children that do as they are told."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from service.local.supervisor import BackOff, ProcessError, Supervisor
from tests.service.local.children import supervised
from tests.support.service import ROOT, processes
from tests.support.waiting import eventually

SILENT = "import signal; signal.pause()"


def kill(child: Supervisor) -> None:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)


async def until(probe: Callable[[], object], what: str) -> None:
    """As `eventually`, with the loop running on."""
    await asyncio.to_thread(eventually, probe, what)


async def test_a_child_is_up_when_start_returns_and_gone_when_it_is_stopped(tmp_path):
    async with supervised(tmp_path) as child:
        pid = child.pid
        assert pid in processes()
        assert "asked" in (tmp_path / "output.txt").read_text()
    assert pid not in processes()
    assert child.pid is None


async def test_start_waits_while_the_answer_is_a_server_error(tmp_path):
    async with supervised(tmp_path, "late"):
        assert (tmp_path / "output.txt").read_text().count("asked") == 3


async def test_a_child_that_ends_while_starting_is_an_error_that_says_how_and_where_to_look(tmp_path):
    with pytest.raises(ProcessError, match=r"the child ended while starting \(exit status 3\).*output\.txt"):
        await supervised(tmp_path, code="import sys; print('why'); sys.exit(3)").start()
    assert (tmp_path / "output.txt").read_text() == "why\n"


async def test_a_child_that_does_not_answer_in_time_is_an_error_and_does_not_stay(tmp_path):
    code = f"import os, pathlib; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); {SILENT}"
    child = supervised(tmp_path, code=code, start_seconds=1.0)
    with pytest.raises(ProcessError, match="the child did not answer within 1 s"):
        await child.start()
    assert int((tmp_path / "pid").read_text()) not in processes()


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path):
    child = supervised(tmp_path, code=SILENT)
    starting = asyncio.create_task(child.start())
    await until(lambda: child.pid, "the child to be started")
    pid = child.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert pid not in processes()


async def test_a_child_that_is_killed_comes_back_on_the_same_port_each_time(tmp_path):
    with capture_logs() as logs:
        async with supervised(tmp_path, restart=True) as child:
            for _ in range(2):
                pid = child.pid
                kill(child)
                await until(lambda: logs, "the restart to be logged")
                [entry] = logs
                logs.clear()
                assert (entry["event"], entry["process"]) == ("process_restarted", "the child")
                assert (entry["ending"], entry["pid"]) == ("SIGKILL", child.pid)
                assert child.pid != pid
                assert child.pid in processes()
    assert logs == []


async def test_a_restart_that_fails_is_tried_again(tmp_path):
    flaw = tmp_path / "flaw"
    code = f"import pathlib, sys\nif pathlib.Path({str(flaw)!r}).exists(): sys.exit(3)\n"
    from_here = supervised(tmp_path)._command[2]
    with capture_logs() as logs:
        async with supervised(tmp_path, code=code + from_here, restart=True) as child:
            flaw.touch()
            kill(child)
            await until(lambda: len(logs) >= 2, "two failures")
            flaw.unlink()
            await until(lambda: logs[-1]["event"] == "process_restarted", "the restart")
    failures = [entry for entry in logs if entry["event"] == "process_restart_failed"]
    assert len(failures) >= 2
    assert "exit status 3" in failures[0]["reason"]


async def test_stop_during_a_back_off_does_not_wait_for_it(tmp_path):
    child = supervised(tmp_path, restart=True, back_off=BackOff(first=3600, longest=3600))
    await child.start()
    kill(child)
    await until(lambda: child.pid is None, "the supervisor to see it")
    async with asyncio.timeout(20):
        await child.stop()


def test_the_back_off_doubles_up_to_its_limit():
    back_off = BackOff(first=0.5, longest=3.0)
    assert [back_off.delay(failures) for failures in (0, 1, 2, 3, 10_000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    with capture_logs() as logs:
        async with supervised(tmp_path, "deaf", grace_seconds=0.2) as child:
            pid = child.pid
    assert pid not in processes()
    assert logs == [{"event": "process_killed", "log_level": "warning", "process": "the child", "pid": pid}]


async def test_hurry_cuts_the_grace_short(tmp_path):
    child = supervised(tmp_path, "deaf", grace_seconds=3600)
    await child.start()
    pid = child.pid
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0.2)  # time for a stop that does not wait to end wrongly
    assert not stopping.done()
    assert pid in processes()
    child.hurry()
    async with asyncio.timeout(20):
        await stopping
    assert pid not in processes()


@pytest.mark.parametrize("ending", ["stopped", "killed"])
async def test_what_the_child_started_ends_with_it(tmp_path, ending):
    child = supervised(tmp_path, "parent")
    await child.start()
    grandchild = int((tmp_path / "grandchild").read_text())
    assert grandchild in processes()
    if ending == "killed":
        kill(child)
        assert await child.wait() == -signal.SIGKILL
    await child.stop()
    await until(lambda: grandchild not in processes(), "the grandchild to end")


async def test_a_ctrl_c_in_the_terminal_does_not_reach_the_child(tmp_path):
    """The terminal sends it to a process group; the child has one of its own."""
    async with supervised(tmp_path) as child:
        assert child.pid is not None
        assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path):
    """Though it does not read its standard input, as Gunicorn does not."""
    code = f"""
import asyncio, pathlib, sys
from tests.service.local.children import supervised

async def main():
    async with supervised(pathlib.Path({str(tmp_path)!r})) as child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert pid in processes()
        parent.kill()
    eventually(lambda: pid not in processes(), "the child to end")
