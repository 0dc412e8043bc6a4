"""Split a dataset into the source classes' images and the target classes': ``python -m stages.prepare``.

With ``--fetch`` it only makes sure that the dataset is there: exit code 3 if it cannot be downloaded.
"""

import sys
from pathlib import Path

import pandas as pd

from stages import download, settings
from stages.images import source
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
    if sys.argv[1:] == ["--fetch"]:
        try:
            for path in (Path(params.data.path), Path(params.data.target_path)):
                if not source.is_same(path):
                    source.find(path)
        except download.DownloadError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(3)
        return
    datasets = source.load_both(params.data, params.seed)
    for side, half in split(*datasets, params.data, params.seed).items():
        write_half(side, half)
        print(f"\n{side}: {half.dataset}, images {'x'.join(map(str, half.train.x.shape[1:]))}")
        for note in half.notes:
            print(f"- {note}")
        print(class_counts(half).to_string(max_rows=MOST_ROWS))


if __name__ == "__main__":
    main()
