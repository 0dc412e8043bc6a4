"""Time Keras's transfer-learning guide and the pipeline: ``python benchmarks/keras_guide.py DATA.npz BASE.keras``.

A round trains one model twice, on the same pictures: by the guide's code (`guide.py`), and by `dvc repro` in a fresh
clone of the last commit. First the output layer on the frozen base, then all layers but batch normalisation at a
learning rate of 1e-5; `--as-written` leaves the guide's code as it is, which trains that, too. The pictures are the
first of DATA's last five classes, as PNG files; each side enlarges them in its own way, and both evaluate on the test
pictures after every epoch. Nothing else should run meanwhile.

Seconds are those of whole processes. The guide's: one start of TensorFlow, reading the pictures, training, evaluating
and saving. The pipeline's: two starts of DVC and three of TensorFlow, hashing, `prepare`, `pretrain` (no epochs, but
evaluated), training without controls, evaluating, saving and Grad-CAM. "Training alone" is ``fit``, where the guide
reads the pictures, and the pipeline's ``train_seconds``, with the computing of features. Memory is the peak resident
set of the largest process, which includes mapped files.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from speed import DVC, ROOT, Round, clone_with, provenance, ratios

GUIDE = "Keras's guide"
STAGES = {"frozen": "finetune_output", "unfrozen": "finetune_fc"}
SETTINGS = {
    "data.source_classes": "all", "data.target_classes": "all", "model.backbone": "file", "model.dense_units": [],
    "pretrain.epochs": 0, "finetune_output.optimizer": "adam", "finetune_fc.optimizer": "adam",
    "finetune_fc.start": "models/finetune_output.keras", "finetune_fc.trainable": ["backbone", "output"],
    "finetune_fc.learning_rate": 1e-5,
}  # fmt: skip


def write_pictures(data: Path, folder: Path, counts: dict[str, int]) -> None:
    """Write the first pictures of the last five classes, so many of each, by split."""
    with np.load(data) as arrays:
        for split, count in counts.items():
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].ravel()
            for label in np.unique(y)[-5:]:
                (folder / f"{split}/class {label}").mkdir(parents=True)
                for row in np.flatnonzero(y == label)[:count]:
                    Image.fromarray(x[row]).save(folder / f"{split}/class {label}/{row}.png")


def run_round(seed: int, pictures: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train both models; returns the measurements of the pipeline and, under names that begin so, of the guide."""
    one, base = Round(seed, {}), str(options.base.resolve())
    settings = SETTINGS | {"seed": seed, "data.path": str(pictures), "data.target_path": str(pictures)}
    settings |= {"data.image_size": options.size, "model.weights": base}
    settings |= {f"{stage}.epochs": epochs for stage, epochs in zip(STAGES.values(), options.epochs, strict=True)}
    code = [sys.executable, str(ROOT / "benchmarks/guide.py"), str(pictures), base, "--size", str(options.size)]
    code += ["--epochs", *map(str, options.epochs), "--seed", str(seed), *["--as-written"] * options.as_written]
    guide = json.loads(one.run(GUIDE, code, folder))
    clone = clone_with(settings, folder / "clone")
    for part, stage in STAGES.items():
        one.run(f"{part} base, s", [*DVC, "repro", stage], clone)
        for name, file in (("train_seconds", "timing/{}.json"), ("test_accuracy", "{}/record.json")):
            label = f"{part} base, {'training alone, s' if name == 'train_seconds' else 'test accuracy'}"
            one.seconds[label] = json.loads((clone / "reports" / file.format(stage)).read_text())[name]
            one.seconds[f"{GUIDE}: {label}"] = guide[part][name]
        one.seconds[f"{GUIDE}: {part} base, s"] = guide[part]["seconds"]
    one.seconds["both, s"] = sum(one.seconds[f"{part} base, s"] for part in STAGES)
    one.seconds[f"{GUIDE}: peak memory, GB"] = one.memory.pop(GUIDE)
    return one.seconds | {"peak memory, GB": max(one.memory.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, nargs=2, default=(500, 200), help="of a class, for training and test")
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 2), help="with the base frozen, and then unfrozen")
    parser.add_argument("--size", type=int, default=96, help="the side, in pixels, that they are enlarged to")
    parser.add_argument("--as-written", action="store_true", help="the guide's code trains batch normalisation, too")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        write_pictures(options.data, Path(name) / "photos", dict(zip(("train", "test"), options.pictures, strict=True)))
        for seed in range(1, options.rounds + 1):
            (folder := Path(name) / str(seed)).mkdir()
            rounds.append(run_round(seed, Path(name) / "photos", folder, options))
    print(f"Rounds: {len(rounds)}; {', '.join(provenance().values())}\n")
    table = ratios(pd.DataFrame(rounds), GUIDE).rename(columns={"seconds": "pipeline"})
    print(table.to_markdown(floatfmt=("", ".4g", ".4g", ".3f", ".3f", ".3f")))


if __name__ == "__main__":
    main()
