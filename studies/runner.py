"""Run a study's experiments on Dask workers.

Dask transports the calls and detects lost workers. This module decides when and where an experiment runs: it waits for
any other that computes a training both need, and experiments with the same seed stay on one type of CPU.
"""

import time
import uuid
from collections import Counter
from itertools import islice
from pathlib import Path

from dask.base import tokenize
from distributed import Client, Future, KilledWorker, fire_and_forget, wait

from stages.shared.errors import UserError, one_line
from studies import worker
from studies.cluster import FOLDER
from studies.experiments import find_dependencies, overrides
from studies.plan import FlatSettings
from studies.repository import Experiment, completed_experiments
from studies.worker import Base, Outcome

ATTEMPTS = 4  # at an experiment that is interrupted or whose worker dies
RETURN_SECONDS = 30  # in which a lost worker may return to its machine's cache before another machine takes over
POLL_SECONDS = 5  # between checks for new workers


class Study:
    """The experiments of a study and the state of each; none is started after `deadline`, by ``time.monotonic``."""

    def __init__(self, client: Client, base: Base, wanted: dict[str, FlatSettings], retry: bool, deadline: float):
        self.client, self.base, self.wanted, self.deadline = client, base, wanted, deadline
        self.left_out: list[str] = []
        self.key = {name: f"{name}-{tokenize(base, wanted[name])}" for name in wanted}
        self.waits_for, self.first_pretrainings = find_dependencies(wanted)
        completed = completed_experiments(base, wanted)
        files = {} if retry else {name: _file(key, "failed") for name, key in self.key.items()}
        self.failed = {name: file.read_text() for name, file in files.items() if file.exists()}  # at the same commit
        self.waiting = [name for name in wanted if name not in completed and name not in self.failed]
        self.running: dict[Future, tuple[str, str]] = {}  # experiment and worker's address
        self.attempts: Counter[str] = Counter()
        self.machines: dict[str, tuple[str, str]] = {}  # by worker's address: CPU and machine
        self.lost: dict[str, tuple[str, float]] = {}  # by experiment: machine and time of its worker's death
        self.unusable: dict[str, str] = {}  # by worker's address: reason
        self.cpu_of_seed: dict[int, str] = {}
        self.missing, self.started, self.progress = len(self.waiting), time.monotonic(), ""

    def run(self) -> tuple[dict[str, Experiment], dict[str, str]]:
        """Run the missing experiments; return all completed ones and the reasons of failures, by name.

        Raises `UserError` if no experiment is completed.
        """
        self.client.subscribe_topic(worker.TOPIC, self._log)
        while self.waiting or self.running:
            if time.monotonic() > self.deadline:
                self.left_out, self.waiting = self.left_out + self.waiting, []
            self._submit()
            self._print_progress()
            if not self.running:
                time.sleep(1)
                continue
            try:
                ended = wait(list(self.running), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in ended:
                self._finish(future)
        completed = completed_experiments(self.base, self.wanted)
        missing = [name for name in self.wanted if name not in {*completed, *self.left_out}]
        failed = {name: self.failed.get(name, "its experiment is gone") for name in missing}
        if not completed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "none was started"
            raise UserError(f"no experiment succeeded: {reasons}")
        return completed, failed

    def _log(self, event: tuple) -> None:
        """Append a line of an experiment's output to its log."""
        name, line = event[1]
        if name in self.wanted:
            with _file(name, "log").open("a") as file:
                file.write(f"{line}\n")

    def _submit(self) -> None:
        """Start experiments on idle workers; rejoin those that an interrupted study left running."""
        workers = self._find_workers()
        for future, (name, address) in list(self.running.items()):
            if address not in workers:
                self.lost[name] = self.machines.get(address, ("", address))[1], time.monotonic()
                self.client.cancel(future, force=True)
                self._finish(future)
        busy = {key: address for address, keys in self.client.processing().items() for key in keys}
        busy = {future.key: address for future, (_, address) in self.running.items()} | busy
        for name in list(self.waiting):
            if left_running := [key for key in busy if key.startswith(self.key[name])]:
                self._start(name, busy[left_running[0]], left_running[0])
        usable = [address for address in workers if address not in self.unusable]
        tasks, cpus = Counter(busy.values()), {self.machines[address][0] for address in usable}
        for address in usable:
            unfinished = {*self.waiting, *(name for name, _ in self.running.values())}
            ready = (name for name in self.waiting if self._may_run(name, address, unfinished, cpus))
            for name in list(islice(ready, max(0, workers[address] - tasks[address]))):
                self._start(name, address, f"{self.key[name]}-{uuid.uuid4()}")  # an old key may wait for a dead worker

    def _find_workers(self) -> dict[str, int]:
        """Return threads by worker's address, new ones identified; raise `UserError` if no worker is usable."""
        workers = self.client.nthreads()  # not scheduler_info(): Dask's client refreshes that without workers meanwhile
        if new := [address for address in workers if address not in self.machines]:
            answers = self.client.run(worker.identify_machine, workers=new, on_error="return")
            self.machines |= {a: found if isinstance(found, tuple) else ("", a) for a, found in answers.items()}
        if workers and all(address in self.unusable for address in workers):
            raise UserError(f"no worker can run the study: {'; '.join(sorted(set(self.unusable.values())))}")
        return workers

    def _may_run(self, name: str, address: str, unfinished: set[str], cpus: set[str]) -> bool:
        """Return whether a worker may run an experiment now.

        It waits for experiments that compute a shared training, for its seed's type of CPU while `cpus`, those of all
        workers, include it, and for a while for the machine on which its worker died.
        """
        cpu, machine = self.machines[address]
        cpu_of_seed = self.cpu_of_seed.get(self.wanted[name]["seed"], cpu)
        lost_on, lost_at = self.lost.get(name, (machine, 0.0))
        return (
            not self.waits_for[name] & unfinished
            and (cpu_of_seed == cpu or cpu_of_seed not in cpus)
            and (lost_on == machine or time.monotonic() > lost_at + RETURN_SECONDS)
        )

    def _start(self, name: str, address: str, key: str) -> None:
        future = self.client.submit(
            worker.run_experiment, self.base, name, overrides(self.wanted[name]), name in self.first_pretrainings,
            key=key, workers=[address], pure=False,
        )  # fmt: skip
        fire_and_forget(future)  # it survives this process, and the next one rejoins it
        self.waiting.remove(name)
        self.running[future] = name, address
        if address in self.machines:
            self.cpu_of_seed.setdefault(self.wanted[name]["seed"], self.machines[address][0])
        _file(self.key[name], "failed").unlink(missing_ok=True)
        if not self.attempts[name]:
            _file(name, "log").unlink(missing_ok=True)

    def _finish(self, future: Future) -> None:
        """Record the outcome of a running experiment, and queue it again unless it is done or has failed."""
        name, address = self.running.pop(future)
        outcome = Outcome("interrupted", f"its worker died, see {_file(name, 'log')}")
        if future.status == "finished":
            outcome = future.result()
        elif future.status == "error" and not isinstance(future.exception(), KilledWorker):
            outcome = Outcome("unusable", f"{address}: {one_line(future.exception())}")
        self.attempts[name] += outcome.status != "unusable"
        if outcome.status == "failed" or self.attempts[name] == ATTEMPTS:
            self.failed[name] = outcome.reason
            _file(self.key[name], "failed").write_text(outcome.reason)
        elif outcome.status != "done":
            print(f"repeating {name}: {outcome.reason}", flush=True)
            self.waiting.insert(0, name)
            if outcome.status == "unusable":
                self.unusable[address] = outcome.reason

    def _print_progress(self) -> None:
        """Print the progress and the estimated time left, if an experiment has started or ended."""
        left = len(self.waiting) + len(self.running) + len(self.left_out)
        running = ", ".join(name for name, _ in self.running.values()) or "none, no worker is connected"
        text = f"{len(self.wanted) - left} of {len(self.wanted)} ended; running: {running}"
        if text == self.progress:
            return
        self.progress = text
        if self.left_out:
            text += f"; time is up: {len(self.left_out)} are not started"
        elif ended := self.missing - left:
            text += f"; about {(time.monotonic() - self.started) / ended * left / 60:.0f} min left"
        print(text, flush=True)


def _file(name: str, kind: str) -> Path:
    return FOLDER / f"{name}.{kind}"
