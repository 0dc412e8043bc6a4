"""Connect to Dask workers, on this machine or on a cluster."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.client import FuturesCancelledError

from stages.shared.errors import UserError, one_line

FOLDER = Path(".dvc/tmp/studies")  # clones, and for each experiment NAME.log (output), KEY.failed (reason)


@contextmanager
def connect(scheduler: dict[str, str], workers: int) -> Iterator[Client]:
    """Yield a client of a scheduler, given by ``address`` or ``scheduler_file``, or else of local workers.

    Raises `UserError` if another study is running in this repository, or the scheduler does not answer.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (FOLDER / "lock").open("w")  # released when this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{lock.name}: another study is running in this repository; wait until it ends") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the study reports lost workers itself
    local: dict[str, Any] = {  # of a cluster that Dask starts
        "n_workers": workers, "threads_per_worker": 1, "memory_limit": None, "local_directory": str(FOLDER.absolute()),
        "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL,
        "security": True,  # a certificate of its own: without, every account of the machine could run code as this user
    }  # fmt: skip
    try:
        with Client(**(scheduler or local)) as client:
            if not scheduler and find_spec("bokeh"):  # needed by Dask's dashboard
                print(f"dashboard: {client.dashboard_link}", flush=True)
            yield client
    except (OSError, ValueError, FuturesCancelledError) as error:
        if not scheduler:
            raise
        where = ", ".join(scheduler.values())
        problem = "is gone" if isinstance(error, FuturesCancelledError) else f"does not answer: {one_line(error)}"
        raise UserError(f"{where}: Dask's scheduler {problem}; start it and type the same command again") from None
