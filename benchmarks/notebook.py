"""The notebook's code as one script, what the pipeline is measured against: ``python benchmarks/notebook.py DATA.npz``.

DATA.npz holds the arrays of ``keras.datasets.cifar10.load_data()``. Written after the notebook's cells, nothing made
faster; the only additions are the options and the last line, the results as JSON.
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
    """The images of classes below 5 and of classes from 5, the latter's labels from 0."""
    with np.load(path) as arrays:
        x_train, y_train = arrays["x_train"], np.squeeze(arrays["y_train"])
        x_test, y_test = arrays["x_test"], np.squeeze(arrays["y_test"])
    low, low_test = y_train < 5, y_test < 5
    return (
        (x_train[low], y_train[low], x_test[low_test], y_test[low_test]),
        (x_train[~low], y_train[~low] - 5, x_test[~low_test], y_test[~low_test] - 5),
    )


def network(input_shape: tuple) -> Sequential:
    """The notebook's cell [4]."""
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
    """The notebook's cells [3] and [7]: compile, fit, evaluate."""
    x_train, y_train, x_test, y_test = data
    y_train, y_test = to_categorical(y_train, CLASSES), to_categorical(y_test, CLASSES)
    model.compile(optimizer=RMSprop(learning_rate=1e-3), loss="categorical_crossentropy", metrics=["accuracy"])
    start = time()
    history = model.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=2, validation_data=(x_test, y_test))
    seconds = time() - start
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    return {
        "train_accuracy": history.history["accuracy"][-1],
        "test_accuracy": accuracy,
        "test_loss": loss,
        "train_seconds": seconds,
    }


def fine_tune(pretrained: Sequential, trainable_layers: list[int], data: tuple, epochs: int) -> dict:
    """The notebook's cells [8] and [9]: copy the network, freeze it but for some layers, train."""
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
    parser.add_argument("--seed", type=int, help="by default none, as in the notebook")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pretrain-only", action="store_true")
    parser.add_argument("--pretrained", help="only fine-tune the last two layers of this .keras file's network")
    options = parser.parse_args()
    epochs = options.epochs
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    source, target = halves(options.data)
    if options.pretrained:
        model = keras.models.load_model(options.pretrained)
        print(json.dumps({"finetune_fc": fine_tune(model, [-3, -1], target, epochs)}))
        return
    model = network(source[0].shape[1:])
    results = {"pretrain": train(model, source, epochs)}
    if not options.pretrain_only:
        results["finetune_output"] = fine_tune(model, [len(model.layers) - 1], target, epochs)
        results["finetune_fc"] = fine_tune(model, [-3, -1], target, epochs)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
