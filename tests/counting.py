"""Counts of what was tried: tests add to `counted`, and the end of the test run prints the sums."""

from collections import Counter

counted: Counter[str] = Counter()
