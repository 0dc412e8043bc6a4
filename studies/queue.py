"""Run a study's experiments through DVC's own queue: queue what is missing, watch, and name what failed."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stages.settings import UserError, leaves
from studies.plan import Changes, overrides

POLL_SECONDS = 5
SILENT_POLLS = 3  # so often no worker answers before its runs are taken for dead: under load an answer may be late


@dataclass(frozen=True)
class Experiment:
    """What DVC knows of an experiment; `state` is queued, running, failed or success."""

    name: str
    state: str
    settings: Changes
    metrics: dict
    hashes: dict[str, str]
    log: Path | None
    killed: bool

    def fits(self, wanted: Changes) -> bool:
        """Whether it has the settings that are wanted, and its results where it has ended well."""
        return self.settings == wanted and (self.state != "success" or bool(self.metrics))


def dvc(*arguments: str, check: bool = True) -> str:
    """What a ``dvc`` command prints. A session of its own: a Ctrl-C is for the study, not for a half-made entry."""
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if check and result.returncode:
        raise UserError(f"dvc {' '.join(arguments[:3])} …: {' '.join(result.stderr.split())}")
    return result.stdout


def start_worker() -> None:
    """Start the queue's worker, which lives on in the background and would hold a pipe of ours open."""
    subprocess.run(
        [sys.executable, "-m", "dvc", "queue", "start"], check=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def experiments() -> dict[str, Experiment]:
    """The experiments of the commit that is checked out, by name."""
    head = json.loads(dvc("exp", "show", "--json"))[1]
    return {entry["name"]: _experiment(entry) for entry in head["experiments"] or []}


def _experiment(entry: dict) -> Experiment:
    data = entry["revs"][0]["data"] or {}
    executor = entry["executor"] or {}
    local = executor.get("local") or {}
    params = (data.get("params") or {}).get("params.yaml", {}).get("data") or {}
    metrics = (data.get("metrics") or {}).get("reports/metrics.json", {}).get("data") or {}
    returncode = local.get("returncode")
    return Experiment(
        name=entry["name"],
        state=executor.get("state") or "success",  # run in the workspace, or long ago
        settings=dict(leaves(params)),
        metrics=metrics,
        hashes={path: out["hash"] for path, out in (data.get("outs") or {}).items()},
        log=Path(local["log"]) if local.get("log") else None,
        killed=returncode is None or returncode < 0,
    )


def why_failed(experiment: Experiment) -> str:
    """The error that ended an experiment, one line of its log."""
    lines = experiment.log.read_text(errors="replace").splitlines() if experiment.log else []
    errors = [line.strip() for line in lines if line.lower().startswith("error: ")]
    return errors[0] if errors else f"see `dvc queue logs {experiment.name}`"


def status() -> tuple[dict[str, str], int]:
    """The state of what is in the queue, by name, and the number of workers."""
    *rows, workers = dvc("queue", "status").strip().splitlines()
    states = {row.split()[1]: row.split()[-1] for row in rows[1:] if row.strip()}
    counts = [int(word) for word in workers.split() if word.isdigit()]
    return states, sum(counts)


def require_committed_code() -> None:
    """Raise `UserError` where the stages differ from those committed: the experiments' records name the commit."""
    changed = subprocess.run(
        ["git", "diff", "--name-only", "HEAD", "--", "dvc.yaml", "stages"], capture_output=True, text=True, check=False
    ).stdout.split()
    if changed:
        raise UserError(
            f"{', '.join(changed)}: changed since the last commit; commit them: a study runs what is committed"
        )


def remove_what_died(wanted: dict[str, Changes]) -> None:
    """Take out of the queue what was running when its worker was killed; DVC believes that it still runs."""
    states, _ = status()
    for name in [name for name in wanted if states.get(name) == "Running"]:
        dvc("queue", "kill", "--force", name, check=False)  # what still runs without its worker
        dvc("queue", "kill", "--force", name, check=False)  # what does not run is marked as failed
        dvc("queue", "remove", name)


def queue_missing(wanted: dict[str, Changes], retry: bool) -> tuple[dict[str, str], dict[str, Changes]]:
    """Queue every experiment that is not done and not in the queue.

    Returns why others failed, by name (with `retry` these are queued, too), and what is in the queue now.
    """
    known = experiments()
    failed, missing, in_queue = {}, [], []
    for name, settings in wanted.items():
        found = known.get(name)
        if found is None:
            missing.append(name)
        elif found.state == "failed" and found.fits(settings) and not found.killed and not retry:
            failed[name] = why_failed(found)
        elif found.state == "failed" or not found.fits(settings):
            dvc("exp" if found.state == "success" else "queue", "remove", name)
            missing.append(name)
        elif found.state != "success":
            in_queue.append(name)
    for i, name in enumerate(missing, 1):
        print(f"queueing {i} of {len(missing)}: {name}", flush=True)
        dvc("exp", "run", "--queue", "--name", name, *overrides(wanted[name]))
    return failed, {name: wanted[name] for name in (*in_queue, *missing)}


def watch(in_queue: dict[str, Changes], wanted: int) -> bool:
    """Run the queue until nothing of `in_queue` is left, showing progress; False where runs died with their worker."""
    start, silent, shown = time.monotonic(), 0, None
    while True:
        states, workers = status()
        waiting = [name for name in in_queue if states.get(name) in ("Queued", "Running")]
        if not waiting:
            return True
        running = [name for name in waiting if states[name] == "Running"]
        if (waiting, running) != shown:
            shown = waiting, running
            text = f"{wanted - len(waiting)} of {wanted} ended; running: {', '.join(running) or 'none yet'}"
            if ended := len(in_queue) - len(waiting):
                left = (time.monotonic() - start) / ended * len(waiting)
                text += f"; about {left / 60:.0f} min left"
            print(text, flush=True)
        silent = 0 if workers else silent + 1
        if silent > SILENT_POLLS and running:
            return False
        if silent and len(running) < len(waiting):
            start_worker()
        time.sleep(POLL_SECONDS)


def run(wanted: dict[str, Changes], retry: bool) -> dict[str, str]:
    """Run what is missing until all has ended; returns why experiments failed, by name."""
    require_committed_code()
    while True:
        failed, in_queue = queue_missing(wanted, retry)
        if not in_queue:
            return failed
        if not watch(in_queue, len(wanted)):
            remove_what_died(in_queue)
        retry = False
