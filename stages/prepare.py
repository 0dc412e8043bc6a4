"""Split a dataset into the source task's images and the target task's: ``python -m stages.prepare``.

With ``--fetch`` it only downloads the dataset if it is missing: exit code 3 if that fails.
"""

import sys

import pandas as pd

from stages import download, settings
from stages.images import loading
from stages.images.split import split
from stages.shared.program import program
from stages.shared.tasks import SPLITS, Task, write_task

MAX_ROWS = 60  # of a table on the terminal


def count_classes(task: Task) -> pd.DataFrame:
    """Count the images by class and split."""
    counts = {name: pd.Series(getattr(task, name).y).value_counts() for name in SPLITS}
    table = pd.DataFrame(counts, index=range(len(task.class_names))).fillna(0).astype(int)
    return table.set_axis(task.class_names)


@program
def main() -> None:
    """Read the datasets, split them, save the tasks and print their sizes."""
    params = settings.load()
    loading.check_settings(params.data)
    if sys.argv[1:] == ["--fetch"]:
        try:
            for path in dict.fromkeys(loading.dataset_paths(params.data)):
                loading.find(path)
        except download.DownloadError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(3)
        return
    for side, task in split(*loading.load_datasets(params.data), params.data, params.seed).items():
        write_task(side, task)
        print(f"\n{side}: {task.dataset}, images {'x'.join(map(str, task.train.x.shape[1:]))}")
        for note in (*task.warnings, *task.notes):
            print(f"- {note}")
        print(count_classes(task).to_string(max_rows=MAX_ROWS))


if __name__ == "__main__":
    main()
