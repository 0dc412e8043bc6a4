"""Run a study's experiments on Dask's workers.

Dask carries the calls and notices workers that die. What runs where is decided here: nothing that needs a training
that another experiment is computing, so that nothing is trained twice; a seed's experiments on one type of CPU.
"""

import fcntl
import hashlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import yaml
from distributed import Client, Future, KilledWorker, LocalCluster, fire_and_forget, wait
from distributed.client import FuturesCancelledError

from stages.shared.errors import UserError, one_line
from stages.shared.inputs import names_setting
from studies import worker
from studies.plan import Changes, overrides
from studies.repository import Experiment, experiments
from studies.worker import Base, Ended

FOLDER = Path(".dvc/tmp/studies")  # clones; what experiments printed, NAME.log; why they failed, NAME.failed
ATTEMPTS = 4  # at an experiment that is interrupted, or whose worker dies
RETURN_SECONDS = 30  # given to a worker that died to come back to what its machine's cache has
POLL_SECONDS = 5  # between looks for new workers


@contextmanager
def cluster(scheduler: dict[str, str], workers: int) -> Iterator[Client]:
    """Dask's client of a scheduler, given by ``address`` or ``scheduler_file``, or of so many workers on this machine.

    Raises `UserError` if another study runs here, or no scheduler answers.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (FOLDER / "lock").open("w")  # released by the system however this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{lock.name}: another study is running in this repository; wait until it ends") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here
    if scheduler:
        try:
            with Client(**scheduler) as client:
                yield client
        except (OSError, ValueError, FuturesCancelledError) as error:
            where = ", ".join(scheduler.values())
            why = "gone" if isinstance(error, FuturesCancelledError) else f"not there: {one_line(error)}"
            raise UserError(f"{where}: Dask's scheduler is {why}; start it and type the same command again") from None
        return
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None, local_directory=str(FOLDER.absolute()),
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        ) as here,
        Client(here) as client,
    ):  # fmt: skip
        if find_spec("bokeh"):  # draws Dask's dashboard
            print(f"watch: {client.dashboard_link}", flush=True)
        yield client


def trainings(stages: dict, settings: Changes) -> dict[str, str]:
    """For each of the `stages` of ``dvc.yaml`` that trains: itself and all settings that its result depends on."""
    trained = [stage for stage in stages if f"{stage}.epochs" in settings]

    def read_by(*names: str) -> dict:
        return {k: v for k, v in settings.items() if any(names_setting(stages[name], k) for name in names)}

    of_source = {k: v for k, v in read_by("prepare", "pretrain").items() if not k.startswith("data.target_")}
    keys = {stage: of_source if stage == "pretrain" else read_by("prepare", "pretrain", stage) for stage in trained}
    return {stage: f"{stage} {json.dumps(read, sort_keys=True)}" for stage, read in keys.items()}


def first_of_trainings(wanted: dict[str, Changes]) -> tuple[dict[str, set[str]], set[str]]:
    """Who trains first what several experiments need.

    Returns the experiments that each experiment waits for, and those that are the first with their pretraining.
    """
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    first: dict[str, str] = {}
    after, leads = {}, set()
    for name, settings in wanted.items():
        owners = {stage: first.setdefault(key, name) for stage, key in trainings(stages, settings).items()}
        after[name] = set(owners.values()) - {name}
        leads.add(owners["pretrain"])
    return after, leads


class Study:
    """The experiments of a study, and how far each is: waiting, running, ended."""

    def __init__(self, client: Client, base: Base, wanted: dict[str, Changes], retry: bool):
        self.client, self.base, self.wanted = client, base, wanted
        self.key = {name: f"{name}-{_digest(base, wanted[name])}" for name in wanted}
        self.after, self.leads = first_of_trainings(wanted)
        known = experiments(base, wanted)
        self.failed = {} if retry else self._noted_failures()
        self.waiting = [name for name in wanted if name not in known and name not in self.failed]
        self.running: dict[Future, tuple[str, str]] = {}  # an experiment's name and its worker's address
        self.attempts: Counter[str] = Counter()
        self.machine: dict[str, tuple[str, str]] = {}  # of workers: CPU, and which machine it is
        self.died: dict[str, tuple[str, float]] = {}  # where an experiment's worker died, and when
        self.unfit: dict[str, str] = {}  # workers, and why
        self.cpu_of_seed: dict[int, str] = {}
        self.missing, self.start, self.shown = len(self.waiting), time.monotonic(), ""

    def run(self) -> tuple[dict[str, Experiment], dict[str, str]]:
        """Run what is missing; returns what has been run, and why others failed, by name."""
        self.client.subscribe_topic(worker.TOPIC, self._note)
        while self.waiting or self.running:
            self._submit()
            self._show()
            if not self.running:
                time.sleep(1)
                continue
            try:
                ended = wait(list(self.running), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in ended:
                self._end(future, *self.running.pop(future))
        known = experiments(self.base, self.wanted)
        return {name: known[name] for name in self.wanted if name in known}, self.failed

    def _noted_failures(self) -> dict[str, str]:
        noted = {name: _file(name, "failed").read_text() for name in self.wanted if _file(name, "failed").exists()}
        parts = {name: text.split("\n", 1) for name, text in noted.items()}
        return {name: why for name, (key, why) in parts.items() if key == self.key[name]}

    def _note(self, event: tuple) -> None:
        """Keep a line that an experiment printed."""
        name, line = event[1]
        if name in self.wanted:
            with _file(name, "log").open("a") as file:
                file.write(f"{line}\n")

    def _submit(self) -> None:
        """Start as many experiments as there are idle workers for, and join those that a killed study left running."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        if new := [address for address in workers if address not in self.machine]:
            asked = self.client.run(worker.machine, workers=new, on_error="return")
            self.machine |= {a: found if isinstance(found, tuple) else ("", a) for a, found in asked.items()}
        fit = [address for address in workers if address not in self.unfit]
        if workers and not fit:
            raise UserError(f"no worker can run the study: {'; '.join(sorted(set(self.unfit.values())))}")
        for future, (name, address) in list(self.running.items()):
            if address not in workers:
                self._lose(future, name, address)
        at = {key: address for address, keys in self.client.processing().items() for key in keys}
        at = {future.key: address for future, (_, address) in self.running.items()} | at
        for name in list(self.waiting):
            if left := [key for key in at if key.startswith(self.key[name])]:
                self._start(name, at[left[0]], left[0])
        busy, cpus = Counter(at.values()), {self.machine[address][0] for address in fit}
        for address in fit:
            unfinished = {*self.waiting, *(name for name, _ in self.running.values())}
            ready = (name for name in self.waiting if self._may_run(name, address, unfinished, cpus))
            for name in list(islice(ready, max(0, workers[address]["nthreads"] - busy[address]))):
                self._start(name, address, f"{self.key[name]}-{uuid.uuid4()}")  # an old key may wait for a dead worker

    def _may_run(self, name: str, address: str, unfinished: set[str], cpus: set[str]) -> bool:
        """Whether a worker may take an experiment; `cpus`: those of all workers.

        Not while another trains something that both need, nor on another type of CPU than its seed's if there is one of
        that, nor if its worker has just died on another machine, which may come back.
        """
        cpu, machine = self.machine[address]
        of_seed = self.cpu_of_seed.get(self.wanted[name]["seed"], cpu)
        elsewhere, since = self.died.get(name, (machine, 0.0))
        return (
            not self.after[name] & unfinished
            and (of_seed == cpu or of_seed not in cpus)
            and (elsewhere == machine or time.monotonic() > since + RETURN_SECONDS)
        )

    def _start(self, name: str, address: str, key: str) -> None:
        future = self.client.submit(
            worker.run, self.base, name, overrides(self.wanted[name]), name in self.leads,
            key=key, workers=[address], pure=False,
        )  # fmt: skip
        fire_and_forget(future)  # goes on without this process, and the next one joins it
        self.waiting.remove(name)
        self.running[future] = name, address
        if address in self.machine:
            self.cpu_of_seed.setdefault(self.wanted[name]["seed"], self.machine[address][0])
        _file(name, "failed").unlink(missing_ok=True)
        if not self.attempts[name]:
            _file(name, "log").unlink(missing_ok=True)

    def _lose(self, future: Future, name: str, address: str) -> None:
        """Take an experiment back from a worker that is gone."""
        if address in self.machine:
            self.died[name] = self.machine[address][1], time.monotonic()
        self.client.cancel(future, force=True)
        del self.running[future]
        self._end(future, name, address)

    def _end(self, future: Future, name: str, address: str) -> None:
        """Note what Dask says of an experiment that is no longer running."""
        if future.status == "finished":
            self._ended(name, address, future.result())
        elif future.status == "error" and not isinstance(future.exception(), KilledWorker):
            self._ended(name, address, Ended("unfit", f"{address}: {one_line(future.exception())}"))
        else:
            self._ended(name, address, Ended("interrupted", f"its worker died, see {_file(name, 'log')}"))

    def _ended(self, name: str, address: str, ended: Ended) -> None:
        """Note how an experiment ended, and whether it has to run again."""
        self.attempts[name] += ended.how == "interrupted"
        if ended.how == "failed" or self.attempts[name] == ATTEMPTS:
            self.failed[name] = ended.why
            _file(name, "failed").write_text(f"{self.key[name]}\n{ended.why}")
        elif ended.how != "done":
            print(f"again: {name}: {ended.why}", flush=True)
            self.waiting.insert(0, name)
            if ended.how == "unfit":
                self.unfit[address] = ended.why

    def _show(self) -> None:
        """Print how far the study is, if that has changed."""
        left = len(self.waiting) + len(self.running)
        running = ", ".join(name for name, _ in self.running.values())
        text = (
            f"{len(self.wanted) - left} of {len(self.wanted)} ended; running: {running or 'none, no worker is there'}"
        )
        if text == self.shown:
            return
        self.shown = text
        if ended := self.missing - left:
            text += f"; about {(time.monotonic() - self.start) / ended * left / 60:.0f} min left"
        print(text, flush=True)


def _file(name: str, kind: str) -> Path:
    return FOLDER / f"{name}.{kind}"


def _digest(base: Base, settings: Changes) -> str:
    return hashlib.sha256(f"{base} {json.dumps(settings, sort_keys=True)}".encode()).hexdigest()[:12]
