"""Runs in the oracle: random small graphs, TensorFlow's answers to them, and a judge of both.

``make(root, seeds)`` writes SavedModels ``root/model<n>/1`` of some signatures each, one for
each seed, and ``root/model<n>/<signature>.<question>.npz`` with ``in_<key>``, ``out_<key>``
(TensorFlow's answer; nothing where it refuses) and the judge's ``exact_<key>``, ``spread_<key>``.

Rules this module keeps:

* A seed draws the same graph at each precision, with the same weights: TensorFlow computes it
  in float32, the judge in float64.
* The judge computes it again some times, and each time moves what every rounding operation
  takes and gives by up to an unit in the last place of float32. How far the outputs go then is
  their spread: an answer within a few times of it differs by rounding and by nothing else, and
  where it is zero (moves, maxima, comparisons of inputs) no difference is rounding.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import more_models  # beside this file, as the next two
import numpy as np
import random_drawing
import random_operations
import tensorflow as tf

TOGETHER = 8  # signatures in a model
UNIT = 2.0**-23
TURNS = 24  # of the judge
FLOAT_SHAPES = (
    [None, 5],
    [None, 8],
    [None, 12],
    [None, 6, 4],
    [None, None, 4],
    [None, 7, 3],
    [None, 8, 8, 3],
    [None, 6, 9, 4],
    [None, 4, 4, 2],
)
# A second input: its type, its shape.
OTHERS = (
    (tf.float32, [None, 1]),
    (tf.float32, [None, 5]),
    (tf.int32, [None]),
    (tf.int32, [None, 3]),
    (tf.int64, [None]),
    (tf.int64, [None, 4]),
    (tf.bool, [None]),
    (tf.uint8, [None, 4, 4, 3]),
)


class Graph:
    """The graph of a seed."""

    def __init__(self, seed):
        random = np.random.default_rng([seed, 1])
        self.seed = seed
        self.inputs = {"x": (tf.float32, FLOAT_SHAPES[random.integers(len(FLOAT_SHAPES))])}
        if random.random() < 0.4:
            self.inputs["y"] = OTHERS[random.integers(len(OTHERS))]

    def build(self, values, dtype, moved=lambda x: x):
        """Its outputs by key, and the operations it was drawn of."""
        draw = random_drawing.Draw(self.seed, dtype, moved)
        pool = [tf.cast(each, dtype) if each.dtype.is_floating else each for each in values]
        trail = random_operations.draw(draw, pool)
        made = pool[len(values) :]
        chosen = draw.random.permutation(len(made) - 1)[: draw.random.integers(0, 4)]
        kept = [made[-1], *(made[each] for each in chosen)]
        return {f"out{n}": tf.identity(each) for n, each in enumerate(kept)}, trail

    def signature(self):
        """What TensorFlow computes, to be saved."""
        specs = [
            tf.TensorSpec(shape, dtype, name=key) for key, (dtype, shape) in self.inputs.items()
        ]
        return tf.function(
            lambda *values: self.build(values, tf.float32)[0], input_signature=specs
        ).get_concrete_function()

    def judge(self):
        """From inputs, an amplitude and a number: the outputs, rounded so much, one way."""

        @tf.function(
            input_signature=[
                [tf.TensorSpec(shape, dtype) for dtype, shape in self.inputs.values()],
                tf.TensorSpec([], tf.float64),
                tf.TensorSpec([], tf.int32),
            ]
        )
        def compute(values, amplitude, number):
            moves = 0

            def moved(x):
                nonlocal moves
                moves += 1
                seed = tf.stack([number, moves])
                noise = tf.random.stateless_uniform(tf.shape(x), seed, -1, 1, tf.float64)
                result = x * (1 + amplitude * noise)
                result.set_shape(x.shape)
                return result

            return self.build(values, tf.float64, moved)[0]

        return compute

    def trail(self):
        """The names of its operations; the same at either precision, or the judge is none."""
        trails = []
        for dtype in (tf.float32, tf.float64):
            with tf.Graph().as_default():
                values = [tf.compat.v1.placeholder(*each) for each in self.inputs.values()]
                trails.append(self.build(values, dtype)[1])
        assert trails[0] == trails[1], (self.seed, trails)
        return trails[0]

    def questions(self):
        """Inputs: plain, alone, many, large, small, below zero, zeros, whole."""
        random = np.random.default_rng([self.seed, 2])
        for rows, change in (
            (3, lambda x: x),
            (1, lambda x: x),
            (7, lambda x: x),
            (2, lambda x: x * 100),
            (2, lambda x: x * 1e-3),
            (2, lambda x: -np.abs(x)),
            (2, np.zeros_like),
            (4, np.round),
        ):
            given = {}
            for key, (dtype, shape) in self.inputs.items():
                size = [rows, *(length or rows + 3 for length in shape[1:])]
                if dtype.is_floating:
                    given[key] = change(random.normal(size=size).astype("f4") * 2)
                elif dtype is tf.bool:
                    given[key] = np.arange(rows) % 2 == 0
                else:
                    given[key] = random.integers(0, 6, size).astype(dtype.as_numpy_dtype)
            yield given


def judged(judge, given):
    """The exact outputs, and how far rounding moves them.

    Without TensorFlow's optimizer: it takes the argmax of signs for that of the numbers.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    values = [tf.constant(each) for each in given.values()]
    exact = {key: each.numpy() for key, each in judge(values, 0.0, 0).items()}
    spread = {key: np.zeros(each.shape) for key, each in exact.items()}
    for number in range(TURNS):
        for key, each in judge(values, UNIT, number).items():
            with np.errstate(all="ignore"):
                far = np.abs(np.subtract(each.numpy(), exact[key], dtype="f8", casting="unsafe"))
            spread[key] = np.fmax(spread[key], far)
    return {f"exact_{key}": each for key, each in exact.items()} | {
        f"spread_{key}": each for key, each in spread.items()
    }


def make(root, seeds):
    """A model for each few seeds."""
    seeds = list(seeds)
    for number in range(0, len(seeds), TOGETHER):
        make_model(root / f"model{number // TOGETHER}", seeds[number : number + TOGETHER])


def make_model(place, seeds):
    graphs = {f"seed{seed}": Graph(seed) for seed in seeds}
    module = tf.Module()
    signatures = {key: graph.signature() for key, graph in graphs.items()}
    tf.saved_model.save(module, str(place / "1"), signatures=signatures)
    for key, graph in graphs.items():
        (place / f"{key}.txt").write_text(" ".join(graph.trail()))
        judge = graph.judge()
        answers = more_models.ask(place / "1", [key], list(graph.questions()))
        for number, (_, given, answer) in enumerate(answers):
            np.savez(
                place / f"{key}.{number}.npz",
                **{f"in_{name}": each for name, each in given.items()},
                **{f"out_{name}": each for name, each in answer.items()},
                **(judged(judge, given) if answer else {}),
            )


if __name__ == "__main__":
    make(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
