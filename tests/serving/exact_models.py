"""Runs in the oracle, called by make_models.py: signatures that OpenVINO once got wrong.

``make(root)`` writes SavedModels below ``root`` and, in ``root/askedN``, TensorFlow's answers
to the Nth inputs of each signature: arrays, or nothing where it refuses.
"""

import contextlib

import more_models
import numpy as np
import tensorflow as tf

PASSED_ON = {"x": lambda x: tf.cast(tf.cast(x, tf.int64), tf.int32)}

ROW = np.array([0.5, -1.0, 2.0, 0.25], "f4")
WEIGHTS = np.linspace(-1, 1, 12, dtype="f4").reshape(4, 3)

# Each carries a NaN on as TensorFlow does; all of them in one signature.
KEEPING = {
    "Add": lambda x: x + ROW,
    "Subtract": lambda x: ROW - x,
    "Multiply": lambda x: x * ROW,
    "Divide": lambda x: x / ROW,
    "Negative": lambda x: -x,
    "Abs": tf.abs,
    "MatMul": lambda x: x @ WEIGHTS,
    "ReduceSum": lambda x: tf.reduce_sum(x, 1),
    "ReduceMean": lambda x: tf.reduce_mean(x, 1),
    "SquaredDifference": lambda x: tf.math.squared_difference(x, ROW),
    "IsNaN": tf.math.is_nan,
    "IsInf": tf.math.is_inf,
    "IsFinite": tf.math.is_finite,
    "Reshape": lambda x: tf.reshape(x, [-1, 2]),
    "Transpose": tf.transpose,
    "Concat": lambda x: tf.concat([x, -x], 1),
    "Split": lambda x: tf.split(x, 2, 1)[1],
    "VariadicSplit": lambda x: tf.split(x, [1, 3], 1)[1],
    "StridedSlice": lambda x: x[:, 1:3],
    "Gather": lambda x: tf.gather(x, [2, 0], axis=1),
    "Broadcast": lambda x: tf.broadcast_to(x[:, tf.newaxis], [2, 3, 4]),
    "Tile": lambda x: tf.tile(x, [1, 2]),
    "Pad": lambda x: tf.pad(x, [[0, 0], [1, 1]]),
    "Select": lambda x: tf.where(ROW > 0, x, 0.0),
}
LOSING = {
    "relu": tf.nn.relu,
    "clip": lambda x: tf.clip_by_value(x, -1.0, 1.0),
    "largest": lambda x: tf.reduce_max(x, 1),
    "best": lambda x: tf.math.top_k(x, 2)[0],
    "place": lambda x: tf.argmax(x, 1, tf.int32),
    "exp": tf.exp,
    "greater": lambda x: x > ROW,
    "chosen": lambda x: tf.where(x > ROW, x, 0.0),
    "dense": lambda x: tf.nn.relu(x @ WEIGHTS),
    "log_softmax": tf.nn.log_softmax,
    "whole": lambda x: tf.cast(x, tf.int32),
}


def grows(x):
    """A NaN arises in a loop, and is lost there in the next turn."""
    return tf.while_loop(
        lambda n, _: n < 3, lambda n, y: (n + 1, tf.sqrt(tf.nn.relu(y) - 1.0)), (0, x)
    )[1]


# Numbers below zero lead to a NaN within.
BORN = {
    "log": lambda x: tf.nn.relu(tf.math.log(x)),
    "sqrt": lambda x: tf.maximum(tf.sqrt(x) - 1.0, 0.5),
    "divide": lambda x: (tf.abs(x) - x) / (tf.abs(x) - x) > 0.5,
    "power": lambda x: tf.exp(tf.pow(x, 1.5) @ WEIGHTS),
    "arc": lambda x: tf.nn.relu(tf.acosh(x + 1.0)),
    "infinite": lambda x: tf.nn.relu(tf.exp(-99.0 * x) - tf.exp(-98.0 * x)),
    "mask": lambda x: tf.nn.softmax(tf.math.log(x)),
    "extreme": lambda x: tf.reduce_min(tf.square(tf.math.log(tf.nn.relu(x))), 1),
}
LOOPED = {"grows": grows}


def layer_norm(x):
    mean, variance = tf.nn.moments(x, 1, keepdims=True)
    return tf.nn.relu((x - mean) * tf.math.rsqrt(variance + 1e-3))


# They look as those above and make no NaN of any number that is not enormous.
HARMLESS = {
    "layer_norm": layer_norm,
    "deviation": lambda x: tf.nn.relu(x / (tf.math.reduce_std(x, 1, keepdims=True) + 1e-3)),
    "unit": lambda x: tf.nn.relu(tf.nn.l2_normalize(x, 1)),
    "log1p": lambda x: tf.nn.relu(tf.math.log1p(tf.nn.relu(x))),
    "rms": lambda x: tf.nn.relu(x / tf.sqrt(tf.reduce_mean(x**2, 1, keepdims=True) + 1e-6)),
    "masked": lambda x: tf.nn.softmax(x + np.array([0, -np.inf, 0, 0], "f4")),
}

TABLE = np.arange(4, dtype="f4")


def repeated(step, start):
    """Three turns of a loop over one value."""
    return tf.while_loop(lambda n, _: n < 3, lambda n, y: (n + 1, step(y)), (0, start))[1]


def counted(x):
    """A loop that goes on for as long as an input says."""
    limit = x[0]
    return tf.while_loop(
        lambda n, _: n < limit, lambda n, y: (n + 1, y + tf.gather(TABLE, n)), (0, 0.0)
    )[1]


def read(x):
    return tf.TensorArray(tf.float32, 4).unstack(TABLE).read(x[0]) * 2


def twice(x):
    return tf.map_fn(lambda each: each * 2, x)


def together(first, second):
    """Each of some values with one of others, by one counter for both."""
    return tf.map_fn(lambda each: each[0] * each[1], (first, second), fn_output_signature=tf.int32)


# Indices in a body: OpenVINO read beyond what they index, and ended the process at some.
WITHIN = {
    "followed": lambda x: repeated(lambda y: tf.gather([1, 2, 3, 7], y), x[0]),
    "fixed": lambda x: repeated(lambda y: y + tf.gather(TABLE, x[0]), 0.0),
    "branch": lambda x: tf.cond(x[1] > 0, lambda: tf.gather(TABLE, x), lambda: -TABLE[:3]),
    "mapped": lambda x: tf.map_fn(lambda i: tf.gather(TABLE, i), x, fn_output_signature=tf.float32),
    "nd": lambda x: tf.map_fn(
        lambda i: tf.gather_nd(TABLE, [[i]]), x, fn_output_signature=tf.float32
    ),
    "placed": lambda x: tf.map_fn(
        lambda i: tf.tensor_scatter_nd_update(TABLE, [[i]], [9.0]),
        x,
        fn_output_signature=tf.float32,
    ),
}
COUNTED = {
    "counted": counted,
    "read": read,
    "twice": twice,
    "shorter": lambda x: together(x[1:], x),
    "longer": lambda x: together(x, x[1:]),
    "constant": lambda x: tf.gather(x, [1, 3]),
}
PLACES = [np.array(each, "i4") for each in ([0, 1, 2, 3], [5, 1, 0], [-1, 1, 0, 0], [3], [3, 2])]

MATRIX = np.linspace(-2, 2, 12, dtype="f4").reshape(4, 3)


def rest(x):
    """All but the first of an axis of unknown length: nothing of an axis of one."""
    return x[:, 1:]


def large(x):
    """The rows that begin with a large number: none of most."""
    return tf.boolean_mask(x, x[:, :, 0] > 100.0)


# Of something empty OpenVINO makes what TensorFlow makes; all of them in one signature.
RIGHT = {
    "doubled": lambda x: rest(x) * 2.0,
    "above": lambda x: rest(x) > 0.0,
    "tanh": lambda x: tf.tanh(rest(x)),
    "chosen": lambda x: tf.where(rest(x) > 0.0, rest(x), -1.0),
    "sum": lambda x: tf.reduce_sum(rest(x), 1),
    "product": lambda x: tf.reduce_prod(rest(x), 1),
    "any": lambda x: tf.reduce_any(rest(x) > 0.0, 1),
    "every": lambda x: tf.reduce_all(rest(x) > 0.0, 1),
    "joined": lambda x: tf.concat([rest(x), x], 1),
    "padded": lambda x: tf.pad(rest(x), [[0, 0], [1, 2], [0, 0]], constant_values=5.0),
    "tiled": lambda x: tf.tile(rest(x), [1, 2, 1]),
    "softmax": lambda x: tf.nn.softmax(rest(x)),
    "summed": lambda x: tf.cumsum(rest(x), 1),
    "turned": lambda x: tf.transpose(rest(x), [1, 0, 2]),
    "flat": lambda x: tf.reshape(rest(x), [-1]),
    "size": lambda x: tf.shape(rest(x)),
    "part": lambda x: tf.split(rest(x), 2, 2)[0],
    "columns": lambda x: tf.gather(rest(x), [0, 2], axis=2),
    "where": lambda x: tf.where(large(x) > 0.0),
    "mask": large,
    "total": lambda x: tf.reduce_sum(large(x), 0),
    "with_first": lambda x: tf.concat([large(x), x[0]], 0),
    "product_of_rows": lambda x: large(x) @ MATRIX,
}
EMPTIED = {
    "largest": lambda x: tf.reduce_max(rest(x), 1),
    "mean": lambda x: tf.reduce_mean(rest(x), 1),
    "place": lambda x: tf.argmax(rest(x), 1, tf.int32),
    "top": lambda x: tf.math.top_k(tf.transpose(rest(x), [0, 2, 1]), 1)[0],
    "first": lambda x: tf.gather(rest(x), [0], axis=1),
    "attention": lambda x: tf.nn.softmax(tf.matmul(x, rest(x), transpose_b=True)) @ rest(x),
    "larger": lambda x: tf.image.resize(rest(x)[..., tf.newaxis], [3, 4]),
    "loop": lambda x: tf.map_fn(lambda row: row * 2.0, rest(x)[0]),
    "largest_of_large": lambda x: tf.reduce_max(large(x), 0),
    "mean_of_large": lambda x: tf.reduce_mean(large(x), 0),
    "cut": lambda x: tf.reduce_max(x[0, : tf.cast(x[0, 0, 0], tf.int32) - 200], 0),
}
SHORTER = {
    "branch": lambda x: tf.cond(x[0, 0, 0] > 0, lambda: tf.reduce_max(x[:, 1:], 1), lambda: x[:, 0])
}
NARROW = {
    "uint8": lambda x: tf.cast(x, tf.uint8),
    "int8": lambda x: tf.cast(x, tf.int8),
    "uint16": lambda x: tf.cast(x, tf.uint16),
    "int16": lambda x: tf.cast(x, tf.int16),
}
# OpenVINO computes float16 as float32, and rounds at the end alone.
ROUNDED = {
    "once": lambda x: tf.cast(tf.nn.relu(x + 0.1), tf.float16),
    "largest": lambda x: tf.reduce_max(tf.cast(x, tf.float16), 1),
}
UNROUNDED = {
    "back": lambda x: tf.cast(tf.cast(x, tf.float16), tf.float32),
    "twice": lambda x: tf.cast(x, tf.float16) * 3 - 1,
    "compared": lambda x: tf.cast(x, tf.float16) > tf.constant(ROW, tf.float16),
    "product": lambda x: tf.cast(x, tf.float16) @ tf.cast(WEIGHTS, tf.float16),
}
SIZES = [
    np.linspace(199, 299, 24, dtype="f4").reshape(2, 3, 4).round() + 2,
    np.full((2, 1, 4), 1.5, "f4"),
    np.full((1, 1, 4), -2, "f4"),
    np.linspace(201, 299, 40, dtype="f4").reshape(2, 5, 4).round(),
]
OTHERS = {
    "added": lambda x: tf.scatter_nd([[1], [1], [3]], x, [4]),
    "inverse": lambda x: tf.linalg.inv(tf.linalg.tensordot(x, x, 0)[:2, :2]),
    "product": lambda x: tf.tensordot(x, x, 1),
}
KERNEL = np.sin(np.arange(36, dtype="f4")).reshape(3, 3, 1, 4)
# OpenVINO moved a transpose past each of them and left its axis where it was.
ALONG = {
    "axis": lambda x: tf.nn.log_softmax(x, 1),
    "turned": lambda x: tf.transpose(tf.nn.log_softmax(x)),
    "channels": lambda x: tf.nn.log_softmax(tf.nn.conv2d(x[..., tf.newaxis], KERNEL, 1, "SAME")),
    "loop": lambda x: repeated(lambda y: 2.0 * tf.nn.log_softmax(y, 1), x),
    "masked": lambda x: tf.nn.log_softmax(x + np.array([0, -1e9, 0, 0], "f4"), 2),
}
TAILS = {"softplus": lambda x: 64.0 * tf.nn.softplus(x)}
FAR = [np.arange(-40, 40, 0.5, dtype="f4").reshape(-1, 4)]
UNSORTED = {"best": lambda x: tf.math.top_k(x, 3, sorted=False)[0]}
# OpenVINO's Tile mixes up what it repeats; its StridedSlice takes the one of another axis.
MIXED = {
    "tiled": lambda x: tf.tile(x[:, :1, tf.newaxis], [1, 3, 1, 2]),
    "tiled_5": lambda x: tf.tile(x[:, tf.newaxis, :, tf.newaxis], [1, 1, 2, 2, 2]),
    "tiled_by_size": lambda x: tf.tile(x[:, :1], [tf.shape(x)[0], 3, 2]),
    "tiled_by_sizes": lambda x: tf.tile(x, tf.shape(x)) * 1.5,
    "added": lambda x: x[:, tf.newaxis, 0:, 2],
    "added_last": lambda x: x[:, ::2, 1, tf.newaxis],
    "added_between": lambda x: x[:, -1, tf.newaxis, 1:] * 2.0,
    "added_twice": lambda x: x[tf.newaxis, :, 0, ..., tf.newaxis],
    "added_in_rest": lambda x: x[..., tf.newaxis, 1],
}


def either(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.5, lambda: x)


BEHIND_IF = {
    "pooled": lambda x: tf.nn.avg_pool2d(either(x)[..., tf.newaxis], 2, 2, "SAME"),
    "scaled": lambda x: tf.nn.max_pool2d(1.5 * either(x)[..., tf.newaxis], 2, 2, "SAME"),
    "convolved": lambda x: tf.nn.conv2d(either(x[..., tf.newaxis]), KERNEL, 1, "SAME"),
}
CASTS = [
    np.array(each, "f4")
    for each in (
        [0, 1, 127.9, 5],
        [-0.9, 3, 4, 5],
        [255.9, 128, 0, 1],
        [-1, -128.9, 0, 1],
        [70000.0],
    )
]

PLAIN = np.array([[0.5, 1.5, 2.0, 3.0], [4.0, 0.125, 1.0, 7.0]], "f4")


def with_one(value):
    array = PLAIN.copy()
    array[1, 2] = value
    return array


def together_of(operations):
    """One signature of many operations."""
    return lambda x: {name: f(x) for name, f in operations.items()}


def make(root):
    root.mkdir()
    numbers = [PLAIN, with_one(np.nan), with_one(np.inf), with_one(-2.0), -PLAIN]
    for name, operations, shape, inputs in (
        ("passed_on", PASSED_ON, [None], [np.full(5, n, "i4") for n in range(2)]),
        ("keeping", {"all": together_of(KEEPING)}, [None, 4], numbers),
        ("losing", LOSING, [None, 4], numbers),
        ("born", BORN, [None, 4], numbers),
        ("harmless", HARMLESS, [None, 4], numbers),
        ("trap_looped", LOOPED, [None, 4], []),
        ("trap_within", WITHIN, [3], PLACES[:0]),
        ("counted", COUNTED, [None], PLACES),
        ("right", {"all": together_of(RIGHT)}, [None, None, 4], SIZES),
        ("emptied", EMPTIED, [None, None, 4], SIZES),
        ("trap_shorter", SHORTER, [None, None, 4], []),
        ("trap_others", OTHERS, [3], []),
        ("narrow", NARROW, [None], CASTS),
        ("rounded", ROUNDED, [None, 4], numbers[:1]),
        ("trap_unrounded", UNROUNDED, [None, 4], []),
        ("tails", TAILS, [None, 4], FAR),
        ("trap_unsorted", UNSORTED, [None, 4], []),
        ("mixed", MIXED, [None, None, 4], SIZES),
        ("trap_behind_if", BEHIND_IF, [None, None, 4], []),
        ("along", ALONG, [None, None, 4], SIZES[:2]),
    ):
        module = tf.Module()
        dtype = tf.int32 if name in ("passed_on", "trap_within", "counted") else tf.float32
        module.functions = more_models.signatures_of(operations, shape, dtype)
        tf.saved_model.save(module, str(root / name / "1"), signatures=module.functions)
        asked = [{"x": each} for each in inputs]
        for signature in operations if inputs else ():
            answers = more_models.ask(root / name / "1", [signature], asked)
            for number, (_, given, answer) in enumerate(answers):
                more_models.keep(root / f"asked{number}", name, signature, given, answer)
    make_lite(root)


def make_lite(root):
    """``log_softmax`` over another axis than the last, in TensorFlow Lite."""
    place = root / "along_lite" / "1"
    place.mkdir(parents=True)
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.nn.log_softmax(x, 1)},
        input_signature=[tf.TensorSpec([2, 3, 4], tf.float32, name="x")],
    )
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.f.get_concrete_function()], module
        )
        (place / "model.tflite").write_bytes(converter.convert())
    answer = module.f(SIZES[0])
    more_models.keep(root / "asked0", "along_lite", "serving_default", {"x": SIZES[0]}, answer)
