"""Kill `dvc repro` again and again and check that the next one completes with the bytes of an undisturbed run.

    python benchmarks/kills.py [--kills 50] [--writes N] [--seed 0]

Works on fresh clones of what is committed here, with the digits and one epoch per stage. Kills come first at random
moments, by SIGKILL, SIGINT (Ctrl-C) and SIGTERM, up to three in a row; then before, halfway through and after the
writing of every output. The disk is full halfway through every output, too: one line has to end the stage. Exit code 1,
and the clones are kept, if a byte differs, a finished stage runs again, an output is half-written, or dvc.lock or the
cache do not match the files. "Removed by hand" counts files of DVC's own that a kill left unreadable.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
MOMENTS = ("before", "half", "after", "full")
FOLDERS = (
    "data/prepared", "models", "reports/history", "reports/predictions", "reports/gradcam", "reports/record",
    "reports/figures",
)  # fmt: skip
REPEATABLE = ("reports/metrics.json", *(f"{folder}/*" for folder in FOLDERS))
TIMES, WAIT = 12, 5  # that a signal is sent; seconds in between


class Clone:
    """A fresh clone in which `dvc repro` is killed; `wrong` says what was not as it should be."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self.kills, self.ran, self.by_hand, self.twice, self.wrong = [], [], [], [], []
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.path)], check=True)
        shutil.rmtree(self.path / "reports")  # results may be committed
        (self.path / "dvc.lock").unlink(missing_ok=True)
        params = yaml.safe_load((self.path / "params.yaml").read_text())
        params["data"]["path"] = "data/raw/digits.npz"
        for section in params.values():
            if isinstance(section, dict) and "epochs" in section:
                section["epochs"] = 1
        (self.path / "params.yaml").write_text(yaml.safe_dump(params))
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT / "benchmarks/hook"),
            "HOME": str(folder),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }

    def repro(self, seconds: float | None = None, number: int = signal.SIGKILL, write: str = "") -> tuple[int, str]:
        """Run `dvc repro` and kill it: after some seconds by a signal, or at a moment of writing, as "half FILE".

        Returns its exit code and what it printed; notes in `kills` what killed it, if anything did.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"], cwd=self.path, env=self.environment | {"DIE_WHILE_WRITING": write},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and passes that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kills.append(f"{signal.Signals(number).name} +{seconds:.1f} s")
            output = end(process, number)
        moment, _, path = write.partition(" ")
        died = f"error: {path}: No space left on device\n" if moment == "full" else "exited with -9"
        if write and died in output and "Traceback" not in output:
            self.kills.append(write)
            if moment != "after" and (self.path / path).exists():
                self.wrong.append(f"{path}: there, though killed {moment} its writing")
        return process.returncode, output

    def recorded(self) -> dict[str, list[dict]]:
        """The outputs in dvc.lock by stage; none if DVC was killed while it wrote that file."""
        try:
            stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
            return {stage: entry["outs"] for stage, entry in stages.items()}
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return {}

    def results(self) -> dict[str, bytes]:
        """The files that are the same in every run, without the seconds in one of them."""
        paths = [path for pattern in REPEATABLE for path in self.path.glob(pattern) if path.name[0] != "."]
        contents = {path.relative_to(self.path).as_posix(): path.read_bytes() for path in paths}
        return {path: re.sub(rb'"train_seconds": [\d.]+', b"", content) for path, content in contents.items()}

    def writes(self) -> list[str]:
        """The moments of writing each file, in the order of the stages."""
        recorded, stages = self.recorded(), yaml.safe_load((self.path / "dvc.yaml").read_text())["stages"]
        paths = [self.path / out["path"] for stage in stages for out in recorded[stage]]
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return [f"{moment} {file.relative_to(self.path)}" for file in files for moment in MOMENTS]

    def mend(self) -> list[str]:
        """Remove files of DVC's own that it cannot read, as a user has to; returns which."""
        removed = []
        lock, rwlock = self.path / "dvc.lock", self.path / ".dvc/tmp/rwlock"
        if lock.exists() and not self.recorded():
            removed.append(lock)
        try:
            json.loads(rwlock.read_text() if rwlock.exists() else "{}")
        except ValueError:
            removed.append(rwlock)
        for path in removed:
            path.unlink()
        for folder in self.path.glob(".dvc/cache/runs/*/*"):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
                removed.append(folder.parent.parent)
        return [str(path.relative_to(self.path)) for path in removed]

    def mismatches(self) -> list[str]:
        """The files whose bytes are not those of dvc.lock or of their name in the cache."""
        expected = {self.path / out["path"]: out["md5"] for outs in self.recorded().values() for out in outs}
        for path in self.path.glob(".dvc/cache/files/md5/??/[!.]*"):
            expected[path] = path.parent.name + path.name.removesuffix(".dir")
        return [f"{path}: other bytes than its MD5" for path, known in expected.items() if md5(path) != known]

    def survive(self, reference: dict[str, bytes], kills: list[dict]) -> None:
        """Run `dvc repro` with each of the kills, which are arguments of `repro`, let it complete, and check."""
        ended: set[str] = set()
        for kill in [*kills, {}]:
            before = len(self.kills)
            code, output = self.repro(**kill)
            while code and len(self.kills) == before and (removed := self.mend()):
                self.by_hand += removed
                code, output = self.repro(**kill)
            stages = re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)
            self.ran.append(" ".join(stages) or "nothing")
            self.twice += [stage for stage in stages if stage in ended]
            ended |= set(self.recorded())
            found = self.results()
            self.wrong += [f"{path}: other bytes" for path in found if found[path] != reference.get(path)]
            if len(self.kills) == before:
                break
        self.wrong += [f"`dvc repro` failed:\n{output}"] if code else self.mismatches()
        self.wrong += [f"{path}: missing" for path in reference if path not in found]
        self.wrong += [f"{stage}: ended and ran again" for stage in self.twice]
        writes = [kill["write"] for kill in kills if "write" in kill]
        self.wrong += [f"{write}: not killed" for write in writes if write not in self.kills]
        print(
            f"{self.path.name}: {len(self.kills)} kills: {', '.join(self.kills)}; ran {' | '.join(self.ran)}; "
            f"removed by hand {self.by_hand or 'nothing'}; {'; '.join(self.wrong) or 'same bytes'}",
            flush=True,
        )


def md5(path: Path) -> str:
    """The hash that DVC gives a file or a folder of files; empty if there is none."""
    if path.is_dir():
        entries = [{"md5": md5(file), "relpath": file.name} for file in sorted(path.iterdir())]
        return hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"
    return hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else ""


def end(process: subprocess.Popen, number: int) -> str:
    """Send a signal to a process group until no process has its output open, and return that."""
    for _ in range(TIMES):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=WAIT)[0]
    raise TimeoutError(f"{signal.Signals(number).name}: something of `dvc repro` outlived it {TIMES} times")


def at_random(seconds: float, kills: int, rng: random.Random) -> list[dict]:
    """Up to three kills in a row, each drawn uniformly from the time that is left of an undisturbed run."""
    planned = []
    for number in rng.sample(SIGNALS, min(len(SIGNALS), kills)):
        planned.append({"seconds": rng.uniform(0, seconds), "number": number})
        seconds -= planned[-1]["seconds"]
    return planned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills at random moments")
    parser.add_argument("--writes", type=int, metavar="N", help="kills while writing; without: at all moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    undisturbed, start = Clone(folder, "undisturbed"), time.monotonic()
    code, output = undisturbed.repro()
    assert code == 0, output
    seconds, reference, writes = time.monotonic() - start, undisturbed.results(), undisturbed.writes()
    print(f"undisturbed: {seconds:.1f} s, {len(reference)} files", flush=True)

    rounds: list[Clone] = []
    while (left := options.kills - sum(len(clone.kills) for clone in rounds)) > 0:
        rounds.append(Clone(folder, f"round-{len(rounds) + 1}"))
        rounds[-1].survive(reference, at_random(seconds, left, rng))
        if not rounds[-1].wrong:
            shutil.rmtree(rounds[-1].path)
    if options.writes is not None:
        writes = [writes[i] for i in sorted(rng.sample(range(len(writes)), min(options.writes, len(writes))))]
    writing = Clone(folder, "writing")
    writing.survive(reference, [{"write": write} for write in writes])

    clones = [*rounds, writing]
    kills = [kill.split()[0] for clone in rounds for kill in clone.kills]
    counts = ", ".join(f"{kills.count(number.name)} {number.name}" for number in SIGNALS)
    full = sum(write.startswith("full ") for write in writes)
    healed = not writing.wrong
    by_hand = [path for clone in clones for path in clone.by_hand]
    print(
        f"kills survived: {sum(len(clone.kills) for clone in rounds if not clone.wrong)} of {len(kills)} "
        f"({counts}), rounds {len(rounds)}; while writing: {healed * (len(writes) - full)} of {len(writes) - full}; "
        f"full disks survived: {healed * full} of {full}; "
        f"stages run twice {sum(len(clone.twice) for clone in clones)}, removed by hand {len(by_hand)} {by_hand or ''}"
    )
    if any(clone.wrong for clone in clones):
        sys.exit(f"kept: {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
