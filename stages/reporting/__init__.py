"""Metrics, statistics, figures, and the page of the report."""
