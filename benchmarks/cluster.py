"""A study on a cluster that keeps losing its parts: is anything lost, anything trained twice, the page another one?

    python benchmarks/cluster.py --kills 20

Three machines on loopback, each with a home, caches and a Dask worker of its own, work on `studies/digits.yaml`. They
reach Git's and DVC's remotes over SSH (needs `sshd`; Debian: openssh-server). One joins late. At random moments a
worker, a whole machine, the coordinator or the scheduler is killed with -9 and started again, in rounds with other
settings, until there were enough kills. Then the same study runs on one machine, undisturbed. Exit code 1 if an
experiment is missing, a pretraining was done twice, or the pages differ.

    python benchmarks/cluster.py --simulate

Experiments that sleep, 1 to 4 workers, up to 1,000: what the engine itself costs.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from stages.settings import Settings
from studies import runner, worker
from studies.worker import Base, Ended

ROOT = Path(__file__).resolve().parent.parent
STUDY = [sys.executable, "-m", "studies", "studies/digits.yaml"]
SETTINGS = "pretrain.batch_size={}"  # of a round
WAIT = (10, 40)  # seconds between kills
DASK = [sys.executable, "-m"]


def run(*command: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Cluster:
    """A folder with an SSH server, the remotes, the user's clone, the scheduler and the machines."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.key, self.ssh_port, self.dask_port = folder / "key", free_port(), free_port()
        for key in (self.key, folder / "host"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key), folder=folder)
        Path("/run/sshd").mkdir(exist_ok=True)
        options = {"Port": self.ssh_port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "PidFile": "none",
                   "AuthorizedKeysFile": f"{self.key}.pub", "StrictModes": "no", "UsePAM": "no",
                   "Subsystem": "sftp internal-sftp"}  # fmt: skip
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"  # wants its absolute path
        self.sshd = subprocess.Popen([sshd, "-D", "-f", str(folder / "sshd_config")])
        server = f"ssh://{psutil.Process().username()}@127.0.0.1:{self.ssh_port}"
        self.user = folder / "user"
        run("git", "clone", "--quiet", "--bare", str(ROOT), str(folder / "origin.git"), folder=folder)
        run("git", "clone", "--quiet", str(folder / "origin.git"), str(self.user), folder=folder)
        (self.user / ".dvc/config").write_text(
            f"[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n"
            f"    url = {server}{folder}/store\n    keyfile = {self.key}\n"
        )
        for command in ("config user.name A", "config user.email a@example.org", "add .dvc/config", "commit -qm remote",
                        "push --quiet", f"remote set-url origin {server}{folder}/origin.git"):  # fmt: skip
            run("git", *command.split(), folder=self.user)
        self.commit = run("git", "rev-parse", "HEAD", folder=self.user).strip()

    def environment(self, home: Path) -> dict[str, str]:
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        ssh = f"ssh -i {self.key} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return os.environ | {
            "HOME": str(home), "XDG_CACHE_HOME": f"{home}/cache", "DVC_SITE_CACHE_DIR": f"{home}/site",
            "TMPDIR": f"{home}/tmp", "GIT_SSH_COMMAND": ssh, "DVC_NO_ANALYTICS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def start(self, name: str, command: list[str], folder: Path) -> subprocess.Popen:
        """Start a command in a process group of its own; what it prints is added to NAME.log."""
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                command, cwd=folder, env=self.environment(self.folder / name), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def scheduler(self) -> subprocess.Popen:
        command = [*DASK, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.dask_port)]
        return self.start("scheduler", [*command, "--no-dashboard"], self.folder)

    def machine(self, name: str) -> subprocess.Popen:
        """As docs/studies.md says: the worker is started again whenever it ends, as it does with its scheduler."""
        worker = [*DASK, "distributed.cli.dask_worker", f"tcp://127.0.0.1:{self.dask_port}", "--nthreads", "1"]
        again = 'while :; do "$@"; sleep 1; done'
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return self.start(name, ["bash", "-c", again, "-", *worker, "--no-dashboard", "--local-directory", "."], folder)

    def coordinator(self, setting: str) -> subprocess.Popen:
        address = f"tcp://127.0.0.1:{self.dask_port}"
        return self.start("coordinator", [*STUDY, "-S", setting, "--scheduler", address, "--retry"], self.user)


def end(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for part in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                part.kill()
    process.wait()


def workers_of(machine: subprocess.Popen) -> list[psutil.Process]:
    """Dask's workers that are running an experiment."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(machine.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "runpy.run_module('dvc'" in " ".join(process.cmdline()) and process.parent():
                    found.append(process.parent())
    return found


def round_of_kills(cluster: Cluster, setting: str, chance: random.Random, kills: Counter, most: int) -> None:
    """Run the study to its end, killing parts of the cluster."""
    scheduler = cluster.scheduler()
    machines = {name: cluster.machine(name) for name in ("machine1", "machine2")}
    coordinator = cluster.coordinator(setting)
    late = time.monotonic() + 20
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                if coordinator.wait(timeout=chance.uniform(*WAIT)) == 0:
                    return
                coordinator = cluster.coordinator(setting)  # it gave up, such as for want of a scheduler
                continue
            if kills.total() >= most:
                continue
            if "machine3" not in machines and time.monotonic() > late:
                machines["machine3"] = cluster.machine("machine3")
            kind = chance.choices(["worker", "machine", "coordinator", "scheduler"], [5, 2, 3, 1])[0]
            if kind == "worker":
                running = [worker for machine in machines.values() for worker in workers_of(machine)]
                if not running:
                    continue
                chance.choice(running).kill()
            elif kind == "machine":
                name = chance.choice(list(machines))
                end(machines[name])
                machines[name] = cluster.machine(name)
            elif kind == "coordinator":
                end(coordinator)
                coordinator = cluster.coordinator(setting)
            else:
                end(scheduler)
                scheduler = cluster.scheduler()
            kills[kind] += 1
            print(f"killed: {kind}; {dict(kills)}", flush=True)
    finally:
        for process in (coordinator, *machines.values(), scheduler):
            end(process)


def trained(cluster: Cluster, stage: str) -> tuple[int, int]:
    """How many different trainings of a stage ended on any machine, and how many of these once more.

    DVC's run caches, the machines' and the remote's, have a folder for each training, in it a file each time it ended.
    """
    runs = [*cluster.folder.glob("machine*/cache/*/studies/runs"), cluster.folder / "store/runs"]
    files = {path.relative_to(folder): path for folder in runs for path in folder.rglob("*") if path.is_file()}
    ended = [path for path, file in files.items() if re.search(rf"stages\.{stage}\b", file.read_text())]
    different = {path.parent for path in ended}
    return len(different), len(ended) - len(different)


def undisturbed(cluster: Cluster, setting: str) -> bytes:
    """The page that one machine writes."""
    alone = cluster.folder / "alone"
    if not alone.exists():
        run("git", "clone", "--quiet", str(cluster.folder / "origin.git"), str(alone), folder=cluster.folder)
    environment = cluster.environment(cluster.folder / "home of alone") | {
        f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    run(*STUDY, "-S", setting, folder=alone, environment=environment)
    return (alone / "reports/study.md").read_bytes()


def kill_at_random(kills_wanted: int, seed: int) -> bool:
    """Whether all was as it must be."""
    chance, kills, good, number = random.Random(seed), Counter(), True, 0
    plan = yaml.safe_load((ROOT / "studies/digits.yaml").read_text())
    experiments = len(plan["seeds"]) * len(plan["runs"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            while kills.total() < kills_wanted:
                number += 1
                setting = SETTINGS.format(60 + number)
                round_of_kills(cluster, setting, chance, kills, kills_wanted)
                origin = cluster.folder / "origin.git"
                there = len(run("git", "for-each-ref", f"refs/exps/{cluster.commit[:2]}", folder=origin).splitlines())
                same = (cluster.user / "reports/study.md").read_bytes() == undisturbed(cluster, setting)
                pretrained, again = trained(cluster, "pretrain")
                finetuned, finetuned_again = trained(cluster, "finetune")
                print(
                    f"round {number}: kills so far {kills.total()} {dict(kills)}; experiments there: {there} of "
                    f"{experiments}; pretrainings so far: {pretrained} of {number * experiments}, again: {again}; "
                    f"fine-tunings: {finetuned} of {number * 2 * experiments}, again: {finetuned_again}; "
                    f"page: {'the same bytes' if same else 'DIFFERS'}",
                    flush=True,
                )
                whole = (there, pretrained, finetuned) == (experiments, number * experiments, 2 * number * experiments)
                good &= same and whole and not again
        finally:
            cluster.sshd.send_signal(signal.SIGTERM)
    return good


def sleep_instead(base: Base, name: str, overrides: list[str], leads: bool) -> Ended:
    """In place of an experiment."""
    time.sleep(float(base.git))
    return Ended("done", "")


def simulate() -> None:
    """Print what experiments that sleep take with 1, 2 and 4 workers, and what the engine adds to each."""
    settings = Settings().by_key()
    os.chdir(ROOT)
    worker.run, runner.experiments = sleep_instead, lambda base, wanted: {}
    print("workers  experiments  asleep, s  took, s  speed-up  engine per experiment, ms")
    for count, asleep in ((96, 1.0), (1_000, 0.1)):
        wanted = {f"simulated_{i}": settings | {"seed": i} for i in range(count)}
        for workers in (1, 2, 4):
            with runner.cluster({}, workers) as client:
                study = runner.Study(client, Base(str(asleep), "", "", "", ""), wanted, retry=True)
                study._show = lambda: None
                start = time.monotonic()
                study.run()
                took = time.monotonic() - start
            cost = (took - count * asleep / workers) / count * 1000
            print(
                f"{workers:7} {count:12} {asleep:10} {took:8.1f} {count * asleep / took:9.2f} {cost:26.1f}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args()
    if options.simulate:
        return simulate()
    sys.exit(not kill_at_random(options.kills, options.seed))


if __name__ == "__main__":
    main()
