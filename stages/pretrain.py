"""Train the network on the source classes: ``python -m stages.pretrain``."""

from stages import settings
from stages.shared.halves import read_half
from stages.shared.program import program
from stages.training import loop, network, record

STAGE = "pretrain"


@program
def main() -> None:
    """Build the network, train it, and write what came out."""
    params = settings.load()
    source = read_half("source")
    threads = loop.set_up(params)
    with loop.on_devices(params.devices):
        model = network.build(source.train.x.shape[1:], len(source.class_names), params.model, source.train.x)
        print(network.weight(model))
        history, seconds, checkpoint = loop.fit(model, source, params.pretrain, STAGE)
    record.write(STAGE, model, source, history, seconds, threads)
    checkpoint.remove()


if __name__ == "__main__":
    main()
