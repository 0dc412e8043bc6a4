"""Run a study and write its page: ``python -m studies studies/mnist.yaml``.

After an interruption, the same command resumes the study. The exit code is 1 if an experiment failed.
"""

import argparse
import shlex
import sys
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.program import program
from studies import analysis, cluster, experiments, page, plan, repository, runner


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="the plan to run, such as studies/mnist.yaml")
    parser.add_argument(
        "-S", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting in every run, as in `dvc exp run`",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="run failed experiments again")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=1, metavar="N", help="run N experiments at once on this machine")
    where.add_argument(
        "--scheduler", dest="address", metavar="ADDRESS", help="use this Dask cluster, such as tcp://host:8786"
    )
    where.add_argument("--scheduler-file", metavar="FILE", help="use the Dask cluster whose scheduler wrote this file")
    return parser.parse_args()


@program
def main() -> None:
    """Run the missing experiments of a plan, then write the page."""
    options = parse_arguments()
    study = plan.load(options.plan, options.changes)
    if options.workers < 1:
        raise UserError(f"--workers: was {options.workers}, expected 1 or more")
    wanted = experiments.expand(study, options.plan.stem)
    scheduler = {key: value for key in ("address", "scheduler_file") if (value := vars(options)[key])}
    base = repository.prepare_base(wanted, remote_workers=bool(scheduler))
    try:
        with cluster.connect(scheduler, options.workers) as client:
            done, failed = runner.Study(client, base, wanted, options.retry).run()
    except KeyboardInterrupt:
        print("\nThe same command resumes the study." + " Workers finish running experiments." * bool(scheduler))
        raise
    if not done:
        raise UserError(f"{options.plan}: no experiment succeeded: {'; '.join(f'{n}: {r}' for n, r in failed.items())}")
    given = [part for change in options.changes for part in ("-S", change)]
    command = shlex.join(["python", "-m", "studies", options.plan.as_posix(), *given])
    print(f"see {page.write(study, command, analysis.results(study, options.plan.stem, done), failed)}")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        sys.exit("--retry runs them again")


if __name__ == "__main__":
    main()
