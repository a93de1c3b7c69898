"""Runs in the oracle, called by make_models.py: models for one test each, which no server loads.

``make(root)`` writes SavedModels below ``root``, with TensorFlow's answers beside them as
make_models.py does, and what TensorFlow answers to inputs of other ranks in ``root/rankN``:
arrays, or nothing where it refuses.
"""

import contextlib

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


class Strings(tf.Module):
    """String to string and to number."""

    @tf.function(input_signature=[spec([None], tf.string, "v")])
    def call(self, v):
        joined = tf.strings.join([tf.constant("hi "), tf.strings.lower(v)])
        return {"out": joined, "len": tf.strings.length(v)}


class Table(tf.Module):
    """A lookup table from one type to another."""

    def __init__(self, keys, values, default):
        super().__init__()
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys), tf.constant(values))
        self.table = tf.lookup.StaticHashTable(initializer, default)
        signature = [spec([None], self.table.key_dtype, "k")]
        self.call = tf.function(self.look_up, input_signature=signature)

    def look_up(self, k):
        return {"v": self.table.lookup(k)}


class Labels(tf.Module):
    """Numbers in, the best one's name out."""

    def __init__(self):
        super().__init__()
        initializer = tf.lookup.KeyValueTensorInitializer(
            tf.constant([0, 1], tf.int64), tf.constant(["cat", "dog"])
        )
        self.table = tf.lookup.StaticHashTable(initializer, "?")

    @tf.function(input_signature=[spec([None, 2], tf.float32, "x")])
    def call(self, x):
        return {"label": self.table.lookup(tf.argmax(x, 1)), "scores": tf.nn.softmax(x)}


class Parsed(tf.Module):
    """tf.Example in, as TensorFlow 2 parses it."""

    def __init__(self):
        super().__init__()
        self.weights = tf.Variable([[2.0], [3.0]])

    @tf.function(input_signature=[spec([None], tf.string, "e")])
    def call(self, e):
        parsed = tf.io.parse_example(e, {"x": tf.io.FixedLenFeature([2], tf.float32)})
        return {"outputs": tf.matmul(parsed["x"], self.weights)}


class Pictures(tf.Module):
    """JPEG in."""

    @tf.function(input_signature=[spec([None], tf.string, "b")])
    def call(self, b):
        def mean(raw):
            return tf.reduce_mean(tf.cast(tf.io.decode_jpeg(raw, channels=3), tf.float32))

        return {"mean": tf.map_fn(mean, b, fn_output_signature=tf.float32)}


class Top(tf.Module):
    """The three largest."""

    @tf.function(input_signature=[spec([None, 8], tf.float32, "x")])
    def call(self, x):
        values, places = tf.math.top_k(x, 3)
        return {"values": values, "idx": places}


class Boxes(tf.Module):
    """Non-maximum suppression."""

    @tf.function(
        input_signature=[spec([None, 4], tf.float32, "boxes"), spec([None], tf.float32, "scores")]
    )
    def call(self, boxes, scores):
        return {"sel": tf.image.non_max_suppression(boxes, scores, 5, 0.5)}


class Numbers(tf.Module):
    """Arithmetic on types that OpenVINO computes otherwise."""

    @tf.function(
        input_signature=[
            spec([None], tf.uint8, "a"),
            spec([None], tf.bool, "b"),
            spec([None], tf.float16, "h"),
            spec([None], tf.int64, "l"),
            spec([None], tf.float64, "d"),
        ]
    )
    def call(self, a, b, h, l, d):  # noqa: E741
        return {"a": a + 1, "b": tf.logical_not(b), "h": h * 2, "l": l + 1, "d": d * 2}


class Spectrum(tf.Module):
    """Complex numbers within."""

    @tf.function(input_signature=[spec([None, 16], tf.float32, "x")])
    def call(self, x):
        return {"y": tf.abs(tf.signal.rfft(x))}


class Wrapped(tf.Module):
    """A residual Keras 3 model in a module: OpenVINO does not find all of its variables."""

    def __init__(self):
        super().__init__()
        layers = tf.keras.layers
        first = x = layers.Input((8, 8, 3))
        for depth in range(12):
            y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
            x = layers.Add()([x, y]) if depth else y
        x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
        self.model = tf.keras.Model(first, x)

    @tf.function(input_signature=[spec([None, 8, 8, 3], tf.float32, "x")])
    def call(self, x):
        return {"y": self.model(x)}


class Checked(tf.Module):
    """Operations that are there to refuse inputs, each in a signature of its own."""

    def functions(self):
        def asserts(x):
            tf.debugging.assert_less(x, 100.0)
            return {"y": x * 2}

        def finite(x):
            return {"y": tf.debugging.check_numerics(x, "not finite") * 2}

        def shaped(x):
            return {"y": tf.ensure_shape(x, [3]) * 2}

        signature = [spec([None], tf.float32, "x")]
        return {
            f.__name__: tf.function(f, input_signature=signature) for f in (asserts, finite, shaped)
        }


def old_control_flow(root):
    """TensorFlow 1's own loops and branches, over a reference variable."""
    graph = tf.Graph()
    with graph.as_default():
        tf1.disable_control_flow_v2()
        x = tf1.placeholder(tf.float32, [None], "x")
        v = tf1.get_variable("v", initializer=2.0, use_resource=False)
        y = tf1.while_loop(lambda i, _: i < 3, lambda i, a: (i + 1, a * v), [0, x])[1]
        z = tf1.cond(tf.reduce_sum(y) > 0, lambda: y + 1, lambda: y - 1)
        z = tf.identity(z, "z")
        with tf1.Session(graph=graph) as session:
            session.run(tf1.global_variables_initializer())
            make_signature = tf1.saved_model.signature_def_utils.predict_signature_def
            builder = tf1.saved_model.builder.SavedModelBuilder(str(root / "cflow_v1" / "1"))
            builder.add_meta_graph_and_variables(
                session, ["serve"], {"serving_default": make_signature({"x": x}, {"z": z})}
            )
            builder.save()
        tf1.enable_control_flow_v2()


def parsing_lite(root):
    """A TensorFlow Lite file with a parser of tf.Example inside."""
    version = root / "lite_example" / "1"
    version.mkdir(parents=True)
    parsed = Parsed()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [parsed.call.get_concrete_function()], parsed
    )
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        (version / "model.tflite").write_bytes(converter.convert())


def kinds(root):
    """One model of each kind that OpenVINO was ever seen to serve, refuse or get wrong."""
    root.mkdir()
    rng = np.random.default_rng(5)

    def normal(*shape):
        return rng.normal(size=shape).astype("f4")

    layers = tf.keras.layers
    cnn = tf.keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    lstm = tf.keras.Sequential(
        [
            layers.Input((20,), dtype="int32"),
            layers.Embedding(100, 8),
            layers.LSTM(16),
            layers.Dense(1),
        ]
    )
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[1.5, -2.0]))
    example = tf.train.Example(features=tf.train.Features(feature={"x": feature}))
    pictures = [tf.io.encode_jpeg(np.full((8, 8, 3), shade, "u1")).numpy() for shade in (20, 200)]
    numbers = {
        "a": np.array([1, 255], "u1"),
        "b": np.array([True, False]),
        "h": np.array([0.5, 3], "f2"),
        "l": np.array([2**40, -1], "i8"),
        "d": np.array([1e300, 1 / 3], "f8"),
    }
    corners = np.abs(normal(6, 4))
    corners[:, 2:] += corners[:, :2]
    asked = {
        "keras_cnn": (cnn, {"keras_tensor": normal(3, 32, 32, 3)}),
        "lstm": (lstm, {"keras_tensor": rng.integers(0, 100, (2, 20)).astype("i4")}),
        "strings": (Strings(), {"v": np.array([b"Ab", b""], "O")}),
        "hashtable": (
            Table(["a", "b"], np.array([1, 2], "i8"), -1),
            {"k": np.array([b"b", b"z"], "O")},
        ),
        "hashtable_int": (
            Table(np.array([1, 2], "i8"), np.array([10, 20], "f4"), -1.0),
            {"k": np.array([2, 7], "i8")},
        ),
        "label_out": (Labels(), {"x": normal(3, 2)}),
        "example": (Parsed(), {"e": np.array([example.SerializeToString()] * 2, "O")}),
        "jpeg": (Pictures(), {"b": np.array(pictures, "O")}),
        "topk": (Top(), {"x": normal(3, 8)}),
        "nms": (Boxes(), {"boxes": corners, "scores": np.abs(normal(6))}),
        "dtypes": (Numbers(), numbers),
        "fft": (Spectrum(), {"x": normal(2, 16)}),
        "keras_module": (Wrapped(), {"x": normal(2, 8, 8, 3)}),
        "cflow_v1": (None, {"x": normal(3)}),
    }
    old_control_flow(root)
    for name, (model, inputs) in asked.items():
        version = root / name / "1"
        if isinstance(model, tf.keras.Model):
            for layer in model.layers:  # weights that batch normalization has to change
                layer.set_weights([np.abs(normal(*each.shape)) for each in layer.get_weights()])
            model.export(str(version), verbose=False)
            (given,) = inputs.values()
            inputs = {model.inputs[0].name: given}
        elif model is not None:
            tf.saved_model.save(model, str(version), signatures=model.call)
        ((_, _, outputs),) = ask(version, ["serving_default"], [inputs])
        keep(root, name, "serving_default", inputs, outputs)
    checked = Checked()
    checked.kept = checked.functions()
    tf.saved_model.save(checked, str(root / "trap_checked" / "1"), signatures=checked.kept)
    parsing_lite(root)


def make(root):
    root.mkdir()
    other_ranks(root)
    indices(root)
    kinds(root / "kinds")
