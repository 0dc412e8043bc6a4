"""Find the trainings that experiments share, so that each is done once."""

import json
from pathlib import Path

from stages.shared.inputs import stage_reads
from stages.shared.yaml_files import parse_yaml
from studies.plan import FlatSettings


def training_keys(stages: dict, settings: FlatSettings) -> dict[str, str]:
    """Return a key of each training stage: its name and all settings that its result depends on.

    `stages` are those of ``dvc.yaml``. Two experiments share a training if its keys are equal.
    """
    keys = {}
    for stage in (name for name in stages if f"{name}.epochs" in settings):
        upstream = [stages[name] for name in ("prepare", "pretrain", stage)]
        read = {key: value for key, value in settings.items() if any(stage_reads(part, key) for part in upstream)}
        if stage == "pretrain":
            read = {key: value for key, value in read.items() if not key.startswith("data.target_")}
        keys[stage] = f"{stage} {json.dumps(read, sort_keys=True)}"
    return keys


def find_dependencies(experiments: dict[str, FlatSettings]) -> tuple[dict[str, set[str]], set[str]]:
    """Return the experiments that each experiment waits for, and those that are the first with their pretraining."""
    stages = parse_yaml(Path("dvc.yaml").read_text(), aliases=True)["stages"]
    first: dict[str, str] = {}  # experiment by training key
    waits_for, first_pretrainings = {}, set()
    for name, settings in experiments.items():
        trained_by = {stage: first.setdefault(key, name) for stage, key in training_keys(stages, settings).items()}
        waits_for[name] = set(trained_by.values()) - {name}
        first_pretrainings.add(trained_by["pretrain"])
    return waits_for, first_pretrainings
