"""Split a dataset into the source task's images and the target task's: ``python -m stages.prepare``.

With ``--fetch`` it only downloads the dataset if it is missing: exit code 3 if that fails.
"""

import sys

import numpy as np
import pandas as pd

from stages import download, settings
from stages.images import loading
from stages.images.split import split
from stages.shared.program import program
from stages.shared.tasks import SPLITS, write_task


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
        counts = {name: np.bincount(getattr(task, name).y, minlength=len(task.class_names)) for name in SPLITS}
        print(pd.DataFrame(counts, index=task.class_names).to_string(max_rows=60))


if __name__ == "__main__":
    main()
