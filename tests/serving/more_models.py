"""Runs in the oracle, called by make_models.py: models for one test each, which no server loads.

``make(root)`` writes SavedModels below ``root``, with TensorFlow's answers beside them as
make_models.py does, and what TensorFlow answers to inputs of other ranks in ``root/rankN``:
arrays, or nothing where it refuses.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

tf1 = tf.compat.v1
RANKS = ((), (4,), (2, 4), (2, 1, 4), (2, 3, 1, 4), (2, 1, 3, 1, 4))


def spec(shape, dtype, name):
    return tf.TensorSpec(shape, dtype, name=name)


def ask(path, signatures, inputs):
    """TensorFlow's answers as its C++ session gives them: Python's would check shapes first."""
    answers = []
    with tf1.Session(graph=tf.Graph()) as session:
        meta = tf1.saved_model.loader.load(session, ["serve"], str(path))
        for signature in signatures:
            wanted = meta.signature_def[signature]
            options = config_pb2.CallableOptions(
                feed=[wanted.inputs[key].name for key in inputs[0]],
                fetch=[info.name for info in wanted.outputs.values()],
            )
            call = session._make_callable_from_options(options)
            for given in inputs:
                try:
                    answer = dict(zip(wanted.outputs, call(*given.values()), strict=True))
                except tf.errors.OpError:
                    answer = {}
                answers.append((signature, given, answer))
    return answers


def keep(place, name, signature, inputs, outputs):
    place.mkdir(exist_ok=True)
    np.savez(
        place / f"{name}.{signature}.npz",
        **{f"in_{key}": value for key, value in inputs.items()},
        **{f"out_{key}": value for key, value in outputs.items()},
    )


ROW = np.array([0.5, -1.0, 2.0, 3.0], "f4")

ELEMENTWISE = {
    "Abs": tf.abs,
    "Acos": lambda x: tf.acos(x / 9),
    "Acosh": lambda x: tf.acosh(tf.abs(x) + 1),
    "AddN": lambda x: tf.add_n([x, x, x]),
    "AddV2": lambda x: x + ROW,
    "Add": lambda x: tf.raw_ops.Add(x=x, y=ROW),
    "Asin": lambda x: tf.asin(x / 9),
    "Asinh": tf.asinh,
    "Atan": tf.atan,
    "Atan2": lambda x: tf.atan2(x, ROW),
    "Atanh": lambda x: tf.atanh(x / 9),
    "Cast": lambda x: tf.cast(tf.cast(x, tf.int32), tf.float32),
    "Ceil": tf.math.ceil,
    "Cos": tf.cos,
    "Cosh": tf.cosh,
    "DivNoNan": lambda x: tf.math.divide_no_nan(x, tf.nn.relu(x)),
    "Elu": tf.nn.elu,
    "Equal": lambda x: tf.raw_ops.Equal(x=tf.round(x), y=ROW),
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Expm1": tf.math.expm1,
    "Floor": tf.floor,
    "FloorDiv": lambda x: x // 0.7,
    "FloorMod": lambda x: x % 0.75,
    "Greater": lambda x: x > ROW,
    "GreaterEqual": lambda x: x >= ROW,
    "IdentityN": lambda x: tf.identity_n([x, x])[1],
    "LeakyRelu": tf.nn.leaky_relu,
    "Less": lambda x: x < ROW,
    "LessEqual": lambda x: x <= ROW,
    "Log": lambda x: tf.math.log(tf.abs(x) + 0.5),
    "Log1p": lambda x: tf.math.log1p(tf.abs(x)),
    "LogicalAnd": lambda x: tf.logical_and(x > 0, x < ROW),
    "LogicalNot": lambda x: tf.logical_not(x > 0),
    "LogicalOr": lambda x: tf.logical_or(x > 0, x < ROW),
    "Maximum": lambda x: tf.maximum(x, ROW),
    "Minimum": lambda x: tf.minimum(x, ROW),
    "Mul": lambda x: x * ROW,
    "Neg": lambda x: -x,
    "NotEqual": lambda x: tf.raw_ops.NotEqual(x=tf.round(x), y=ROW),
    "Pow": lambda x: tf.pow(tf.abs(x), 1.5),
    "RealDiv": lambda x: x / ROW,
    "Reciprocal": lambda x: tf.math.reciprocal(tf.abs(x) + 0.5),
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "Round": lambda x: tf.round(x * 2),
    "Rsqrt": lambda x: tf.math.rsqrt(tf.abs(x) + 0.5),
    "SelectV2": lambda x: tf.where(x > ROW, x, 0.0),
    "Selu": tf.nn.selu,
    "Sigmoid": tf.sigmoid,
    "Sign": tf.sign,
    "Sin": tf.sin,
    "Sinh": tf.sinh,
    "Softplus": tf.nn.softplus,
    "Softsign": tf.nn.softsign,
    "Sqrt": lambda x: tf.sqrt(tf.abs(x)),
    "Square": tf.square,
    "SquaredDifference": lambda x: tf.math.squared_difference(x, ROW),
    "StopGradient": tf.stop_gradient,
    "Sub": lambda x: x - ROW,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
    "Xdivy": lambda x: tf.math.xdivy(x, tf.abs(x) + 1),
    "Xlogy": lambda x: tf.math.xlogy(x, tf.abs(x) + 1),
}

WEIGHTS = np.arange(12, dtype="f4").reshape(4, 3)

# OpenVINO converts each of these for a rank that TensorFlow refuses, or computes otherwise.
RANK_BOUND = {
    "matmul": lambda x: tf.raw_ops.MatMul(a=x, b=WEIGHTS),
    "batch_matmul": lambda x: tf.raw_ops.BatchMatMulV2(x=x, y=WEIGHTS),
    "bias": lambda x: tf.raw_ops.BiasAdd(value=x, bias=ROW),
    "softmax": tf.nn.softmax,
    "sum": lambda x: tf.reduce_sum(x, -1),
    "slice": lambda x: x[..., tf.newaxis, 1:3],
    "tile": lambda x: tf.tile(x, [2, 1]),
    "gather": lambda x: tf.gather(x, [2, 0], axis=1),
    "select": lambda x: tf.raw_ops.Select(condition=[True, False], x=x, y=-x),
    "cumsum": tf.cumsum,
    "where": lambda x: tf.cast(tf.where(x > 0), tf.float32),
}


class Elementwise(tf.Module):
    """One output for each operation of ELEMENTWISE, for vectors of four by two weights."""

    def __init__(self):
        super().__init__()
        self.variable = tf.Variable(1.0)

    @tf.function(input_signature=[spec([None, 4], tf.float32, "x")])
    def call(self, x):
        return {name: f(x * self.variable) for name, f in ELEMENTWISE.items()}


def other_ranks(root):
    rng = np.random.default_rng(3)
    inputs = [{"x": rng.normal(size=shape).astype("f4") * 2} for shape in RANKS]
    elementwise = Elementwise()
    for name, module, signatures in (
        ("elementwise", elementwise, {"serving_default": elementwise.call}),
        ("rank_bound", tf.Module(), signatures_of(RANK_BOUND, [None, 4], tf.float32)),
        ("trap_rank", tf.Module(), signatures_of(RANK_BOUND, None, tf.float32)),
    ):
        module.functions = signatures
        tf.saved_model.save(module, str(root / name / "1"), signatures=signatures)
        for signature, given, answer in ask(root / name / "1", signatures, inputs):
            keep(root / f"rank{given['x'].ndim}", name, signature, given, answer)


TABLE = np.arange(12, dtype="f4").reshape(4, 3)
PLACES = ([0, 1, 2], [0, 3, 2], [0, 4, 1], [-1, 0, 1], [1, 7, 0], [2**31 - 1, -(2**31), 5])
LENGTHS = (9, 5, 6)

# By one index each, of a fixed table or of an input's elements.
INDEXED = {
    "gather": lambda i: tf.gather(TABLE, i),
    "columns": lambda i: tf.gather(TABLE, i, axis=1),
    "embedding": lambda i: tf.nn.embedding_lookup(TABLE, i),
    "nd": lambda i: tf.gather_nd(TABLE, i[:, tf.newaxis]),
    "pairs": lambda i: tf.gather_nd(TABLE, tf.stack([i, tf.zeros_like(i)], 1)),
    "batches": lambda i: tf.gather(TABLE[:2], tf.stack([i, i]), batch_dims=1),
}
ELEMENT = {
    "sixth": lambda x: x[5],
    "sixth_last": lambda x: x[-6],
    "behind": lambda x: tf.stack([x, x])[..., 5],
    "new": lambda x: x[tf.newaxis, 5],
}
UNGUARDED = {
    "scatter": lambda i: tf.scatter_nd(i[:, tf.newaxis], tf.ones(tf.shape(i)), [4]),
    "update": lambda i: tf.tensor_scatter_nd_update(tf.zeros(4), i[:, tf.newaxis], [1.0, 2.0, 3.0]),
    "unique": lambda i: tf.unique(i)[0],
    "segments": lambda i: tf.math.unsorted_segment_sum([1.0, 2.0, 3.0], i, 4),
}


def signatures_of(operations, shape, dtype):
    """One signature for each operation on one input."""

    def function(operation):
        def call(x):
            answer = operation(x)
            return answer if isinstance(answer, dict) else {"y": answer}

        return tf.function(call, input_signature=[spec(shape, dtype, "x")])

    return {name: function(operation) for name, operation in operations.items()}


def indices(root):
    """Indices within and beyond what they index, and TensorFlow's answers in ``indexN``."""
    places = [{"x": np.array(each, "i4")} for each in PLACES]
    vectors = [{"x": np.arange(length, dtype="f4")} for length in LENGTHS]
    for name, operations, dtype, inputs in (
        ("indexed", INDEXED, tf.int32, places),
        ("element", ELEMENT, tf.float32, vectors),
        ("trap_index", UNGUARDED, tf.int32, []),
    ):
        module = tf.Module()
        module.functions = signatures_of(operations, [None], dtype)
        tf.saved_model.save(module, str(root / name / "1"), signatures=module.functions)
        for signature in operations if inputs else ():
            answers = ask(root / name / "1", [signature], inputs)
            for number, (_, given, answer) in enumerate(answers):
                keep(root / f"index{number}", name, signature, given, answer)


def make(root):
    root.mkdir()
    other_ranks(root)
    indices(root)
