"""Runs in the oracle, called by more_models.py: signatures that OpenVINO once got wrong.

``make(root)`` writes SavedModels below ``root`` and, in ``root/askedN``, TensorFlow's answers
to the Nth inputs of each signature: arrays, or nothing where it refuses.
"""

import more_models
import numpy as np
import tensorflow as tf

PASSED_ON = {"x": lambda x: tf.cast(tf.cast(x, tf.int64), tf.int32)}


def make(root):
    root.mkdir()
    for name, operations, shape, inputs in (
        ("passed_on", PASSED_ON, [None], [np.full(5, n, "i4") for n in range(2)]),
    ):
        module = tf.Module()
        dtype = tf.as_dtype(inputs[0].dtype)
        module.functions = more_models.signatures_of(operations, shape, dtype)
        tf.saved_model.save(module, str(root / name / "1"), signatures=module.functions)
        asked = [{"x": each} for each in inputs]
        for signature in operations:
            answers = more_models.ask(root / name / "1", [signature], asked)
            for number, (_, given, answer) in enumerate(answers):
                more_models.keep(root / f"asked{number}", name, signature, given, answer)
