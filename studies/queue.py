"""Run a study's experiments through DVC's own queue: queue what is missing, watch, and name what failed."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from stages.settings import UserError, leaves
from studies.plan import Changes, committed_settings, overrides

TRIES = 4  # of a dvc command: it may meet the queue's worker at the same files
POLL_SECONDS = (2, 20)  # each look at the queue takes a second from the training
SILENT_POLLS = 3  # so often no worker answers before its runs are taken for dead: under load an answer may be late
WORKER_SECONDS = 60  # for a worker to start
REQUEUED = 2  # times that a run is queued again by itself


@dataclass(frozen=True)
class Experiment:
    """What DVC knows of an experiment; `state` is queued, running, failed or success.

    `task` is what the queue calls it, None for one that was not queued.
    """

    name: str
    rev: str
    state: str
    settings: Changes
    metrics: dict
    task: str | None
    log: Path | None
    pid: int | None
    killed: bool

    def fits(self, wanted: Changes) -> bool:
        """Whether it has the settings that are wanted, and its results where it has ended well."""
        return self.settings == wanted and (self.state != "success" or bool(self.metrics))

    def remove(self) -> None:
        """Forget it: its results, or its place in the queue."""
        if self.state == "success":
            dvc("exp", "remove", self.name)
        else:
            dvc("queue", "remove", self.task)


def dvc(*arguments: str, must: bool = True) -> str:
    """What a ``dvc`` command prints; raises `UserError` when it fails again and again, where it `must` succeed.

    It has a session of its own: a Ctrl-C is for the study, not for a half-made entry of the queue.
    """
    for attempt in range(1, TRIES + 1):
        result = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if result.returncode == 0 or not must:
            break
        if attempt == TRIES:
            raise UserError(f"dvc {' '.join(arguments[:3])} …: {' '.join(result.stderr.split())}")
        time.sleep(attempt)
    return result.stdout


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
        rev=entry["revs"][0]["rev"],
        state=executor.get("state") or "success",  # run in the workspace, or long ago
        settings=dict(leaves(params)),
        metrics=metrics,
        task=local.get("task_id"),
        log=Path(local["log"]) if local.get("log") else None,
        pid=local.get("pid"),
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
    states: dict[str, str] = {}
    for row in filter(str.strip, rows[1:]):  # what is running and queued comes before what has ended
        states.setdefault(row.split()[1], row.split()[-1])
    return states, sum(int(word) for word in workers.split() if word.isdigit())


def start_worker() -> None:
    """Start the queue's worker and wait until it answers: a second one beside it would lose experiments (dvc#10673)."""
    command = [sys.executable, "-m", "dvc", "queue", "start"]
    # The worker lives on in the background and would hold a pipe of ours open.
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.run(command, check=False, start_new_session=True, **quiet).returncode:
        raise UserError("dvc queue start: failed; type it to see why")
    started = time.monotonic()
    while not status()[1] and time.monotonic() - started < WORKER_SECONDS:
        time.sleep(1)


def require_what_is_committed() -> None:
    """Raise `UserError` where the code differs from what is committed, or ``params.yaml`` has other keys.

    Experiments belong to a commit. Other values in ``params.yaml`` do not matter, as the plan sets every one.
    """
    changed = subprocess.run(
        ["git", "diff", "--name-only", "HEAD", "--", "dvc.yaml", "stages"], capture_output=True, text=True, check=False
    ).stdout.split()
    if set(dict(leaves(yaml.safe_load(Path("params.yaml").read_text())))) != set(committed_settings()):
        changed.append("params.yaml")
    if changed:
        raise UserError(
            f"{', '.join(changed)}: changed since the last commit; commit it: a study runs what is committed"
        )


def remove_what_died(in_queue: dict[str, Changes]) -> None:
    """Take out of the queue what was running when its worker was killed; DVC believes that it still runs."""
    known = experiments()
    for found in [known[name] for name in in_queue if name in known and known[name].state == "running"]:
        if found.pid and not _runs_experiments(found.pid) and found.log:
            # DVC would kill whatever has this number now.
            found.log.with_suffix(".json").unlink(missing_ok=True)
        for _ in range(2):  # the first kills what still runs without a worker, the second notes that nothing runs
            dvc("queue", "kill", "--force", found.task, must=False)
        dvc("queue", "remove", found.task)


def _runs_experiments(pid: int) -> bool:
    try:
        return "exec-run" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def queue_missing(wanted: dict[str, Changes], retry: bool, requeued: Counter) -> tuple[dict[str, str], list[str]]:
    """Queue every experiment that is not done and not in the queue.

    Returns why others failed, by name (with `retry` these are queued, too), and what is in the queue now. `requeued`
    counts what is queued again as it was killed or has other settings; a plan may have been changed.
    """
    known = experiments()
    failed, missing, in_queue = {}, [], []
    for name, settings in wanted.items():
        found = known.get(name)
        if found is None:
            missing.append(name)
        elif found.state == "failed" and (not found.killed or requeued[name] == REQUEUED) and not retry:
            failed[name] = why_failed(found)
        elif found.state == "failed" or not found.fits(settings):
            if requeued[name] == REQUEUED:
                raise UserError(f"{name}: has other settings than it was queued with, again and again")
            requeued[name] += 1
            found.remove()
            missing.append(name)
        elif found.state != "success":
            in_queue.append(name)
    for i, name in enumerate(missing, 1):
        print(f"queueing {i} of {len(missing)}: {name}", flush=True)
        dvc("exp", "run", "--queue", "--name", name, *overrides(wanted[name]))
    return failed, [*in_queue, *missing]


def watch(in_queue: list[str], wanted: int) -> bool:
    """Run the queue until nothing of `in_queue` is left, showing progress; False where runs died with their worker."""
    start, silent, shown, changed = time.monotonic(), 0, None, time.monotonic()
    while True:
        states, workers = status()
        waiting = [name for name in in_queue if states.get(name) in ("Queued", "Running")]
        if not waiting:
            return True
        running = [name for name in waiting if states[name] == "Running"]
        if (waiting, running) != shown:
            shown, changed = (waiting, running), time.monotonic()
            text = f"{wanted - len(waiting)} of {wanted} ended; running: {', '.join(running) or 'none yet'}"
            if ended := len(in_queue) - len(waiting):
                left = (time.monotonic() - start) / ended * len(waiting)
                text += f"; about {left / 60:.0f} min left"
            print(text, flush=True)
        silent = 0 if workers else silent + 1
        if silent and not running:
            start_worker()
        elif silent > SILENT_POLLS:
            return False
        shortest, longest = POLL_SECONDS
        time.sleep(min(longest, shortest + (time.monotonic() - changed) / 5))


def run(wanted: dict[str, Changes], retry: bool) -> dict[str, str]:
    """Run what is missing until all has ended; returns why experiments failed, by name."""
    require_what_is_committed()
    requeued: Counter[str] = Counter()
    while True:
        failed, in_queue = queue_missing(wanted, retry, requeued)
        if not in_queue:
            return failed
        if not watch(in_queue, len(wanted)):
            remove_what_died(in_queue)
        retry = False
