"""Prometheus values across worker processes, kept per worker SLOT, not per process id.

prometheus_client keeps a file for each process id, so a service whose workers are recycled grows files for ever. A slot
is a small number that a worker holds while it lives; its successor in the slot goes on counting in the same files.
"""

import os
import shutil
from pathlib import Path

from prometheus_client import multiprocess, values

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SUCCESSOR = "TOLLBOOK_INTERNAL_SLOT_SUCCESSOR"


def prepare_directory(directory: Path) -> None:
    """Empty the directory and name it to this process and its children. A service restart is a counter reset.

    The caller holds the lock of the state directory, so no other service is using these files.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    os.environ[_DIRECTORY] = str(directory.absolute())


def directory() -> str | None:
    """Where the values of all workers are, or None in a single process."""
    return os.environ.get(_DIRECTORY)


def lowest_free_slot(taken: set[int]) -> int:
    """The slot for a new worker."""
    slot = 0
    while slot in taken:
        slot += 1
    return slot


def use_slot(slot: int, *, successor: bool) -> None:
    """Keep the values of this process in the slot's files. Call it after fork, before any instrument is made."""
    os.environ[_SUCCESSOR] = "1" if successor else "0"
    values.ValueClass = values.MultiProcessValue(lambda: slot)


def is_successor() -> bool:
    """Whether this process took over a slot that another has used."""
    return os.environ.get(_SUCCESSOR) == "1"


def release_slot(slot: int) -> None:
    """A worker is gone: drop its gauges (calls in flight died with it), keep its counters."""
    path = directory()
    if path is not None:
        multiprocess.mark_process_dead(slot, path)
