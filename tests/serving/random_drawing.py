"""Beside random_graphs.py, in the oracle: how random operations are drawn.

An operation takes a `Draw` and a value and gives a value, or raises `UnfitError`. What rounds
goes through ``d.moved``, the terms of sums too: the judge moves numbers there as rounding would.
"""

import numpy as np
import tensorflow as tf


class UnfitError(Exception):
    """The operation does not take such a value."""


class Draw:
    """Random choices, which do not depend on the precision."""

    def __init__(self, seed, dtype, moved):
        self.random = np.random.default_rng(seed)
        self.dtype = dtype
        self.moved = moved
        self.pool = []

    def weights(self, *shape, least=-1.0, most=1.0):
        return tf.constant(self.random.uniform(least, most, shape).astype("f4"), self.dtype)

    def whole(self, least, most):
        """Below the most."""
        return int(self.random.integers(least, most))

    def pick(self, choices):
        return choices[self.whole(0, len(choices))]

    def often(self, chance=0.5):
        return bool(self.random.random() < chance)

    def axis(self, x, first=1):
        """Of known length, and not the batch's unless asked."""
        fit = [n for n in range(first, len(x.shape)) if x.shape[n] is not None]
        need(fit)
        return self.pick(fit)


def need(condition):
    if not condition:
        raise UnfitError


def ranked(x, *ranks):
    need(len(x.shape) in ranks)
    return x


def known(x):
    """The lengths behind the batch."""
    need(len(x.shape) >= 1 and None not in x.shape[1:])
    return list(x.shape[1:])


def rounded(function):
    """An operation whose result is rounded."""
    return lambda d, x: d.moved(function(d, x))


def summed(function):
    """An operation that sums: its terms are rounded too."""
    return lambda d, x: d.moved(function(d, d.moved(x)))


def row(d, x, **limits):
    need(len(x.shape) >= 2 and x.shape[-1] is not None)
    return d.weights(x.shape[-1], **limits)


def other(d, x):
    """Another value of the same type and shape."""
    fit = [
        each
        for each in d.pool
        if each.dtype == x.dtype and each is not x and each.shape.as_list() == x.shape.as_list()
    ]
    need(fit)
    return d.pick(fit)


def with_row(function, **limits):
    return rounded(lambda d, x: function(x, row(d, x, **limits)))


def with_other(function):
    return rounded(lambda d, x: function(x, other(d, x)))


def alone(function):
    return rounded(lambda _, x: function(x))


def by_one(function):
    """An operation computed by way of numbers about one, as log(1 + x), or exp(x) - 1."""

    def made(d, x):
        y = function(d, x)
        return d.moved(y) + (d.moved(tf.ones_like(y)) - 1)

    return made


def exactly(function):
    return lambda _, x: function(x)


def axes(d, x):
    chosen = [n for n in range(len(x.shape)) if d.often()]
    need(chosen)
    return chosen


def reduced(function):
    return lambda d, x: function(x, axes(d, x), keepdims=d.often())
