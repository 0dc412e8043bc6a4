"""The stages of the pipeline, one file per kind of stage: run as ``python -m stages.prepare`` from the repository."""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

_missing = [name for name in ("pandas", "pooch", "pydantic", "scipy", "tensorflow") if find_spec(name) is None]
if _missing:
    sys.exit(
        f"stages: {sys.executable or 'this python'} lacks {', '.join(_missing)}: run `make setup` once, then "
        "`.venv/bin/dvc repro`, or `source .venv/bin/activate` and `dvc repro`"
    )

if sys.platform == "linux" and "DVC_STAGE" in os.environ:
    # PR_SET_PDEATHSIG: a stage that outlives a killed `dvc` would write among the outputs of the next one.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

try:
    tempfile.gettempdir()  # TensorFlow looks for it when it is imported
except OSError as error:
    sys.exit(f"error: {error.strerror}: is the disk full?")

# Both are read when Keras and TensorFlow are imported; a user's ~/.keras/keras.json may name another backend.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextmanager
def chatter_kept_back() -> Iterator[None]:
    """Show what is written to standard error inside only when it ends in an exception.

    TensorFlow says there how it was built whenever it is imported, whatever log level is set (tensorflow#100442).
    """
    with tempfile.TemporaryFile() as kept:
        standard_error = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(standard_error, kept.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
