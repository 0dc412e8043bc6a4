"""The notebook that this pipeline reproduces: its classes, its settings, and the table it published."""

SOURCE_CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
TARGET_CLASSES = ["dog", "frog", "horse", "ship", "truck"]

_TRAINING = {
    "epochs": 10,
    "batch_size": 64,
    "optimizer": "rmsprop",
    "learning_rate": 0.001,
    "schedule": "constant",
}

SETTINGS = {
    "seed": 1,  # the notebook sets none
    "threads": None,
    "devices": 1,
    "precision": "float32",
    "feature_memory": 4_000_000_000,  # where features are kept, not what they are
    "data.path": "data/raw/cifar10.yaml",
    "data.source_classes": [0, 1, 2, 3, 4],
    "data.target_classes": [5, 6, 7, 8, 9],
    "data.validation_fraction": 0.0,
    "data.source_per_class": None,
    "data.target_per_class": None,
    "model.conv_filters": [32, 64],
    "model.dense_units": [128, 64],
    "model.dropout": 0.2,
    "model.rescale": False,
    **{f"pretrain.{key}": value for key, value in _TRAINING.items()},
    **{f"finetune_output.{key}": value for key, value in _TRAINING.items()},
    "finetune_output.trainable": ["output"],
    "finetune_output.head": "keep",
    **{f"finetune_fc.{key}": value for key, value in _TRAINING.items()},
    "finetune_fc.trainable": ["fc2", "output"],
    "finetune_fc.head": "keep",
}

PUBLISHED = {
    "pretrain": {"parameters": 1_633_733, "minutes": 8.37, "train_accuracy": 0.8472, "test_accuracy": 0.7662},
    "finetune_output": {
        "parameters": 325,
        "minutes": 4.23,
        "train_accuracy": 0.57032,
        "test_accuracy": 0.6060,
    },
    "finetune_fc": {"parameters": 8_581, "minutes": 4.32, "train_accuracy": 0.66004, "test_accuracy": 0.6904},
}
