"""The stages of the pipeline: ``python -m stages.prepare``, in the repository's folder."""

import sys
from pathlib import Path

if Path(sys.argv[0]).name in ("-m", "predict.py", "export.py"):  # Python is starting one; an import does none of this
    from stages.shared.process import set_up

    set_up()
