"""Run the notebook's code as one script, for comparison: ``python benchmarks/notebook.py DATA.npz``.

DATA.npz holds the arrays of ``keras.datasets.cifar10.load_data()``. The code follows the notebook's cells and its speed
is left as it was; only the options and the last line, which prints the results as JSON, are new.
"""

import argparse
import json
from time import time

import keras
import numpy as np
from keras.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from keras.models import Sequential, clone_model
from keras.optimizers import RMSprop
from keras.utils import to_categorical

CLASSES = 5


def halves(path: str) -> tuple[tuple, tuple]:
    """Split the images into classes 0 to 4 and classes 5 to 9, with labels from 0 in both."""
    with np.load(path) as arrays:
        x_train, y_train = arrays["x_train"], np.squeeze(arrays["y_train"])
        x_test, y_test = arrays["x_test"], np.squeeze(arrays["y_test"])
    low, low_test = y_train < 5, y_test < 5
    return (
        (x_train[low], y_train[low], x_test[low_test], y_test[low_test]),
        (x_train[~low], y_train[~low] - 5, x_test[~low_test], y_test[~low_test] - 5),
    )


def network(input_shape: tuple) -> Sequential:
    """Build the model of the notebook's cell [4]."""
    model = Sequential()
    model.add(keras.Input(input_shape))
    model.add(Conv2D(32, (3, 3), activation="relu"))
    model.add(Conv2D(64, (3, 3), activation="relu"))
    model.add(MaxPooling2D(pool_size=(2, 2), strides=2))
    model.add(Dropout(0.2))
    model.add(Flatten())
    model.add(Dense(128, activation="relu"))
    model.add(Dropout(0.2))
    model.add(Dense(64, activation="relu"))
    model.add(Dropout(0.2))
    model.add(Dense(CLASSES, activation="softmax"))
    return model


def train(model: Sequential, data: tuple, epochs: int) -> dict:
    """Compile, fit and evaluate a model, as in the notebook's cells [3] and [7]."""
    x_train, y_train, x_test, y_test = data
    y_train, y_test = to_categorical(y_train, CLASSES), to_categorical(y_test, CLASSES)
    model.compile(optimizer=RMSprop(learning_rate=1e-3), loss="categorical_crossentropy", metrics=["accuracy"])
    start = time()
    model.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=2, validation_data=(x_test, y_test))
    seconds = time() - start
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    return {"test_accuracy": accuracy, "test_loss": loss, "train_seconds": seconds}


def fine_tune(pretrained: Sequential, trainable_layers: list[int], data: tuple, epochs: int) -> dict:
    """Copy a model, freeze all but some layers, and train it, as in the notebook's cells [8] and [9]."""
    model = clone_model(pretrained)
    model.set_weights(pretrained.get_weights())
    for layer in model.layers:
        layer.trainable = False
    for i in trainable_layers:
        model.layers[i].trainable = True
    return train(model, data, epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    source, target = halves(options.data)
    model = network(source[0].shape[1:])
    results = {"pretrain": train(model, source, options.epochs)}
    results["finetune_output"] = fine_tune(model, [len(model.layers) - 1], target, options.epochs)
    results["finetune_fc"] = fine_tune(model, [-3, -1], target, options.epochs)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
