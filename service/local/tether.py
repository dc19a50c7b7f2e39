"""Run a command that ends when its parent ends: `python tether.py PARENT_PID COMMAND...`.

Linux sends the command SIGTERM as soon as the parent is gone, however it went (prctl(2), PR_SET_PDEATHSIG). This is set
in a process of its own because a `preexec_fn` would run Python code between fork and exec of a process with threads.
Elsewhere the command is only run.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tethered(command: list[str]) -> list[str]:
    """The command line that runs `command` as a child of the calling thread, and no longer than that."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), *command]


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("the parent is gone")
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted; the setting survives exec


if __name__ == "__main__":
    main()
