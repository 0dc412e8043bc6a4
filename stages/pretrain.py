"""Train the network on the source task: ``python -m stages.pretrain``."""

from pathlib import Path

from stages import settings
from stages.shared.program import program
from stages.shared.tasks import read_task
from stages.training.evaluate import evaluate_and_save
from stages.training.fit import fit
from stages.training.model import build_model
from stages.training.runtime import configure
from stages.training.weights import find_weights


@program
def main() -> None:
    """Build the network, train it, evaluate it and save its outputs."""
    params = settings.load()
    task = read_task("source")
    weights = find_weights(Path(params.model.weights))
    configure(params)
    model = build_model(task.train.x.shape[1:], len(task.class_names), params.model, task.train.x, weights)
    count = model.count_params()
    print(f"network: {count:,} weights, {4 * count / 1e6:,.1f} MB a model")
    history = fit(model, task, params.pretrain, "pretrain", params)
    evaluate_and_save("pretrain", model, task, history)


if __name__ == "__main__":
    main()
