"""Run many experiments to answer one question: ``python -m studies PLAN``."""

import stages  # noqa: F401 - checks that packages are installed if a program is starting
