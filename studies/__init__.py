"""Studies: many experiments that answer one question, from a plan to a page: ``python -m studies PLAN``."""
