"""Run a study and write its page: ``python -m studies studies/digits.yaml``.

If it is stopped, the same command resumes it. Exit code 1 if experiments failed.
"""

import argparse
import shlex
import sys
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.program import program
from studies import analysis, page, plan, queue


def parse() -> argparse.Namespace:
    """The command's arguments: plan, changes (a list of KEY=VALUE), retry."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="a plan, such as studies/digits.yaml")
    parser.add_argument(
        "-S", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting in every run, as in `dvc exp run`",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="run failed experiments again")
    return parser.parse_args()


@program
def main() -> None:
    """Run what the plan asks for and has not been run yet, then write the page."""
    options = parse()
    study = plan.load(options.plan, options.changes)
    wanted = plan.experiments(study, options.plan.stem)
    try:
        failed = queue.run(wanted, options.retry)
    except KeyboardInterrupt:
        print("\nThe queue keeps running; `dvc queue stop --kill` stops it. The same command resumes the study.")
        raise
    done = {name: found for name, found in queue.experiments().items() if name in wanted and name not in failed}
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
