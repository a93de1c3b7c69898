"""Beside random_graphs.py, in the oracle: random layers of networks, and loops."""

import numpy as np
import tensorflow as tf
from random_drawing import known, need, ranked, row


def spatial(d, x, size):
    """Strides, padding and dilations that fit."""
    padding = d.pick(["SAME", "VALID"])
    smallest = min(known(x)[:-1])
    need(smallest >= size)
    if d.often(0.3) and smallest >= 2 * size:
        return {"strides": 1, "padding": padding, "dilations": 2}
    return {"strides": d.whole(1, 3), "padding": padding}


def conv1d(d, x):
    channels = known(ranked(x, 3))[-1]
    size = d.whole(1, 4)
    how = spatial(d, x, size)
    how["stride"] = how.pop("strides")
    return tf.nn.conv1d(x, d.weights(size, channels, d.whole(1, 6)), data_format="NWC", **how)


def conv2d(d, x):
    channels = known(ranked(x, 4))[-1]
    size = d.whole(1, 4)
    how = spatial(d, x, size)
    groups = 2 if channels % 2 == 0 and d.often(0.3) else 1
    kernel = d.weights(size, d.whole(1, size + 1), channels // groups, 2 * d.whole(1, 4))
    return tf.nn.conv2d(x, kernel, **how)


def depthwise(d, x):
    channels = known(ranked(x, 4))[-1]
    size = d.whole(1, 4)
    how = spatial(d, x, size)
    stride = how.pop("strides")
    if "dilations" in how:
        how["dilations"] = [how["dilations"]] * 2
    kernel = d.weights(size, size, channels, d.whole(1, 3))
    return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], **how)


def transposed(d, x):
    height, width, channels = known(ranked(x, 4))
    size, stride, made = d.whole(1, 4), d.whole(1, 3), d.whole(1, 4)
    padding = d.pick(["SAME", "VALID"])
    more = 0 if padding == "SAME" else max(size - stride, 0)
    shape = tf.stack([tf.shape(x)[0], height * stride + more, width * stride + more, made])
    return tf.nn.conv2d_transpose(x, d.weights(size, size, made, channels), shape, stride, padding)


def pool(kind):
    def pooled(d, x):
        lengths = known(ranked(x, 3, 4))
        size = d.whole(1, 4)
        need(min(lengths[:-1]) >= size)
        return tf.nn.pool(
            x, [size] * (len(lengths) - 1), kind, [d.whole(1, 3)] * (len(lengths) - 1),
            d.pick(["SAME", "VALID"]),
        )  # fmt: skip

    return pooled


def batch_norm(d, x):
    mean, offset, scale = (row(d, x) for _ in range(3))
    variance = row(d, x, least=0.1)
    if d.dtype is tf.float32 and len(x.shape) == 4:
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=1e-3,
            is_training=False,
        ).y  # fmt: skip
    return tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3)


def layer_norm(d, x):
    axis = d.axis(x)
    mean = d.moved(tf.reduce_mean(x, axis, keepdims=True))
    far = d.moved(x - mean)
    variance = d.moved(tf.reduce_mean(far**2, axis, keepdims=True))
    return far * tf.math.rsqrt(variance + 1e-3)


def matmul(d, x):
    size = ranked(x, 2, 3, 4).shape[-1]
    need(size is not None)
    return tf.matmul(x, d.weights(size, d.whole(1, 7)))


def dense(d, x):
    y = d.moved(matmul(d, x))
    y = d.moved(y + d.weights(y.shape[-1]))
    return d.pick([tf.nn.relu, tf.nn.relu6, tf.tanh, tf.sigmoid, tf.identity])(y)


def remainder(d, x):
    """Computed as ``x - whole``, where the quotient may be rounded to the next whole number."""
    y = tf.math.floormod(d.moved(x), row(d, x, least=0.5))
    whole = x - y
    return y + (d.moved(whole) - whole)


def attention(d, x):
    size = ranked(x, 3).shape[-1]
    need(size is not None)
    q, k, v = (d.moved(x @ d.weights(size, size)) for _ in range(3))
    scores = d.moved(tf.matmul(q, k, transpose_b=True) / np.sqrt(size))
    return d.moved(tf.nn.softmax(scores)) @ v


def einsum(d, x):
    sizes = known(ranked(x, 2, 3))
    if len(sizes) == 1:
        return tf.einsum("bi,io->bo", x, d.weights(sizes[0], 3))
    form, *shape = d.pick(
        [
            ("btc,co->bto", sizes[1], 4),
            ("btc,to->bco", sizes[0], 3),
            ("btc,tc->bt", *sizes),
            ("btc,chd->bhtd", sizes[1], 2, 3),
        ]
    )
    return tf.einsum(form, x, d.weights(*shape))


def recurrent(d, x):
    """A GRU of sorts, as a loop over an array."""
    length, size = known(ranked(x, 3))
    forward, back = d.weights(size, 4), d.weights(4, 4)
    steps = tf.TensorArray(x.dtype, length).unstack(tf.transpose(x, [1, 0, 2]))
    start = tf.zeros([tf.shape(x)[0], 4], x.dtype)

    def step(n, state):
        new = tf.tanh(d.moved(d.moved(steps.read(n) @ forward) + d.moved(state @ back)))
        return n + 1, d.moved(0.5 * state + 0.5 * new)

    return tf.while_loop(lambda n, _: n < length, step, (0, start))[1]


def repeated(d, x):
    turns, scale = d.whole(1, 5), row(d, x)
    return tf.while_loop(
        lambda n, _: n < turns, lambda n, y: (n + 1, d.moved(tf.tanh(y * scale))), (0, x)
    )[1]


def conditional(d, x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: d.moved(x * 2.5), lambda: x)


def mapped(d, x):
    known(x)
    need(len(x.shape) >= 2)
    scale = d.weights()
    return tf.map_fn(lambda each: d.moved(tf.nn.relu(each) * scale), x)


def resized(d, x):
    known(ranked(x, 4))
    how = d.pick(["half", "corners", "old"])
    form = d.pick([tf.raw_ops.ResizeBilinear, tf.raw_ops.ResizeNearestNeighbor])
    made = form(
        images=x, size=[d.whole(2, 11), d.whole(2, 11)], align_corners=how == "corners",
        half_pixel_centers=how == "half",
    )  # fmt: skip
    return tf.cast(made, d.dtype)
