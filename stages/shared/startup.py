"""Start a stage's process, before it imports heavy packages."""

import ctypes
import os
import signal
import sys
import tempfile
from importlib.util import find_spec

PACKAGES = ("PIL", "jinja2", "markdown_it", "matplotlib", "pandas", "pooch", "pydantic", "scipy", "tensorflow", "tqdm",
            "yaml")  # fmt: skip


def start() -> None:
    """Tie the process to the `dvc` that started it; exit with one line if packages or temporary space are missing."""
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        # PR_SET_PDEATHSIG: a stage that outlives a killed `dvc` would write among the outputs of the next run.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        sys.exit(
            f"error: {sys.executable or 'this python'} lacks {', '.join(missing)}: run `make setup` once, then "
            "`source .venv/bin/activate`, and type it again"
        )
    from stages.shared import inputs  # needs packages

    inputs.take_snapshot()
    try:
        tempfile.gettempdir()  # TensorFlow needs it
    except OSError as error:
        sys.exit(f"error: no temporary folder: {error.strerror}: is the disk full?")
