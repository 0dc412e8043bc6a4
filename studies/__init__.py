"""Studies: many experiments that answer one question, from a plan to a page: ``python -m studies PLAN``."""

import sys
from importlib.util import find_spec

if sys.argv[0] == "-m":  # Python is starting a study; an import does none of this
    missing = [
        name for name in ("distributed", "dvc", "matplotlib", "pandas", "pydantic", "scipy") if not find_spec(name)
    ]
    if missing:
        sys.exit(
            f"error: {sys.executable or 'this python'} lacks {', '.join(missing)}: run `make setup` once, then "
            "`.venv/bin/python -m studies PLAN`"
        )
