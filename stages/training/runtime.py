"""Configure TensorFlow: seed, threads, precision; and describe it for the record."""

import os
import platform
import re
from importlib.metadata import version

import keras
import tensorflow as tf

from stages.settings import Settings
from stages.shared.machine import cpu, keep_freed_memory

# Variables that choose other kernels or precisions, each tried or documented.
CHANGES_BITS = re.compile(
    r"(ONEDNN|DNNL)_\w+|XLA_FLAGS|NVIDIA_TF32_OVERRIDE"
    r"|TF_(XLA_FLAGS|DETERMINISTIC_OPS|\w*(ONEDNN|CUDNN|CUBLAS|FP16|WINOGRAD)\w*)"
)


def configure(params: Settings) -> None:
    """Set the seed, the number of threads and the precision."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = params.threads or cores
    keep_freed_memory()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # a CPU gives the same bits without
    keras.config.set_dtype_policy(params.precision)
    keras.utils.set_random_seed(params.seed)


def describe_environment() -> dict[str, str | int]:
    """Describe the machine, the versions and the variables that the bits of a result depend on."""
    (cpu_name, instruction_set), threads = cpu(), tf.config.threading.get_intra_op_parallelism_threads()
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in ("tensorflow", "keras", "numpy")}
    variables = {name: os.environ[name] for name in sorted(os.environ) if CHANGES_BITS.fullmatch(name)}
    return {"cpu": cpu_name, "instruction_set": instruction_set, "threads": threads, **versions, **variables}
