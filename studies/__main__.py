"""Run a study and write its page: ``python -m studies studies/digits.yaml``.

If it is stopped, the same command resumes it. Exit code 1 if experiments failed.
"""

import argparse
import shlex
import sys
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.program import program
from studies import analysis, page, plan, repository, runner


def parse() -> argparse.Namespace:
    """The command's arguments: plan, changes (a list of KEY=VALUE), retry."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="a plan, such as studies/digits.yaml")
    parser.add_argument(
        "-S", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting in every run, as in `dvc exp run`",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="run failed experiments again")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=1, metavar="N", help="experiments at once on this machine")
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    where.add_argument("--scheduler-file", metavar="FILE", help="the same, as `dask scheduler` writes it")
    return parser.parse_args()


@program
def main() -> None:
    """Run what the plan asks for and has not been run yet, then write the page."""
    options = parse()
    study = plan.load(options.plan, options.changes)
    wanted = plan.experiments(study, options.plan.stem)
    scheduler = {"address": options.scheduler, "scheduler_file": options.scheduler_file}
    scheduler = {key: value for key, value in scheduler.items() if value}
    base = repository.base(several_machines=bool(scheduler))
    try:
        with runner.cluster(scheduler, options.workers) as client:
            done, failed = runner.Study(client, base, wanted, options.retry).run()
    except KeyboardInterrupt:
        print("\nThe same command resumes the study." + " Workers end what they have begun." * bool(scheduler))
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
