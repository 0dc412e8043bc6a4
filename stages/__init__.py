"""The stages of the pipeline: ``python -m stages.prepare``, in the repository's folder."""

import sys

if sys.argv[0] in ("-m", "export.py"):  # Python is starting a stage, or that; an import does none of this
    from stages.shared.process import set_up

    set_up()
