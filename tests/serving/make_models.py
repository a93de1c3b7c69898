"""Runs in the oracle: SavedModels for the serving tests, and TensorFlow's own answers on them.

``make_models.py DIR`` writes ``DIR/<name>/1`` for each model below, and for each
signature ``DIR/<name>.<signature>.npz`` with ``in_<key>`` and ``out_<key>``: what
TensorFlow itself returns for those inputs. What only TensorFlow computes so stands
in ``DIR/only_tensorflow``, and what one test each needs in ``DIR/more`` (more_models.py,
kind_models.py, exact_models.py); ``DIR/random`` is random_graphs.py's.
"""

import contextlib
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import exact_models  # beside this file, as the next two and random_graphs
import kind_models
import more_models
import numpy as np
import random_graphs
import tensorflow as tf

ROOT = Path(sys.argv[1])
ONLY_TENSORFLOW = ROOT / "only_tensorflow"
rng = np.random.default_rng(7)
tf1 = tf.compat.v1


def spec(shape, dtype, name):
    return tf.TensorSpec(shape, dtype, name=name)


def save(name, module, signatures, version=1):
    tf.saved_model.save(module, str(ROOT / name / str(version)), signatures=signatures)


def answers(name, inputs, signature="serving_default", version=1, place=ROOT):
    """Ask TensorFlow, through a session as TensorFlow Serving does, and keep the answer."""
    with tf1.Session(graph=tf.Graph()) as session:
        meta = tf1.saved_model.loader.load(session, ["serve"], str(ROOT / name / str(version)))
        wanted = meta.signature_def[signature]
        fetches = {key: info.name for key, info in wanted.outputs.items()}
        feeds = {wanted.inputs[key].name: value for key, value in inputs.items()}
        outputs = session.run(fetches, feeds)
    np.savez(
        place / f"{name}.{signature}.npz",
        **{f"in_{key}": value for key, value in inputs.items()},
        **{f"out_{key}": value for key, value in outputs.items()},
    )


class Affine(tf.Module):
    """Two signatures over the same variables; the second has two outputs."""

    def __init__(self, scale=3.0, shift=2.0):
        super().__init__()
        self.scale = tf.Variable(scale)
        self.shift = tf.Variable(shift)

    @tf.function(input_signature=[spec([None], tf.float32, "x")])
    def affine(self, x):
        return {"y": self.scale * x + self.shift}

    @tf.function(input_signature=[spec([None, 2], tf.float32, "u")])
    def pairs(self, u):
        return {"total": tf.reduce_sum(u, 1) * self.shift, "same": tf.identity(u)}


class Small(tf.Module):
    """A convolution and a dense layer: enough arithmetic for bfloat16 to show."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(rng.normal(size=(3, 3, 3, 8)).astype("f4"))
        self.dense = tf.Variable(rng.normal(size=(8, 10)).astype("f4"))

    @tf.function(input_signature=[spec([None, 16, 16, 3], tf.float32, "image")])
    def classify(self, image):
        features = tf.nn.relu(tf.nn.conv2d(image, self.kernel, 1, "SAME"))
        logits = tf.reduce_mean(features, [1, 2]) @ self.dense
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


class Types(tf.Module):
    """Every element type that OpenVINO computes as TensorFlow does."""

    @tf.function(
        input_signature=[
            spec([None], tf.uint8, "u8"),
            spec([None], tf.int8, "i8"),
            spec([None], tf.int32, "i32"),
            spec([None], tf.int64, "i64"),
            spec([None], tf.float16, "f16"),
            spec([None], tf.bool, "flag"),
        ]
    )
    def step(self, u8, i8, i32, i64, f16, flag):
        return {
            "u8": tf.reverse(u8, [0]),
            "i8": tf.concat([i8, i8], 0),
            "i32": i32 * 2_000_003 + 7,
            "i64": tf.where(i64 < 0, i64 + 100, i64),
            "f16": f16 * 2,
            "f32": tf.cast(u8, tf.float32) / 3,
            "flag": tf.logical_not(flag),
        }


class Embedding(tf.Module):
    """Token numbers of 64 bits, as language models take them."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(rng.normal(size=(50, 4)).astype("f4"))

    @tf.function(input_signature=[spec([None, None], tf.int64, "tokens")])
    def embed(self, tokens):
        vectors = tf.gather(self.table, tokens)
        return {"mean": tf.reduce_mean(vectors, 1), "best": tf.argmax(vectors[:, 0], 1)}


class Loop(tf.Module):
    """Control flow whose length depends on a variable."""

    def __init__(self):
        super().__init__()
        self.turns = tf.Variable(5)

    @tf.function(input_signature=[spec([None], tf.float32, "x")])
    def grow(self, x):
        turn = tf.constant(0)
        while turn < self.turns:
            x = x * 1.1
            turn += 1
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)}


class Counter(tf.Module):
    """Trap: keeps state between calls."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0.0)

    @tf.function(input_signature=[spec([], tf.float32, "x")])
    def step(self, x):
        self.count.assign_add(x)
        return {"y": self.count.read_value()}


class Dice(tf.Module):
    """Trap: another answer at each call."""

    @tf.function(input_signature=[spec([2], tf.int32, "shape")])
    def roll(self, shape):
        return {"y": tf.random.uniform(shape)}


class Words(tf.Module):
    """Trap: strings, which OpenVINO does not have."""

    @tf.function(input_signature=[spec([None], tf.string, "word")])
    def lower(self, word):
        return {"lower": tf.strings.lower(word), "length": tf.strings.length(word)}


class Constant(tf.Module):
    """Trap: an input that no output depends on."""

    @tf.function(input_signature=[spec([None], tf.float32, "x")])
    def answer(self, x):
        del x
        return {"y": tf.constant([42.0])}


class Bytes(tf.Module):
    """Trap: OpenVINO's 8-bit sums stop at 255 where TensorFlow's wrap."""

    @tf.function(input_signature=[spec([None], tf.uint8, "x")])
    def step(self, x):
        return {"y": x + 1}


class Long(tf.Module):
    """Trap: OpenVINO keeps 64-bit integers in 32 bits."""

    @tf.function(input_signature=[spec([None], tf.int64, "x")])
    def step(self, x):
        return {"y": x * x}


class Offset(tf.Module):
    """Trap: a constant that 32 bits cannot hold."""

    @tf.function(input_signature=[spec([None], tf.int64, "x")])
    def step(self, x):
        return {"y": x + 5_000_000_000}


class Double(tf.Module):
    """Trap: OpenVINO computes float64 as float32."""

    @tf.function(input_signature=[spec([None], tf.float64, "x")])
    def step(self, x):
        return {"y": x / 3}


class Whole(tf.Module):
    """Trap: OpenVINO divides integers by way of float32."""

    @tf.function(input_signature=[spec([None], tf.int32, "x")])
    def step(self, x):
        return {"y": x // 7}


class Cast(tf.Module):
    """Trap: a float that 64 bits hold and 32 do not."""

    @tf.function(input_signature=[spec([None], tf.float32, "x")])
    def step(self, x):
        return {"y": tf.cast(x, tf.int64)}


class Mixed(tf.Module):
    """One signature that OpenVINO can serve, and one that it cannot."""

    @tf.function(input_signature=[spec([None], tf.float32, "x")])
    def double(self, x):
        return {"y": x * 2}

    @tf.function(input_signature=[spec([None], tf.string, "word")])
    def lower(self, word):
        return {"lower": tf.strings.lower(word)}


class AnyRank(tf.Module):
    """Trap: an input of unknown rank."""

    @tf.function(input_signature=[spec(None, tf.float32, "x")])
    def double(self, x):
        return {"y": x * 2}


class Mixing(tf.Module):
    """Traps for batching: each row of the answer depends on other rows of the batch."""

    @tf.function(input_signature=[spec([None, 4], tf.float32, "x")])
    def mean(self, x):
        return {"y": x - tf.reduce_mean(x, 0)}

    @tf.function(input_signature=[spec([None, 4], tf.float32, "x")])
    def first(self, x):
        return {"y": x - x[:1]}

    @tf.function(input_signature=[spec([None, 4], tf.float32, "x")])
    def scale(self, x):
        """As a dynamic quantization with one scale for all: only huge neighbours show it."""
        step = tf.maximum(tf.reduce_max(tf.abs(x)) * 1e-6, 1e-6)
        return {"y": tf.round(x / step) * step}


def save_v1(name, build):
    graph = tf.Graph()
    with graph.as_default():
        inputs, outputs = build()
        with tf1.Session(graph=graph) as session:
            session.run(tf1.global_variables_initializer())
            builder = tf1.saved_model.builder.SavedModelBuilder(str(ROOT / name / "1"))
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {
                    "serving_default": tf1.saved_model.signature_def_utils.predict_signature_def(
                        inputs, outputs
                    )
                },
            )
            builder.save()


def placeholder_with_default():
    """Trap: OpenVINO takes the default for a constant and forgets the input."""
    x = tf1.placeholder_with_default(tf.constant([1.0, 2.0]), [None], "x")
    half = tf1.get_variable("half", initializer=0.5)
    return {"x": x}, {"y": tf.identity(x * half + 2.0, "y")}


def reference_variables():
    """A TensorFlow 1 model with reference variables and a side branch that must not matter."""
    x = tf1.placeholder(tf.float32, [None, 4], "x")
    weights = tf1.get_variable(
        "w", initializer=tf.constant(rng.normal(size=(4, 2)).astype("f4")), use_resource=False
    )
    tf1.assign_add(tf1.get_variable("steps", initializer=0, use_resource=False), 1)
    return {"x": x}, {"y": tf.identity(tf.nn.softmax(tf.matmul(x, weights)), "y")}


def examples():
    """Classify and Regress over tf.Example, as TensorFlow 1 estimators export them."""
    graph = tf.Graph()
    with graph.as_default():
        serialized = tf1.placeholder(tf.string, [None], "tf_example")
        features = {
            "x": tf1.io.FixedLenFeature([1], tf.float32),
            "more": tf1.io.FixedLenFeature([2], tf.float32, default_value=[0.5, -1.0]),
            "unused": tf1.io.FixedLenFeature([], tf.string, default_value=""),
        }
        parsed = tf1.io.parse_example(serialized, features)
        x = tf.identity(parsed["x"], "x")
        more = tf.reduce_sum(parsed["more"], 1, keepdims=True)
        slope = tf1.get_variable("a", initializer=0.5)
        y = tf.add(slope * x + 2.0, more, name="y")
        scores = tf.concat([y, y * 2.0], 1)
        info = tf1.saved_model.utils.build_tensor_info
        make = tf1.saved_model.signature_def_utils.build_signature_def
        kind = "tensorflow/serving/{}".format
        signatures = {
            "serving_default": make({"x": info(x)}, {"y": info(x + 1.0)}, kind("predict")),
            "regress": make({"inputs": info(serialized)}, {"outputs": info(y)}, kind("regress")),
            "classify": make(
                {"inputs": info(serialized)}, {"scores": info(scores)}, kind("classify")
            ),
        }
        with tf1.Session(graph=graph) as session:
            session.run(tf1.global_variables_initializer())
            builder = tf1.saved_model.builder.SavedModelBuilder(str(ROOT / "examples" / "1"))
            builder.add_meta_graph_and_variables(session, ["serve"], signatures)
            builder.save()


def example(**values):
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                key: tf.train.Feature(float_list=tf.train.FloatList(value=value))
                for key, value in values.items()
            }
        )
    ).SerializeToString()


examples()
rows = np.array([example(x=[2.0]), example(x=[-1.5], more=[3.0, 4.0])], "O")
answers("examples", {"inputs": rows}, "regress")
answers("examples", {"inputs": rows}, "classify")

affine = Affine()
save("affine", affine, {"serving_default": affine.affine, "pairs": affine.pairs})
steeper = Affine(4.0, 1.0)
save("affine", steeper, {"serving_default": steeper.affine}, version=2)
answers("affine", {"x": np.array([1, 2.5, -3], "f4")})
answers("affine", {"u": np.array([[1, 2], [3, 4], [0.5, -9]], "f4")}, "pairs")

small = Small()
save("small", small, small.classify)
answers("small", {"image": rng.normal(size=(5, 16, 16, 3)).astype("f4")})

types = Types()
save("types", types, types.step)
answers(
    "types",
    {
        "u8": np.array([0, 7, 255], "u1"),
        "i8": np.array([-128, 0, 127], "i1"),
        "i32": np.array([-5, 1_000_000, 16_777_217], "i4"),
        "i64": np.array([-7, 0, 2**30], "i8"),
        "f16": np.array([0.5, -2, 1000], "f2"),
        "flag": np.array([True, False, True]),
    },
)

embedding = Embedding()
save("embedding", embedding, embedding.embed)
answers("embedding", {"tokens": np.array([[0, 49, 7], [3, 3, 12]], "i8")})

mixing = Mixing()
save("mixing", mixing, {"mean": mixing.mean, "first": mixing.first, "scale": mixing.scale})
for key in ("mean", "first", "scale"):
    answers("mixing", {"x": np.array([[1, -2, 3, 0.5], [4, 4, -1, 0]], "f4")}, key)

loop = Loop()
save("loop", loop, loop.grow)
answers("loop", {"x": np.array([1, -4, 2], "f4")})

mixed = Mixed()
save("mixed", mixed, {"serving_default": mixed.double, "words": mixed.lower})
answers("mixed", {"x": np.array([1, -4, 2], "f4")})
ONLY_TENSORFLOW.mkdir()
answers("mixed", {"word": np.array([b"ABC"], "O")}, "words", place=ONLY_TENSORFLOW)

for trap, method, value in (
    (Counter(), "step", np.float32(2.5)),
    (Dice(), "roll", None),
    (
        Words(),
        "lower",
        np.array([b"Ab", b"", "\N{LATIN CAPITAL LETTER E WITH ACUTE}".encode()], "O"),
    ),
    (Constant(), "answer", np.array([1, 2], "f4")),
    (AnyRank(), "double", np.array([[1, 2], [3, 4]], "f4")),
    (Bytes(), "step", np.array([0, 255], "u1")),
    (Long(), "step", np.array([-3, 2**31], "i8")),
    (Offset(), "step", np.array([-3, 2**40], "i8")),
    (Double(), "step", np.array([1, 1e300], "f8")),
    (Whole(), "step", np.array([-8, 2**31 - 1], "i4")),
    (Cast(), "step", np.array([-1.5, 1e12], "f4")),
):
    name = f"trap_{type(trap).__name__.lower()}"
    save(name, trap, getattr(trap, method))
    if value is not None:
        (key,) = (spec.name for spec in getattr(trap, method).input_signature)
        place = ROOT if name == "trap_anyrank" else ONLY_TENSORFLOW
        answers(name, {key: value}, place=place)
save_v1("with_default", placeholder_with_default)
answers("with_default", {"x": np.array([10, 20, 30], "f4")})
save_v1("v1", reference_variables)
answers("v1", {"x": rng.normal(size=(3, 4)).astype("f4")})


class Lite(tf.Module):
    """A TensorFlow Lite file in a version directory."""

    @tf.function(input_signature=[spec([1, 4], tf.float32, "x")])
    def f(self, x):
        return {"y": tf.nn.relu(x * 2.0 - 1.0)}


LITE = ROOT / "lite" / "1"
LITE.mkdir(parents=True)
lite = Lite()
with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [lite.f.get_concrete_function()], lite
    )
    (LITE / "model.tflite").write_bytes(converter.convert())
given = np.array([[1, -2, 0.25, 8]], "f4")
interpreter = tf.lite.Interpreter(str(LITE / "model.tflite"))
computed = interpreter.get_signature_runner()(x=given)
np.savez(ROOT / "lite.serving_default.npz", in_x=given, out_y=computed["y"])
ranks = {}
for rank in (1, 2, 3, 4):  # TensorFlow Serving resizes the inputs to what it is given
    given = rng.normal(size=(3, 2, 1, 2)[:rank]).astype("f4")
    (there,), (back,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(there["index"], given.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(there["index"], given)
    interpreter.invoke()
    ranks |= {f"in_{rank}": given, f"out_{rank}": interpreter.get_tensor(back["index"])}
np.savez(LITE.parent / "ranks.npz", **ranks)

more_models.make(ROOT / "more")
kind_models.make(ROOT / "more" / "kinds")
exact_models.make(ROOT / "more" / "exact")
# OpenVINO once got 47 and 107 wrong.
random_graphs.make(ROOT / "random", [*range(44, 48), *range(104, 108)])
