"""Run a program: report user errors in one line, and check at the end that its inputs are unchanged."""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from stages.shared.errors import SettingError, UserError, one_line
from stages.shared.inputs import check_unchanged
from stages.shared.startup import original_repository

_on_success: list[Callable[[], None]] = []


def on_success(action: Callable[[], None]) -> None:
    """Call `action` once the program has succeeded, after its outputs are written."""
    _on_success.append(action)


def program(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` end with one line on standard error and exit code 1 for errors that the user can fix."""

    @functools.wraps(main)
    def run() -> None:
        if Path(sys.argv[0]).parent.name == "stages" and sys.modules["__main__"].__spec__ is None:
            name = Path(sys.argv[0]).stem
            sys.exit(f"error: started by its path; run `python -m stages.{name}` in the repository's folder")
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # class names that the terminal cannot show
        _on_success.clear()
        gc.freeze()  # what packages made stays
        gc.enable()
        try:
            main()
            sys.stdout.flush()
            check_unchanged()
            for action in _on_success:
                action()
            if "DVC_STAGE" in os.environ:
                atexit._run_exitfuncs()  # matplotlib may have a temporary folder
                os._exit(0)  # TensorFlow takes long to end; an edit meanwhile would go unnoticed
        except UserError as error:
            sys.exit(f"error: {error}{_how_to_undo(error)}")
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:  # `| head`
            os._exit(1)
        except OSError as error:  # a full disk, a folder that cannot be written
            if error.strerror is None:
                raise
            sys.exit(f"error: {error.filename or 'writing a file'}: {error.strerror}")
        except Exception as error:
            if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's
                raise
            sys.exit(f"error: memory is full, expected fewer or smaller images or layers: {one_line(error)}")

    return run


def _how_to_undo(error: UserError) -> str:
    """Return the command that restores the committed settings: `dvc exp run -S` leaves a refused one in the file."""
    if not isinstance(error, SettingError) or original_repository() or not Path("params.yaml").exists():
        return ""
    # touch: size and second may be unchanged, and Git trusts these.
    return "; to restore the committed settings: touch params.yaml && git checkout params.yaml"
