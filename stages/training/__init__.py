"""Network, features, batches, the training loop, and the record of a training.

Importing this imports Keras, on TensorFlow whatever a user's keras.json says.
"""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow says on standard error how it was built, whatever log level is set (tensorflow#100442).
with tempfile.TemporaryFile() as _unread:
    _standard_error = os.dup(2)
    os.dup2(_unread.fileno(), 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(_standard_error, 2)
        os.close(_standard_error)
