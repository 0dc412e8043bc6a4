"""Make ``digits.npz`` from scikit-learn's digits: ``python data/raw/make_digits.py`` (needs scikit-learn).

1,797 images of handwritten digits, 8x8 pixels of 17 greys: Alpaydin and Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; here the 1,797 of the test part,
as scikit-learn ships them. Changed: repeated to 32x32x3, greys scaled to 0-255, every fifth image of a class kept for
the test.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    """Write the file beside this one."""
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    x = np.repeat(np.repeat(np.repeat(grey[..., None], 4, axis=1), 4, axis=2), 3, axis=3)
    y = digits.target.astype(np.uint8)
    rank_in_class = np.array([np.sum(y[:i] == label) for i, label in enumerate(y)])
    test = rank_in_class % 5 == 4
    np.savez_compressed(
        Path(__file__).with_name("digits.npz"),
        x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test], class_names=np.array(NAMES),
    )  # fmt: skip


if __name__ == "__main__":
    main()
