"""What the notebook that this pipeline reproduces used and published."""

CLASSES = [["airplane", "automobile", "bird", "cat", "deer"], ["dog", "frog", "horse", "ship", "truck"]]
COUNTS = {"train": 25_000, "validation": 0, "test": 5_000}  # images of each half

TABLE = {
    "pretrain": {"parameters": 1_633_733, "minutes": 8.37, "train_accuracy": 0.8472, "test_accuracy": 0.7662},
    "finetune_output": {"parameters": 325, "minutes": 4.23, "train_accuracy": 0.57032, "test_accuracy": 0.6060},
    "finetune_fc": {"parameters": 8_581, "minutes": 4.32, "train_accuracy": 0.66004, "test_accuracy": 0.6904},
}
