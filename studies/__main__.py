"""Run a study and write its page: ``python -m studies studies/digits.yaml``.

Stopped at any point, the same command goes on where it was. Exit code 1 when experiments failed.
"""

import argparse
import shlex
import sys
from pathlib import Path

from stages.settings import UserError, stop_on_user_error
from studies import analysis, page, plan, queue


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="a plan, such as studies/digits.yaml")
    parser.add_argument(
        "-S", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of every run in place of the plan's, as in `dvc exp run`",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="run experiments again that failed")
    return parser.parse_args()


@stop_on_user_error
def main() -> None:
    options = parse()
    study = plan.load(options.plan, options.changes)
    wanted = plan.experiments(study, options.plan.stem)
    try:
        failed = queue.run(wanted, options.retry)
    except KeyboardInterrupt:
        print(
            "\nThe queue goes on without this command; `dvc queue stop --kill` ends it. The same command goes on later."
        )
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
