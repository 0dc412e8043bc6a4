"""The pipeline's stages: ``python -m stages.prepare``, in the repository's folder."""

import sys
from pathlib import Path

if Path(sys.argv[0]).name in ("-m", "predict.py", "export.py"):  # a program is starting; an import does nothing
    from stages.shared.startup import start

    start()
