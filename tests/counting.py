"""How often something was tried: tests add to `counted`, the end of the test run tells the sums."""

from collections import Counter

counted: Counter[str] = Counter()
