"""Train as Keras's guide to transfer learning does: ``python benchmarks/guide.py PICTURES BASE.keras``.

PICTURES has folders train/CLASS and test/CLASS; BASE makes features or maps of raw 0-255 RGB images. The code follows
keras.io/guides/transfer_learning, without augmentation and with a head of several classes. The guide calls the base
with ``training=False`` to keep batch normalisation in inference mode; Keras 3.15 trains it all the same once the base
is unfrozen (keras#20285), so its layers stay frozen here, unless `--as-written`. Prints the results as JSON; seconds
count from the start of the process, or from the end of the first part.
"""

import argparse
import json
import time

import keras
import psutil
import tensorflow as tf


def train(model: keras.Model, train_ds: tf.data.Dataset, test_ds: tf.data.Dataset, rate: float, epochs: int) -> dict:
    model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    model.fit(train_ds, epochs=epochs, validation_data=test_ds, verbose=2)
    seconds = time.perf_counter() - start
    model.save("guide.keras")
    return {"train_seconds": seconds, "test_accuracy": model.evaluate(test_ds, verbose=0)[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures")
    parser.add_argument("base")
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 2), help="with the base frozen, and then unfrozen")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--as-written", action="store_true")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)

    train_ds, test_ds = (
        keras.utils.image_dataset_from_directory(
            f"{options.pictures}/{split}", image_size=(options.size, options.size), batch_size=64, seed=options.seed
        )
        for split in ("train", "test")
    )
    classes = len(train_ds.class_names)
    train_ds, test_ds = (dataset.prefetch(tf.data.AUTOTUNE).cache() for dataset in (train_ds, test_ds))

    base = keras.models.load_model(options.base, compile=False)
    base.trainable = False
    inputs = keras.Input((options.size, options.size, 3))
    x = base(inputs, training=False)
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))

    results = {"frozen": train(model, train_ds, test_ds, 1e-3, options.epochs[0])}
    frozen_until = time.time()
    base.trainable = True
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and not options.as_written:
            layer.trainable = False
    results["unfrozen"] = train(model, train_ds, test_ds, 1e-5, options.epochs[1])
    results["frozen"]["seconds"] = frozen_until - psutil.Process().create_time()
    results["unfrozen"]["seconds"] = time.time() - frozen_until
    print(json.dumps(results))


if __name__ == "__main__":
    main()
