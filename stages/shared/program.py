"""How a program ends: with one line if something is wrong, and only if its inputs are still what it has read."""

import functools
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from stages.shared.errors import UserError, one_line
from stages.shared.inputs import check_unchanged


def program(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` end with one line on standard error and exit code 1 if the user can mend the problem."""

    @functools.wraps(main)
    def wrapped() -> None:
        if Path(sys.argv[0]).parent.name == "stages" and sys.modules["__main__"].__spec__ is None:
            name = Path(sys.argv[0]).stem
            sys.exit(f"error: started by its path; run `python -m stages.{name}` in the repository's folder")
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # class names that the terminal cannot show
        try:
            main()
            sys.stdout.flush()
            check_unchanged()
            if "DVC_STAGE" in os.environ:
                os._exit(0)  # TensorFlow takes its time to end, in which an edit would go unnoticed
        except UserError as error:
            # touch: `dvc exp run -S` can leave size and second as they were, and Git trusts these.
            refused = str(error).startswith("params.yaml: ") and Path("params.yaml").exists()
            refused = refused and "exps" not in Path.cwd().parts  # a copy that `dvc exp run --temp` throws away
            undo = "; to go back to what is committed: touch params.yaml && git checkout params.yaml" if refused else ""
            sys.exit(f"error: {error}{undo}")
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

    return wrapped
