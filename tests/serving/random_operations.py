"""Beside random_graphs.py, in the oracle: the operations that random graphs are drawn of."""

import numpy as np
import random_layers as layers
import tensorflow as tf
from random_drawing import (
    UnfitError,
    alone,
    by_one,
    exactly,
    known,
    need,
    other,
    ranked,
    reduced,
    row,
    summed,
    with_other,
    with_row,
)


def joined(d, x):
    axis = d.axis(x)
    if d.often():
        return tf.concat([x, other(d, x)], axis)
    return tf.concat([x, tf.reverse(x, [axis]), x[:1] * 0 + x], axis)


def parted(d, x):
    axis = d.axis(x)
    length = x.shape[axis]
    need(length > 1)
    if length % 2 == 0 and d.often():
        return d.pick(tf.split(x, 2, axis))
    at = d.whole(1, length)
    return d.pick(tf.split(x, [at, length - at], axis))


def stacked(d, x):
    return tf.stack([x, other(d, x)], d.whole(1, len(x.shape) + 1))


def unstacked(d, x):
    return d.pick(tf.unstack(x, axis=d.axis(x)))


def gathered(d, x):
    axis = d.axis(x)
    places = d.random.integers(0, x.shape[axis], d.pick([(1,), (3,), (2, 2)]))
    return tf.gather(x, places.astype("i4"), axis=axis)


def strided(d, x):
    slices = [slice(None)]
    for length in known(x):
        kind = d.whole(0, 6)
        begin = d.whole(0, length)
        slices.append(
            [
                slice(None),
                slice(begin, None),
                slice(None, None, -1),
                slice(begin, None, 2),
                slice(None, -1) if length > 1 else slice(None),
                begin,
            ][kind]
        )
    if d.often(0.2):
        slices[d.whole(0, len(slices))] = tf.newaxis
    return x[tuple(slices)]


def sliced(d, x):
    begin = [0, *(d.whole(0, length) for length in known(x))]
    return tf.slice(x, begin, [-1] * len(begin))


def padded(d, x):
    lengths = known(x)
    mode = d.pick(["CONSTANT", "REFLECT", "SYMMETRIC"])
    room = [min(3, length) if mode != "CONSTANT" else 3 for length in lengths]
    sides = [[0, 0], *([d.whole(0, each), d.whole(0, each)] for each in room)]
    constant = d.pick([0, 1, -2]) if mode == "CONSTANT" else 0
    return tf.pad(x, sides, mode, constant)


def tiled(d, x):
    known(x)
    return tf.tile(x, [1, *(d.whole(1, 3) for _ in x.shape[1:])])


def reshaped(d, x):
    lengths = known(x)
    total = int(np.prod(lengths))
    choices = [[-1, total], [-1, *lengths[::-1]], [-1, 1, total]]
    choices += [[-1, n, total // n] for n in (2, 3, 4) if total % n == 0]
    return tf.reshape(x, d.pick(choices))


def transposed_axes(d, x):
    order = [0, *(1 + d.random.permutation(len(x.shape) - 1))]
    return tf.transpose(x, order)


def squeezed(d, x):
    fit = [n for n in range(1, len(x.shape)) if x.shape[n] == 1]
    need(fit)
    return tf.squeeze(x, [d.pick(fit)])


def blocks(function, shrinks):
    def moved_blocks(d, x):
        height, width, channels = known(ranked(x, 4))
        need(height % 2 == width % 2 == 0 if shrinks else channels % 4 == 0)
        return function(x, 2)

    return moved_blocks


def patches(d, x):
    height, width, _ = known(ranked(x, 4))
    need(min(height, width) > 2)
    return tf.image.extract_patches(
        x, [1, 2, 2, 1], [1, d.whole(1, 3), 1, 1], [1] * 4, d.pick(["SAME", "VALID"])
    )


def chosen(d, x):
    how = d.pick([tf.greater, tf.less, tf.greater_equal, tf.less_equal])
    return tf.where(how(x, row(d, x)), x, d.pick([tf.zeros_like(x), tf.nn.relu(-x)]))


def compared(d, x):
    how = d.pick([tf.greater, tf.less_equal, tf.not_equal, tf.equal])
    return how(x, other(d, x) if d.often() else tf.zeros_like(x))


def best(d, x):
    values, places = tf.math.top_k(x, d.whole(1, known(x)[-1] + 1))
    return values if d.often() else places


def placed(d, x):
    how = d.pick([tf.argmax, tf.argmin])
    return how(x, d.axis(x), output_type=d.pick([tf.int32, tf.int64]))


def cut_to_int(d, x):
    return tf.cast(tf.clip_by_value(x, -1e6, 1e6), tf.int32)


def halved(d, x):
    how = d.pick([tf.identity, tf.nn.relu, lambda x: x + 1])
    return how(tf.cast(x, tf.float16))


def wide(d, x):
    return tf.cast(tf.cast(x, tf.float64) * 2, d.dtype)


def looked_up(d, x):
    table = d.weights(9, 3)
    return tf.gather(table, tf.clip_by_value(x, 0, 8) if x.dtype == tf.int32 else x)


def scattered(d, x):
    lengths = known(ranked(x, 2))
    places = d.random.permutation(lengths[0] + 2)[: lengths[0], np.newaxis]
    return tf.transpose(
        tf.tensor_scatter_nd_update(
            tf.zeros([lengths[0] + 2, tf.shape(x)[0]], x.dtype), places, tf.transpose(x)
        )
    )


def picked(d, x):
    lengths = known(x)
    need(len(lengths) >= 2)
    places = [[d.whole(0, lengths[0]), d.whole(0, lengths[1])] for _ in range(3)]
    order = [1, 2, 0, *range(3, len(x.shape))]
    taken = tf.gather_nd(tf.transpose(x, order), places)
    return tf.transpose(taken, [1, 0, *range(2, len(taken.shape))])


LARGEST = 3000  # elements of a row
HIGHEST = 5  # rank

FLOAT = {
    "relu": exactly(tf.nn.relu),
    "relu6": exactly(tf.nn.relu6),
    "abs": exactly(tf.abs),
    "neg": exactly(tf.negative),
    "sign": exactly(tf.sign),
    "floor": exactly(tf.floor),
    "ceil": exactly(tf.math.ceil),
    "round": exactly(tf.round),
    "clip": exactly(lambda x: tf.clip_by_value(x, -0.75, 1.25)),
    "maximum": lambda d, x: tf.maximum(x, row(d, x)),
    "minimum": lambda d, x: tf.minimum(x, row(d, x)),
    "larger": lambda d, x: tf.maximum(x, other(d, x)),
    "leaky": alone(lambda x: tf.nn.leaky_relu(x, 0.3)),
    "add": with_row(tf.add),
    "sub": with_row(tf.subtract),
    "mul": with_row(tf.multiply),
    "div": with_row(tf.divide, least=0.5),
    "mod": layers.remainder,
    "floordiv": lambda d, x: tf.math.floordiv(d.moved(x), row(d, x, least=0.5)),
    "difference": with_row(tf.math.squared_difference),
    "atan2": with_row(tf.atan2, least=0.1),
    "add_other": with_other(tf.add),
    "sub_other": with_other(tf.subtract),
    "mul_other": with_other(tf.multiply),
    "div_other": with_other(lambda x, y: x / (tf.abs(y) + 1)),
    "no_nan": with_other(lambda x, y: tf.math.divide_no_nan(x, tf.nn.relu(y))),
    "batch_other": lambda d, x: d.moved(x * tf.reduce_mean(x, -1, keepdims=True)),
    "sqrt": alone(lambda x: tf.sqrt(tf.abs(x))),
    "rsqrt": alone(lambda x: tf.math.rsqrt(tf.square(x) + 0.1)),
    "exp": alone(lambda x: tf.exp(tf.minimum(x, 3.0))),
    "expm1": by_one(exactly(lambda x: tf.math.expm1(tf.minimum(x, 3.0)))),
    "log": alone(lambda x: tf.math.log(tf.abs(x) + 0.5)),
    "log1p": by_one(exactly(lambda x: tf.math.log1p(tf.abs(x)))),
    "tanh": alone(tf.tanh),
    "sigmoid": alone(tf.sigmoid),
    "log_sigmoid": by_one(exactly(tf.math.log_sigmoid)),
    "elu": by_one(exactly(tf.nn.elu)),
    "selu": by_one(exactly(tf.nn.selu)),
    "softplus": by_one(exactly(tf.nn.softplus)),
    "softsign": alone(tf.nn.softsign),
    "swish": alone(tf.nn.silu),
    "hard_swish": lambda d, x: d.moved(x * tf.nn.relu6(d.moved(d.moved(x) + 3.0)) / 6.0),
    "gelu": lambda d, x: d.moved(
        0.5 * x * d.moved(1.0 + d.moved(tf.math.erf(d.moved(x / np.sqrt(2)))))
    ),
    "gelu_tanh": lambda d, x: d.moved(
        0.5 * x * d.moved(1.0 + d.moved(tf.tanh(d.moved(0.7978845608 * (x + 0.044715 * x**3)))))
    ),
    "mish": lambda d, x: d.moved(x * by_one(exactly(lambda x: tf.tanh(tf.nn.softplus(x))))(d, x)),
    "erf": by_one(exactly(tf.math.erf)),
    "sin": alone(tf.sin),
    "cos": alone(tf.cos),
    "tan": alone(lambda x: tf.tan(tf.clip_by_value(x, -1.0, 1.0))),
    "atan": alone(tf.atan),
    "asin": alone(lambda x: tf.asin(tf.clip_by_value(x, -0.9, 0.9))),
    "sinh": alone(lambda x: tf.sinh(tf.clip_by_value(x, -3.0, 3.0))),
    "square": alone(tf.square),
    "pow": alone(lambda x: tf.pow(tf.abs(x) + 0.1, 1.5)),
    "cube": alone(lambda x: tf.pow(x, 3.0)),
    "sum": summed(reduced(tf.reduce_sum)),
    "mean": summed(reduced(tf.reduce_mean)),
    "max": reduced(tf.reduce_max),
    "min": reduced(tf.reduce_min),
    "prod": summed(lambda d, x: reduced(tf.reduce_prod)(d, tf.clip_by_value(x, -2.0, 2.0))),
    "logsumexp": summed(reduced(tf.reduce_logsumexp)),
    "std": lambda d, x: d.moved(
        tf.sqrt(
            d.moved(
                tf.reduce_mean(
                    d.moved(d.moved(x) - d.moved(tf.reduce_mean(x, -1, keepdims=True))) ** 2, -1
                )
            )
            + 1e-3
        )
    ),
    "norm": summed(lambda d, x: tf.norm(x, axis=d.axis(x), keepdims=d.often())),
    "unit": summed(lambda d, x: tf.nn.l2_normalize(x, d.axis(x))),
    "chosen": chosen,
    "best": best,
    "band": exactly(lambda x: tf.linalg.band_part(ranked(x, 3, 4), 1, 0)),
    "compared": compared,
    "placed": placed,
    "to_int": cut_to_int,
    "to_half": halved,
    "to_double": wide,
}
LAYERS = {
    "matmul": summed(layers.matmul),
    "dense": summed(layers.dense),
    "attention": summed(layers.attention),
    "gram": summed(lambda _, x: tf.matmul(ranked(x, 3), x, transpose_b=True)),
    "einsum": summed(layers.einsum),
    "tensordot": summed(lambda d, x: tf.tensordot(x, d.weights(known(x)[-1], 3), 1)),
    "conv1d": summed(layers.conv1d),
    "conv2d": summed(layers.conv2d),
    "depthwise": summed(layers.depthwise),
    "transposed": summed(layers.transposed),
    "max_pool": layers.pool("MAX"),
    "avg_pool": summed(layers.pool("AVG")),
    "batch_norm": summed(layers.batch_norm),
    "layer_norm": summed(layers.layer_norm),
    "softmax": summed(lambda d, x: tf.nn.softmax(x, d.axis(x))),
    "log_softmax": by_one(summed(lambda d, x: tf.nn.log_softmax(x, d.axis(x)))),
    "cumsum": summed(lambda d, x: tf.cumsum(x, d.axis(x), exclusive=d.often(), reverse=d.often())),
    "recurrent": summed(layers.recurrent),
    "repeated": summed(layers.repeated),
    "conditional": layers.conditional,
    "mapped": layers.mapped,
    "resized": summed(layers.resized),
    "space_to_depth": blocks(tf.nn.space_to_depth, True),
    "depth_to_space": blocks(tf.nn.depth_to_space, False),
    "patches": patches,
    "scattered": scattered,
}
MOVES = {
    "joined": joined,
    "parted": parted,
    "stacked": stacked,
    "unstacked": unstacked,
    "gathered": gathered,
    "strided": strided,
    "sliced": sliced,
    "padded": padded,
    "tiled": tiled,
    "reshaped": reshaped,
    "transposed_axes": transposed_axes,
    "expanded": lambda d, x: tf.expand_dims(x, d.whole(1, len(x.shape) + 1)),
    "squeezed": squeezed,
    "reversed": lambda d, x: tf.reverse(x, [d.axis(x)]),
    "picked": picked,
    "rolled": lambda d, x: tf.roll(x, d.whole(1, 4), d.axis(x)),
}
INTEGER = {
    "looked_up": looked_up,
    "one_hot": lambda d, x: tf.one_hot(x, 6, dtype=d.dtype),
    "to_float": lambda d, x: tf.cast(x, d.dtype),
    "compared_int": lambda d, x: d.pick([tf.greater, tf.equal, tf.less])(x, 2),
    "add_int": lambda d, x: x + d.whole(-3, 4),
    "mul_int": lambda d, x: x * d.whole(-3, 4),
    "max_int": reduced(tf.reduce_max),
    "mod_int": exactly(lambda x: tf.math.floormod(x, 3)),
}
LOGICAL = {
    "not": exactly(tf.logical_not),
    "both": lambda d, x: d.pick([tf.logical_and, tf.logical_or])(x, other(d, x)),
    "any": reduced(tf.reduce_any),
    "all": reduced(tf.reduce_all),
    "one_or_zero": lambda d, x: tf.cast(x, d.pick([d.dtype, tf.int32])),
    "where": lambda d, x: tf.where(x, d.weights(), d.weights()),
}
RARE = ("to_half", "to_double", "mapped", "conditional", "max_int", "mod_int")


def operations(d, x):
    """Some for a value of this type."""
    kind = d.random.random()
    if kind < 0.25:
        return MOVES
    if x.dtype in (tf.float32, tf.float64):
        return LAYERS if kind < 0.6 else FLOAT
    if x.dtype == tf.bool:
        return LOGICAL
    if x.dtype in (tf.int32, tf.int64):
        return INTEGER
    return {"to_float": INTEGER["to_float"]} if x.dtype == tf.uint8 else MOVES


def draw(d, pool):
    """Add values to a pool, each made of those before; return what they were made by."""
    trail = []
    d.pool = pool
    wanted = d.whole(4, 11)
    for _ in range(40 * wanted):
        if len(trail) == wanted:
            break
        x = pool[-1] if d.often() else d.pick(pool)
        table = operations(d, x)
        name = d.pick(list(table))
        if name in RARE and not d.often(0.25):
            continue
        try:
            made = table[name](d, x)
        except (UnfitError, ValueError, IndexError, TypeError):
            continue
        shape = made.shape
        if len(shape) > HIGHEST or np.prod([n or 1 for n in shape]) > LARGEST or 0 in shape:
            continue
        pool.append(made)
        trail.append(name)
    return trail
