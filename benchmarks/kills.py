"""Kill `dvc repro` again and again and see that the next one makes the bytes of an undisturbed run:

    python benchmarks/kills.py [--kills 50] [--writes N] [--seed 0]

First at random moments, two of three by SIGKILL and one by Ctrl-C; then before, in the middle of and after the writing
of every output of every stage; then with the disk full in the middle of every output, where the stage has to end with
one line; or at N of these moments. On the built-in digits, one epoch a stage. Exit code 1, and the folder is kept, when
a byte differs, a finished stage runs again or something half-written has an output's name.
"Removed by hand" counts how often DVC was killed while it wrote a file of its own, which it then cannot read.
"""

import argparse
import contextlib
import hashlib
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
from repository import ROOT, Repository, stages_run  # noqa: E402

IN_A_ROW = 3
MOMENTS = ("before", "half", "after", "full")
WITHOUT_TIMES = (
    "data/prepared/*.npz", "models/*.keras", "reports/history/*", "reports/predictions/*", "reports/record/*",
    "reports/figures/*",
)  # fmt: skip


def die_while_writing() -> None:
    """Kill this process before, in the middle of or after the writing of the file that DIE_WHILE_WRITING names.

    Or let the disk be full in the middle of it.

    Stands alone: its source becomes the sitecustomize.py of the stages' Python.
    """
    import builtins
    import errno
    import io
    import os
    import signal

    moment, _, path = os.environ.get("DIE_WHILE_WRITING", "").partition(" ")
    folder, _, name = path.rpartition("/")
    open_file = io.open

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def open_and_die(file, mode="r", *args, **options):
        reads = isinstance(file, int) or not set(mode) & set("wax+")
        if reads or os.path.relpath(file) not in (path, f"{folder}/.{name}.unfinished"):
            return open_file(file, mode, *args, **options)
        if moment == "before":
            die()
        stream = open_file(file, mode, *args, **options)
        write, close = stream.write, stream.close

        def write_half(content):
            write(content[: len(content) // 2])
            stream.flush()
            if moment == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            die()

        def close_and_die():
            close()
            die()

        if moment in ("half", "full"):
            stream.write = write_half
        else:
            stream.close = close_and_die
        return stream

    if path:
        builtins.open = io.open = open_and_die


@dataclass
class Run:
    """A `dvc repro` that has ended."""

    output: str
    code: int
    kill: str  # what killed it; empty: nothing did


@dataclass
class Round:
    """Kills in a row and the run that completes; `wrong` says what was not as it should be."""

    runs: list[Run] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> list[str]:
        return [run.kill for run in self.runs if run.kill]

    def __str__(self) -> str:
        told = f"{len(self.kills)} kills: {', '.join(self.kills)}; "
        told += f"ran {' | '.join(' '.join(stages_run(run.output)) or 'nothing' for run in self.runs)}; "
        if self.by_hand:
            told += f"removed by hand: {', '.join(self.by_hand)}; "
        return told + ("; ".join(self.wrong) or "same bytes")


class KilledRepository(Repository):
    """A repository in which `dvc repro` is killed."""

    def __init__(self, path: Path, params: dict | None = None):
        super().__init__(path, params)
        self.log = path.parent / f"output of {path.name}"
        hook = path.parent / f"hook of {path.name}"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(inspect.getsource(die_while_writing) + "\n\ndie_while_writing()\n")
        self.environment |= {"PYTHONPATH": str(hook), "DVC_SITE_CACHE_DIR": str(hook / "site")}

    @property
    def outputs(self) -> dict[str, list[str]]:
        """The files that each stage writes."""
        outputs = {}
        for name, stage in yaml.safe_load((self.path / "dvc.yaml").read_text())["stages"].items():
            entries = [entry for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, [])]
            outputs[name] = [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]
        return outputs

    def results(self) -> dict[str, bytes]:
        """All that the pipeline makes, without times."""
        metrics = json.loads((self.path / "reports/metrics.json").read_text())
        for stage in metrics.values():
            del stage["train_seconds"]
        return self.bytes_of(*WITHOUT_TIMES) | {"reports/metrics.json": json.dumps(metrics).encode()}

    def forget(self, *stages: str) -> None:
        """Make it as if some stages, or all, had never run."""
        for stage in stages or self.outputs:
            for path in self.outputs[stage]:
                (self.path / path).unlink(missing_ok=True)
        for folder in (".dvc/cache/runs",) if stages else (".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        lock = self.path / "dvc.lock"
        recorded = yaml.safe_load(lock.read_text())
        recorded["stages"] = {name: entry for name, entry in recorded["stages"].items() if name not in stages}
        lock.write_text(yaml.safe_dump(recorded)) if stages else lock.unlink()

    def start(self, **environment: str) -> subprocess.Popen:
        """Start `dvc repro` in a process group of its own; what it prints goes to `log`."""
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"], cwd=self.path, env=self.environment | environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # What a shell starts in the background ignores Ctrl-C, and passes that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def repro(
        self, seconds: float | None = None, number: int = signal.SIGKILL, until: str = "", write: str = ""
    ) -> Run:
        """Run `dvc repro`, kill it, and wait until nothing of it is left.

        Args:
            seconds: send a signal to it and to all that it started after so many seconds.
            number: the signal.
            until: wait for this text in its output, then the seconds.
            write: a moment of writing a file, as "half models/pretrain.keras"; the stage that writes it kills itself.
        """
        process = self.start(DIE_WHILE_WRITING=write)
        while until not in self.log.read_text() and process.poll() is None:
            time.sleep(0.02)
        kill = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            kill = f"{signal.Signals(number).name} {until}+{seconds:.1f} s"
            end(process, number)
        output = self.log.read_text()
        if write and ("exited with -9" in output or "exited with 137" in output):
            kill = write
        if write.startswith("full ") and "No space left on device" in output and "Traceback" not in output:
            kill = write
        return Run(output, process.returncode, kill)

    def recorded(self) -> dict[str, list[dict]]:
        """The outputs that dvc.lock has, by stage; none where DVC was killed while it wrote that file."""
        try:
            stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
            return {stage: entry["outs"] for stage, entry in stages.items()}
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return {}

    def ended(self, output: str) -> set[str]:
        """The stages that ended in a run: DVC says that it writes dvc.lock, then it does."""
        ended, stage = [], ""
        for line in output.splitlines():
            if line.startswith(("Running stage '", "Stage '")):
                stage = line.split("'")[1]
            elif line.startswith(("Generating lock file", "Updating lock file")):
                ended.append(stage)
        return {stage for stage in ended if stage != ended[-1] or stage in self.recorded()}

    def mend(self) -> list[str]:
        """Remove what DVC itself was killed at and cannot read, as a user has to; returns what that was."""
        removed = []
        if (self.path / "dvc.lock").exists() and not self.recorded():
            (self.path / "dvc.lock").unlink()
            removed.append("dvc.lock")
        rwlock = self.path / ".dvc/tmp/rwlock"
        try:
            json.loads(rwlock.read_text() if rwlock.exists() else "{}")
        except ValueError:
            rwlock.unlink()
            removed.append(".dvc/tmp/rwlock")
        for folder in self.path.glob(".dvc/cache/runs/*/*"):
            with contextlib.suppress(OSError):
                folder.rmdir()
                removed.append(".dvc/cache/runs")
        return removed

    def wrongly_recorded(self) -> list[str]:
        """What DVC has in dvc.lock or keeps in its cache and is not what it should be."""
        wrong = []
        for out in (out for outs in self.recorded().values() for out in outs):
            path = self.path / out["path"]
            if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != out["md5"]:
                wrong.append(f"{out['path']}: recorded in dvc.lock with other bytes")
        for path in self.path.glob(".dvc/cache/files/md5/??/[!.]*"):
            if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name:
                wrong.append(f"{path.relative_to(self.path)}: other bytes than its name says")
        return wrong

    def under_its_name(self, write: str) -> list[str]:
        """Whether the file is there that was killed before it was whole; curves are, as they grow by epochs."""
        moment, _, path = write.partition(" ")
        if (
            moment in ("before", "half", "full")
            and not path.startswith("reports/history/")
            and (self.path / path).exists()
        ):
            return [f"{path}: there, though killed {moment} its writing"]
        return []

    def round(self, reference: dict[str, bytes], kills: list[dict]) -> Round:
        """Run `dvc repro` with each of the kills, which are arguments of `repro`, let it complete, and check."""
        result, ended = Round(), set()
        for kill in [*kills, {}]:
            run = self.repro(**kill)
            while run.code and not run.kill and (mended := self.mend()):
                result.by_hand += mended
                run = self.repro(**kill)
            result.runs.append(run)
            result.twice += [stage for stage in stages_run(run.output) if stage in ended]
            ended |= self.ended(run.output)
            result.wrong += self.under_its_name(kill.get("write", ""))
            if run.code and not run.kill:
                result.wrong.append(f"`dvc repro` failed:\n{run.output}")
                return result
            if not run.code:
                break
        found = self.results()
        result.wrong += [f"{path}: other bytes" for path in reference | found if found.get(path) != reference.get(path)]
        result.wrong += self.wrongly_recorded()
        result.wrong += [f"{stage}: ended and ran again" for stage in result.twice]
        return result


def alive(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def end(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process group, again where it went unheard, until nothing of it is left."""
    for _ in range(12):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            break
    deadline = time.monotonic() + 10
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid), f"processes {alive(process.pid)} outlived {signal.Signals(number).name}"


def digits_params() -> dict:
    """The committed settings, with the digits and one epoch a stage."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["path"] = "data/raw/digits.npz"
    for section in ("pretrain", "finetune_output", "finetune_fc"):
        params[section]["epochs"] = 1
    return params


def at_random(repo: KilledRepository, reference: dict, kills: int, seconds: float, rng: random.Random) -> list[Round]:
    """Rounds of up to three kills, each drawn uniformly from the time that is left of an undisturbed run."""
    rounds, done = [], 0
    while done < kills:
        repo.forget()
        planned, left = [], seconds
        for i in range(done, min(done + IN_A_ROW, kills)):
            number = signal.SIGINT if i % 3 == 2 else signal.SIGKILL
            planned.append({"seconds": rng.uniform(0, left), "number": number})
            left -= planned[-1]["seconds"]
        rounds.append(repo.round(reference, planned))
        done += len(rounds[-1].kills)
        print(f"round {len(rounds)}: {rounds[-1]}", flush=True)
    return rounds


def while_writing(repo: KilledRepository, reference: dict, writes: dict[str, list[str]]) -> list[Round]:
    """For each stage one round, of kills at its moments of writing."""
    rounds = []
    for stage, moments in writes.items():
        repo.forget(stage)
        result = repo.round(reference, [{"write": write} for write in moments])
        result.wrong += [f"not killed {write}" for write in moments if write not in result.kills]
        rounds.append(result)
        print(f"{stage}: {result}", flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills at random moments")
    parser.add_argument("--writes", type=int, metavar="N", help="kills while writing; without: at all moments")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    (folder / "repository").mkdir()
    repo = KilledRepository(folder / "repository", digits_params())
    assert repo.repro().code == 0
    reference = repo.results()
    repo.forget()
    start = time.monotonic()  # of a second run: the first one finds nothing in the system's memory
    assert repo.repro().code == 0
    seconds = time.monotonic() - start
    print(f"undisturbed: {seconds:.1f} s, {len(reference)} files", flush=True)

    rounds = at_random(repo, reference, arguments.kills, seconds, rng)
    every = [(stage, f"{m} {path}") for stage, paths in repo.outputs.items() for path in paths for m in MOMENTS]
    left_out = len(every) - (len(every) if arguments.writes is None else min(arguments.writes, len(every)))
    for moment in rng.sample(every, left_out):
        every.remove(moment)
    writes = {stage: [write for name, write in every if name == stage] for stage, _ in every}
    written = while_writing(repo, reference, writes)

    both = [*rounds, *written]
    kills = [kill for result in rounds for kill in result.kills]
    signals = [f"{sum(kill.startswith(name) for kill in kills)} {name}" for name in ("SIGKILL", "SIGINT")]
    survived = [kill for result in written if not result.wrong for kill in result.kills]
    full = sum(kill.startswith("full ") for kill in survived)
    planned_full = sum(moment.startswith("full ") for _, moment in every)
    print(
        f"kills survived: {sum(len(r.kills) for r in rounds if not r.wrong)} of {len(kills)} ({', '.join(signals)}), "
        f"rounds {len(rounds)}; while writing: {len(survived) - full} of {len(every) - planned_full}; "
        f"full disks survived: {full} of {planned_full}; "
        f"stages run twice {sum(len(r.twice) for r in both)}, removed by hand {sum(len(r.by_hand) for r in both)}"
    )
    if any(result.wrong for result in both):
        sys.exit(f"kept: {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
