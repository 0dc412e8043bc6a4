"""Split a dataset into the source classes' images and the target classes': ``python -m stages.prepare``.

With ``--fetch`` it only makes sure that the dataset is there: exit code 3 if it cannot be downloaded.
"""

import sys
from pathlib import Path

import pandas as pd

from stages import settings
from stages.images import pointer, source
from stages.images.split import split
from stages.shared.halves import PARTS, Half, write_half
from stages.shared.program import program

MOST_ROWS = 60  # of a table on the terminal


def class_counts(half: Half) -> pd.DataFrame:
    """The number of images by class and part."""
    counts = {part: pd.Series(getattr(half, part).y).value_counts() for part in PARTS}
    table = pd.DataFrame(counts, index=range(len(half.class_names))).fillna(0).astype(int)
    return table.set_axis(half.class_names)


@program
def main() -> None:
    """Read, split, write, and show what there is."""
    params = settings.load()
    path = Path(params.data.path)
    if sys.argv[1:] == ["--fetch"]:
        try:
            source.find(path)
        except pointer.DownloadError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(3)
        return
    name, dataset = source.load(path)
    print(f"{name}: images {'x'.join(map(str, dataset.x_train.shape[1:]))}")
    for side, half in split(name, dataset, params.data, params.seed).items():
        write_half(side, half)
        print(f"\n{side}\n{class_counts(half).to_string(max_rows=MOST_ROWS)}")


if __name__ == "__main__":
    main()
