"""Print your experiments in 100 columns: accuracies, gains and changed settings: ``python -m tools.experiments``.

Unlike plain `dvc exp show`, it lists the experiments of earlier commits, too. It leaves out those of studies, which
have pages; with `--studies` it lists them.
"""

import json
import re
import subprocess
import sys
import textwrap
from typing import Any

from stages.settings import leaves

WIDTH = 100
OF_A_STUDY = re.compile(r"_s\d+_[0-9a-f]{6}$")  # see `studies.experiments`


def run(*command: str) -> str:
    """Return the output of a command; exit with its error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command[-4:])}: {done.stderr.strip()}")
    return done.stdout


def settings_of(data: dict | None) -> dict[str, Any]:
    """Return all settings of a commit or experiment by dotted key."""
    return dict(leaves(((data or {}).get("params") or {}).get("params.yaml", {}).get("data") or {}))


def metrics_of(data: dict | None) -> dict[str, dict]:
    """Return the metrics of a commit or experiment by stage."""
    return ((data or {}).get("metrics") or {}).get("reports/metrics.json", {}).get("data") or {}


def cell(metrics: dict) -> str:
    """Format a stage's test accuracy in percent, with the gain over its control in points."""
    accuracy, gain = metrics.get("test_accuracy"), metrics.get("transfer_gain")
    shown = "" if accuracy is None else f"{100 * accuracy:.1f}"
    return shown if gain is None else f"{shown} ({100 * gain:+.1f})"


def main() -> None:
    """Print a block for each commit that has experiments, the checked-out one first."""
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    commits = [run("git", "rev-parse", "HEAD").strip(), *("".join(ref.split("/")[2:4]) for ref in refs)]
    revs = [f"--rev={commit}" for commit in dict.fromkeys(commits) if len(commit) == 40]
    shown = json.loads(run(sys.executable, "-m", "dvc", "exp", "show", "--json", *revs))
    blocks: list[list[tuple[str, dict, str]]] = []
    left_out = 0
    for commit in shown:
        if commit["rev"] == "workspace":
            continue
        before = settings_of(commit["data"])
        rows = [(f"commit {commit['name'] or commit['rev'][:7]}", metrics_of(commit["data"]), "")]
        for experiment in commit["experiments"] or []:
            if OF_A_STUDY.search(experiment["name"] or "") and "--studies" not in sys.argv:
                left_out += 1
                continue
            done = experiment["revs"][0]
            now = settings_of(done["data"])
            differ = [f"{key}={json.dumps(now[key])}" for key in now if now[key] != before.get(key)]
            rows.append((f"  {experiment['name'] or done['rev'][:7]}", metrics_of(done["data"]), " ".join(differ)))
        blocks.append(rows)
    stages = list(dict.fromkeys(stage for rows in blocks for _, metrics, _ in rows for stage in metrics))
    first = max(len(name) for rows in blocks for name, _, _ in rows)
    widths = [max(len(stage), 12) for stage in stages]
    rest = max(20, WIDTH - first - sum(widths) - 2 * len(stages) - 2)
    print("Test accuracy in % (gain over the control in points), and the settings that differ from the commit's")
    header = [f"{stage:>{width}}" for stage, width in zip(stages, widths, strict=True)]
    print("  ".join([" " * first, *header, "settings"]))
    for name, metrics, changed in (row for rows in blocks for row in rows):
        cells = [f"{cell(metrics.get(stage, {})):>{width}}" for stage, width in zip(stages, widths, strict=True)]
        lines = textwrap.wrap(changed, rest, break_on_hyphens=False) or [""]
        print("  ".join([f"{name:{first}}", *cells, lines[0]]).rstrip())
        for line in lines[1:]:
            print(" " * (WIDTH - rest) + line)
    if left_out:
        print(f"left out: {left_out} experiments of studies; `python -m tools.experiments --studies` lists them")


if __name__ == "__main__":
    main()
