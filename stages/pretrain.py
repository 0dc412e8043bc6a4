"""Train the network on the source classes: ``python -m stages.pretrain``."""

from pathlib import Path
from typing import ClassVar

from stages import download, settings
from stages.shared.errors import UserError
from stages.shared.files import refuse_untracked
from stages.shared.halves import read_half
from stages.shared.program import program
from stages.training import loop, network, record

STAGE = "pretrain"
EXPECTED = "a file of weights (.keras, .h5), a pointer (.yaml), imagenet.yaml or random.yaml: model.weights"


class Weights(download.Pointer):
    """A backbone's weights."""

    example: ClassVar = "docs/settings.md"
    keras_folder: ClassVar = "models"
    without: ClassVar = "`dvc exp run -S model.weights=data/raw/random.yaml` starts from random weights."


def find_weights(path: Path) -> Path | str:
    """The file with a backbone's weights, downloaded if `path` is a pointer to it, or `random` or `imagenet`.

    Raises `UserError` with what was wrong and what was expected.
    """
    if path.suffix in (".yaml", ".yml"):
        said = settings.read_yaml(path, EXPECTED)
        named = said.get("weights") if isinstance(said, dict) else None
        return named if named in ("random", "imagenet") else download.fetch(path, Weights, EXPECTED)[1]
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {EXPECTED}")
    refuse_untracked(path)
    return path


@program
def main() -> None:
    """Build the network, train it, and write what came out."""
    params = settings.load()
    source = read_half("source")
    weights = find_weights(Path(params.model.weights))
    threads = loop.set_up(params)
    with loop.on_devices(params.devices):
        model = network.build(source.train.x.shape[1:], len(source.class_names), params.model, source.train.x, weights)
        print(network.weight(model))
        history, seconds, checkpoint = loop.fit(model, source, params.pretrain, STAGE, params)
    record.write(STAGE, model, source, history, seconds, threads)
    checkpoint.remove()


if __name__ == "__main__":
    main()
