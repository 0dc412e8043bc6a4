"""Start a stage's process, before it imports heavy packages."""

import ctypes
import gc
import getpass
import os
import re
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("PIL", "jinja2", "markdown_it", "matplotlib", "pandas", "pooch", "pydantic", "ruamel", "scipy",
            "tensorflow", "tqdm", "yaml")  # fmt: skip
# In progress bars, addresses and settings of DVC these have a meaning, and dulwich and fsspec take some for the end.
BREAKS_DVC = re.compile(r"[{}?#\x00-\x1f]|%\(")


def original_repository() -> Path | None:
    """Return the repository of a `dvc exp run --temp`, if this process runs in its temporary copy."""
    root = Path(os.environ.get("DVC_ROOT", ".")).absolute()
    return None if root == Path.cwd() else root


def start() -> None:
    """Tie the process to the `dvc` that started it; exit with one line if anything it needs is missing."""
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        # PR_SET_PDEATHSIG: a stage that outlives a killed `dvc` would write among the outputs of the next run.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    program = Path(sys.argv[0]).resolve()  # -m, in the working directory, or predict.py in its own
    if (own := program.with_name("stages")).is_dir() and not own.samefile(Path(__file__).parents[1]):
        sys.exit(f"error: Python would run the code of {Path(__file__).parents[1]}, not that of {own}, as with "
                 "PYTHONSAFEPATH or another PYTHONPATH: `unset` both")  # fmt: skip
    if program.name == "-m" and (found := BREAKS_DVC.search(str(program))):
        sys.exit(f"error: {str(program.parent)!r}: DVC fails in a folder with {found[0]!r} in its path: rename it")
    if (root := original_repository()) and any((up / ".git/shallow").exists() for up in (root, *root.parents)):
        sys.exit("error: DVC would lose an experiment of --temp in a shallow clone (dvc#7547): `git fetch --unshallow`")
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        sys.exit(
            f"error: {sys.executable or 'this python'} lacks {', '.join(missing)}: run `make setup` once, then "
            "`source .venv/bin/activate`, and type it again"
        )
    try:
        Path.home()
        getpass.getuser()
    except (RuntimeError, KeyError, OSError):
        sys.exit("error: this user has no home folder or no name: `export HOME=FOLDER LOGNAME=NAME`, and type it again")
    try:
        tempfile.gettempdir()  # TensorFlow needs it
    except OSError as error:
        sys.exit(f"error: no temporary folder: {error.strerror}: is the disk full?")
    gc.disable()  # until the program begins: while packages are imported, it walks objects that stay, again and again
    from stages.shared import inputs  # needs packages

    inputs.take_snapshot()
