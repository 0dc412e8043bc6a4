"""Kill parts of a cluster that runs a study, and check the result: ``python benchmarks/cluster.py --kills 20``.

Three machines on loopback, each with its own home, caches and Dask worker, run `studies/mnist.yaml` and reach the Git
and DVC remotes over SSH (needs `sshd`; Debian: openssh-server). One of them joins late. At random times a worker, a
machine, the coordinator or the scheduler is killed with -9 and restarted, in rounds with different settings. After each
round one machine runs the same study undisturbed. Exit code 1 if an experiment is missing, a pretraining ran twice, or
the two pages differ.
"""

import argparse
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
PLAN = "studies/mnist.yaml"
WAIT = (10, 40)  # seconds between kills
KINDS = {"worker": 5, "machine": 2, "coordinator": 3, "scheduler": 1}  # relative frequencies of kills


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


class Cluster:
    """An SSH server with the remotes, a user's clone, and the processes of a Dask cluster by name."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.processes: dict[str, subprocess.Popen] = {}
        self.setting = ""  # override of the current round
        server = f"{self.start_sshd()}{folder}"
        self.run(".", "git", "clone", "-q", "--bare", str(ROOT), "origin.git")
        self.run(".", "git", "clone", "-q", "origin.git", "user")
        self.run("user", "dvc", "remote", "add", "--default", "store", f"{server}/store")
        self.run("user", "dvc", "remote", "modify", "store", "keyfile", f"{folder}/key")
        self.run("user", "git", "commit", "-qam", "remote")
        self.run("user", "git", "push", "-q")
        self.run("user", "git", "remote", "set-url", "origin", f"{server}/origin.git")
        self.run(".", "git", "clone", "-q", "origin.git", "alone")

    def start_sshd(self) -> str:
        """Start an SSH server for the current user and return its URL."""
        for key in ("key", "host"):
            self.run(".", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        Path("/run/sshd").mkdir(exist_ok=True)
        port = free_port()
        options = [
            f"Port={port}", "ListenAddress=127.0.0.1", f"HostKey={self.folder}/host", "PidFile=none", "UsePAM=no",
            f"AuthorizedKeysFile={self.folder}/key.pub", "StrictModes=no", "Subsystem=sftp internal-sftp",
        ]  # fmt: skip
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"  # refuses to start without its absolute path
        self.processes["sshd"] = subprocess.Popen([sshd, "-D", "-f", "/dev/null", *(f"-o{each}" for each in options)])
        return f"ssh://{psutil.Process().username()}@127.0.0.1:{port}"

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a machine, with its own home."""
        home = self.folder / "homes" / name
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        ssh = f"ssh -i {self.folder}/key -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return os.environ | {
            "HOME": str(home), "XDG_CACHE_HOME": f"{home}/cache", "DVC_SITE_CACHE_DIR": f"{home}/site",
            "TMPDIR": f"{home}/tmp", "GIT_SSH_COMMAND": ssh, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **{f"GIT_{role}_{key}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        }  # fmt: skip

    def run(self, name: str, *command: str) -> str:
        """Run a command in a folder and return its output; exit if it fails."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": self.environment(name)}
        done = subprocess.run(command, cwd=self.folder / name, text=True, check=False, **streams)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}")
        return done.stdout

    def start(self, name: str) -> None:
        """Start or restart the scheduler, the coordinator or a machine, and append its output to NAME.log."""
        self.kill(name)
        address = f"tcp://127.0.0.1:{self.port}"
        worker = f"python -m distributed.cli.dask_worker {address} --no-dashboard --nthreads 1 --local-directory ."
        commands = {
            "scheduler": f"python -m distributed.cli.dask_scheduler --no-dashboard --host 127.0.0.1 --port {self.port}",
            "coordinator": f"python -m studies {PLAN} -S {self.setting} --scheduler {address} --retry",
        }
        command = commands.get(name, f"while :; do {worker}; sleep 1; done")  # a worker ends with its scheduler
        folder = self.folder / ("user" if name in commands else name)
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", command], cwd=folder, env=self.environment(name), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self, *names: str) -> None:
        """Kill processes and their descendants."""
        for process in [self.processes.pop(name) for name in names if name in self.processes]:
            with suppress(psutil.NoSuchProcess):
                for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            process.wait()

    def kill_at_random(self, rng: random.Random) -> str:
        """Kill a random worker that runs an experiment, or restart another part; returns its kind."""
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        if kind == "worker":
            children = psutil.Process().children(recursive=True)
            experiments = [child for child in children if "runpy.run_module('dvc'" in " ".join(child.cmdline())]
            rng.choice(experiments).parent().kill()
        else:
            self.start(rng.choice([name for name in self.processes if name.startswith(kind)]))
        return kind

    def run_study(self, rng: random.Random, kills: Counter, most: int) -> None:
        """Run the study to its end, killing parts of the cluster."""
        for name in ("scheduler", "machine1", "machine2", "coordinator"):
            self.start(name)
        while True:
            with suppress(subprocess.TimeoutExpired):
                if self.processes["coordinator"].wait(timeout=rng.uniform(*WAIT)) == 0:
                    break
                self.start("coordinator")  # it gave up, such as without a scheduler
                continue
            if "machine3" not in self.processes:
                self.start("machine3")
            if kills.total() < most:
                with suppress(IndexError, psutil.Error):  # no worker is busy, or one has just ended
                    kills[self.kill_at_random(rng)] += 1
                    print(f"kills: {dict(kills)}", flush=True)
        self.kill("coordinator", "machine1", "machine2", "machine3", "scheduler")

    def count_trainings(self, stage: str) -> tuple[int, int]:
        """Count a stage's different trainings and the repeated ones: folders and files in all of DVC's run caches."""
        caches = [*self.folder.glob("homes/machine*/cache/*/studies/runs"), self.folder / "store/runs"]
        files = {path.relative_to(cache): path for cache in caches for path in cache.rglob("*") if path.is_file()}
        runs = [path for path, file in files.items() if re.search(rf"stages\.{stage}\b", file.read_text())]
        different = {path.parent for path in runs}
        return len(different), len(runs) - len(different)

    def check(self, rounds: int) -> bool:
        """Check the last round's experiments and page, and the trainings of all rounds."""
        self.run("alone", "python", "-m", "studies", PLAN, "-S", self.setting)
        plan, head = yaml.safe_load((ROOT / PLAN).read_text()), self.run("user", "git", "rev-parse", "HEAD")
        pages = [self.folder / clone / "results" / Path(PLAN).stem / "README.md" for clone in ("user", "alone")]
        same = len({page.read_bytes() for page in pages}) == 1
        expected = len(plan["seeds"]) * len(plan["runs"])
        found = len(self.run("origin.git", "git", "for-each-ref", f"refs/exps/{head[:2]}").splitlines())
        trainings = {stage: self.count_trainings(stage) for stage in ("pretrain", "finetune")}
        print(
            f"round {rounds}: experiments: {found} of {expected}; different and repeated trainings of all rounds: "
            f"{trainings}; pages: {'the same bytes' if same else 'DIFFERENT'}",
            flush=True,
        )
        complete = found == expected and trainings["finetune"][0] == 2 * rounds * expected
        return same and complete and trainings["pretrain"] == (rounds * expected, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    options = parser.parse_args()
    rng, kills, rounds, passed = random.Random(options.seed), Counter(), 0, True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            while kills.total() < options.kills:
                rounds += 1
                cluster.setting = f"pretrain.batch_size={60 + rounds}"
                cluster.run_study(rng, kills, options.kills)
                passed &= cluster.check(rounds)
        finally:
            cluster.kill(*cluster.processes)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
