"""Run a study's experiments through DVC's own queue: queue what is missing, watch it, name what failed."""

import fcntl
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from stages.settings import PARAMS, leaves, read_yaml
from stages.shared.errors import UserError
from studies import workspace
from studies.plan import Changes, committed_settings, overrides

TRIES = 4  # of a dvc command, which may compete with the queue's worker for files
POLL_SECONDS = (2, 20)  # a look at the queue takes a second from the training
LOCK = Path(".dvc/tmp/study.lock")
RUNS = Path(".dvc/tmp/exps/run")  # where DVC records the process of each run
WORKER_SECONDS = 60  # given to a worker to start
REQUEUED = 2  # times that a run is queued again without being asked


@dataclass(frozen=True)
class Experiment:
    """What DVC knows about an experiment; `state` is queued, running, failed or success."""

    name: str
    rev: str
    state: str
    settings: Changes
    metrics: dict
    log: Path | None
    killed: bool

    def fits(self, wanted: Changes) -> bool:
        """Whether it has the wanted settings and, if it succeeded, its results."""
        return self.settings == wanted and (self.state != "success" or bool(self.metrics))

    def remove(self) -> None:
        """Forget it: its results, or its place in the queue."""
        if self.state == "success":
            dvc("exp", "remove", self.name)
        else:
            for _ in range(2):  # the first may leave the queue's own entry
                dvc("queue", "remove", self.rev, must=False)


def dvc(*arguments: str, must: bool = True) -> str:
    """What a ``dvc`` command prints; raises `UserError` if it `must` succeed and keeps failing.

    It runs in a session of its own and is waited for, so that Ctrl-C does not leave the queue with half an entry.
    """
    for attempt in range(1, TRIES + 1):
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, errors = process.communicate()
        except KeyboardInterrupt:
            process.communicate()
            raise
        if process.returncode == 0 or not must:
            break
        if attempt == TRIES:
            raise UserError(f"dvc {' '.join(arguments[:3])} …: {' '.join(errors.split())}")
        time.sleep(attempt)
    return output


def experiments() -> dict[str, Experiment]:
    """The experiments of the checked-out commit, by name."""
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
        state=executor.get("state") or "success",  # none: run in the workspace, or long ago
        settings=dict(leaves(params)),
        metrics=metrics,
        log=Path(local["log"]) if local.get("log") else None,
        killed=returncode is None or returncode < 0,
    )


def why_failed(experiment: Experiment) -> str:
    """The line of its log that says why an experiment failed: a stage's own error, or the end of a traceback."""
    try:
        lines = experiment.log.read_text(errors="replace").splitlines() if experiment.log else []
    except OSError:
        lines = []
    errors = [line.strip() for line in lines if line.startswith("error: ")]
    errors += [line.strip() for line in lines if re.match(r"[\w.]+(Error|Exception|Exit): ", line)]
    return errors[0] if errors else f"see `dvc queue logs {experiment.name}`"


@dataclass(frozen=True)
class Task:
    """A line of ``dvc queue status``; `state` is Queued, Running, Failed or Success."""

    rev: str
    name: str
    state: str


def tasks() -> list[Task]:
    """The queue's entries; what is running or queued comes before what has ended."""
    _, *rows = dvc("queue", "status").split("\n\nWorker status")[0].splitlines()
    return [Task(words[0], words[1], words[-1]) for words in map(str.split, rows) if words]


def states() -> dict[str, str]:
    """The state of every name in the queue: of the run queued again, not of an older one that has ended."""
    found: dict[str, str] = {}
    for task in tasks():
        found.setdefault(task.name, task.state)
    return found


def worker_runs() -> bool:
    """Whether this repository has a worker: found by its process, as under load it answers DVC late."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "queue-worker" in process.cmdline() and Path(process.cwd()).is_relative_to(Path.cwd()):
                return True
    return False


def start_worker() -> None:
    """Start the queue's worker and wait for it: a second one started meanwhile would lose runs (dvc#10673)."""
    command = [sys.executable, "-m", "dvc", "queue", "start"]
    null = subprocess.DEVNULL  # the worker lives on in the background and would keep a pipe of ours open
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, start_new_session=True, check=False)
    if done.returncode:
        raise UserError("dvc queue start: failed; type it to see why")
    started = time.monotonic()
    while not worker_runs() and time.monotonic() - started < WORKER_SECONDS:
        time.sleep(0.5)


def wait_for_idle_worker() -> None:
    """Wait until a worker without work has shut down: it would lose anything queued while it does."""
    while worker_runs() and not any(task.state in ("Queued", "Running") for task in tasks()):
        time.sleep(1)


def require_what_is_committed() -> str:
    """The commit that the experiments belong to.

    Raises `UserError` if the code is not as committed, or ``params.yaml`` has other keys. Other values do not matter:
    the plan sets every one.
    """
    changed = workspace.git("diff", "--name-only", "HEAD", "--", "dvc.yaml", "stages").split()
    if set(dict(leaves(read_yaml(PARAMS, "the settings")))) != set(committed_settings()):
        changed.append(str(PARAMS))
    if changed:
        raise UserError(
            f"{', '.join(changed)}: changed since the last commit; commit it first: a study runs committed code"
        )
    return workspace.git("rev-parse", "HEAD")


def note_what_died() -> None:
    """Make DVC record as failed what was running when its worker was killed; it believes that it still runs."""
    if worker_runs():
        return
    for task in (task for task in tasks() if task.state == "Running"):
        for info in RUNS.glob(f"{task.rev}*/*.json"):
            if not _runs_experiments(json.loads(info.read_text())["pid"]):
                info.unlink()  # DVC would kill whatever process has this id now
        for _ in range(2):  # the first kills what still runs without a worker, the second records that nothing runs
            dvc("queue", "kill", "--force", task.rev, must=False)


def _runs_experiments(pid: int) -> bool:
    try:
        return "exec-run" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def queue_missing(wanted: dict[str, Changes], retry: bool, requeued: Counter) -> tuple[dict[str, str], list[str]]:
    """Queue every experiment that is not done and not in the queue.

    Returns why others failed, by name (with `retry` these are queued, too), and the names in the queue now. `requeued`
    counts what is queued again because it was killed, or has other settings since the plan was changed.
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
                raise UserError(f"{name}: its settings still differ from the plan's after {REQUEUED} new runs")
            requeued[name] += 1
            why = "it failed or was killed" if found.fits(settings) else "its settings differ from the plan's"
            print(f"again: {name}: {why}", flush=True)
            found.remove()
            missing.append(name)
        elif found.state != "success":
            in_queue.append(name)
    if missing:
        wait_for_idle_worker()
    for i, name in enumerate(missing, 1):
        print(f"queueing {i} of {len(missing)}: {name}", flush=True)
        with workspace.noted():
            dvc("exp", "run", "--queue", "--name", name, *overrides(wanted[name]))
    return failed, [*in_queue, *missing]


def watch(in_queue: list[str], wanted: int) -> None:
    """Run the queue, showing progress, until all of `in_queue` has ended or the worker has died."""
    workers = 0
    start, shown, changed = time.monotonic(), None, time.monotonic()
    while True:
        lives = worker_runs()  # asked before the queue: what then runs without a worker will never end
        now = states()
        waiting = [name for name in in_queue if now.get(name) in ("Queued", "Running")]
        running = [name for name in waiting if now[name] == "Running"]
        if not waiting or (running and not lives):
            return
        if (waiting, running) != shown:
            shown, changed, workers = (waiting, running), time.monotonic(), 0
            text = f"{wanted - len(waiting)} of {wanted} ended; running: {', '.join(running) or 'none yet'}"
            if ended := len(in_queue) - len(waiting):
                left = (time.monotonic() - start) / ended * len(waiting)
                text += f"; about {left / 60:.0f} min left"
            print(text, flush=True)
        if not lives:
            if workers == TRIES:
                raise UserError(f"dvc queue start: {workers} workers in a row ended without running anything")
            workers += 1
            start_worker()
        shortest, longest = POLL_SECONDS
        time.sleep(min(longest, shortest + (time.monotonic() - changed) / 5))


def run(wanted: dict[str, Changes], retry: bool) -> dict[str, str]:
    """Run what is missing until all has ended; returns why experiments failed, by name.

    Raises `UserError` if another study runs here, or another commit is checked out meanwhile.
    """
    LOCK.parent.mkdir(exist_ok=True)
    lock = LOCK.open("w")  # released by the system however this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{LOCK}: another study is running in this repository; wait until it ends") from None
    workspace.mend()
    commit = require_what_is_committed()
    requeued: Counter[str] = Counter()
    while True:
        if require_what_is_committed() != commit:
            raise UserError(f"another commit was checked out, expected {commit[:7]}; the same command runs the new one")
        note_what_died()
        failed, in_queue = queue_missing(wanted, retry, requeued)
        if not in_queue:
            return failed
        watch(in_queue, len(wanted))
        retry = False
