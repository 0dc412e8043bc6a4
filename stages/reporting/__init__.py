"""Metrics, statistics, figures, and the report's page."""
