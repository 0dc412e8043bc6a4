"""Run a study and write its page, results/NAME/README.md: ``python -m studies studies/NAME.yaml``.

After an interruption, the same command resumes the study. The exit code is 1 if an experiment failed.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.program import program
from studies import analysis, cluster, experiments, page, plan, repository, runner


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="the plan to run, such as studies/mnist.yaml")
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="in every run")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="N", help="start none after N minutes")
    parser.add_argument("--retry", action="store_true", help="run failed experiments again")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=1, metavar="N", help="run N experiments at once on this machine")
    where.add_argument("--scheduler", dest="address", metavar="ADDRESS", help="use this Dask cluster: tcp://host:8786")
    where.add_argument("--scheduler-file", metavar="FILE", help="use the Dask cluster whose scheduler wrote this file")
    return parser.parse_args()


@program
def main() -> None:
    """Run the missing experiments of a plan, then write the page."""
    options = parse_arguments()
    deadline, study = time.monotonic() + 60 * options.minutes, options.plan.stem
    asked = shown = plan.load(options.plan, options.changes)
    if options.workers < 1:
        raise UserError(f"--workers: was {options.workers}, expected 1 or more")
    wanted = experiments.expand(asked, study)
    scheduler = {key: value for key in ("address", "scheduler_file") if (value := vars(options)[key])}
    base = repository.prepare_base(wanted, remote_workers=bool(scheduler))
    first = {n: s for n, s in wanted.items() if (s["data.target_per_class"], s["seed"]) == (None, asked.seeds[0])}
    failed, every = dict[str, str](), None
    try:
        with cluster.connect(scheduler, options.workers) as client:
            if plan.ALL in asked.images_per_class:  # the first runs show how many images these are
                done, failed = runner.Study(client, base, first, options.retry, deadline).run()
                every, smallest = repository.count_training_images(done)
                shown = asked.with_number(every, smallest)
            sizes = {None, *shown.images_per_class}
            wanted = {n: s for n, s in wanted.items() if s["data.target_per_class"] in sizes}
            rest = {name: settings for name, settings in wanted.items() if name not in failed}
            done, others = runner.Study(client, base, rest, options.retry, deadline).run()
    except KeyboardInterrupt:
        print("\nThe same command resumes the study." + " Workers finish running experiments." * bool(scheduler))
        raise
    failed |= others
    given = [part for change in options.changes for part in ("-S", change)]
    command = shlex.join(["python", "-m", "studies", options.plan.as_posix(), *given])
    left_out = [name for name in wanted if name not in done and name not in failed]
    too_few = sorted(asked.images_per_class.keys() - shown.images_per_class.keys() - {plan.ALL})
    values = {"command": command, "failed": failed, "left_out": left_out, "too_few": too_few}
    print(f"see {page.write(Path('results', study), shown, analysis.results(asked, study, done, every), **values)}")
    if left_out:
        print(f"{len(left_out)} of {len(wanted)} experiments were left out: the same command runs them")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        sys.exit("--retry runs them again")


if __name__ == "__main__":
    main()
