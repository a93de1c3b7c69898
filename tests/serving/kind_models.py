"""Runs in the oracle, called by make_models.py: a model of each kind that OpenVINO may not serve.

``make(root)`` writes them below ``root``, with TensorFlow's answers beside them.
"""

import contextlib

import more_models  # beside this file
import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1


class Strings(tf.Module):
    """String to string and to number."""

    @tf.function(input_signature=[more_models.spec([None], tf.string, "v")])
    def call(self, v):
        joined = tf.strings.join([tf.constant("hi "), tf.strings.lower(v)])
        return {"out": joined, "len": tf.strings.length(v)}


class Table(tf.Module):
    """A lookup table from one type to another."""

    def __init__(self, keys, values, default):
        super().__init__()
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys), tf.constant(values))
        self.table = tf.lookup.StaticHashTable(initializer, default)
        signature = [more_models.spec([None], self.table.key_dtype, "k")]
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

    @tf.function(input_signature=[more_models.spec([None, 2], tf.float32, "x")])
    def call(self, x):
        return {"label": self.table.lookup(tf.argmax(x, 1)), "scores": tf.nn.softmax(x)}


class Parsed(tf.Module):
    """tf.Example in, as TensorFlow 2 parses it."""

    def __init__(self):
        super().__init__()
        self.weights = tf.Variable([[2.0], [3.0]])

    @tf.function(input_signature=[more_models.spec([None], tf.string, "e")])
    def call(self, e):
        parsed = tf.io.parse_example(e, {"x": tf.io.FixedLenFeature([2], tf.float32)})
        return {"outputs": tf.matmul(parsed["x"], self.weights)}


class Pictures(tf.Module):
    """JPEG in."""

    @tf.function(input_signature=[more_models.spec([None], tf.string, "b")])
    def call(self, b):
        def mean(raw):
            return tf.reduce_mean(tf.cast(tf.io.decode_jpeg(raw, channels=3), tf.float32))

        return {"mean": tf.map_fn(mean, b, fn_output_signature=tf.float32)}


class Top(tf.Module):
    """The three largest."""

    @tf.function(input_signature=[more_models.spec([None, 8], tf.float32, "x")])
    def call(self, x):
        values, places = tf.math.top_k(x, 3)
        return {"values": values, "idx": places}


class Boxes(tf.Module):
    """Non-maximum suppression."""

    @tf.function(
        input_signature=[
            more_models.spec([None, 4], tf.float32, "boxes"),
            more_models.spec([None], tf.float32, "scores"),
        ]
    )
    def call(self, boxes, scores):
        return {"sel": tf.image.non_max_suppression(boxes, scores, 5, 0.5)}


class Numbers(tf.Module):
    """Arithmetic on types that OpenVINO computes otherwise."""

    @tf.function(
        input_signature=[
            more_models.spec([None], tf.uint8, "a"),
            more_models.spec([None], tf.bool, "b"),
            more_models.spec([None], tf.float16, "h"),
            more_models.spec([None], tf.int64, "l"),
            more_models.spec([None], tf.float64, "d"),
        ]
    )
    def call(self, a, b, h, l, d):  # noqa: E741
        return {"a": a + 1, "b": tf.logical_not(b), "h": h * 2, "l": l + 1, "d": d * 2}


class Spectrum(tf.Module):
    """Complex numbers within."""

    @tf.function(input_signature=[more_models.spec([None, 16], tf.float32, "x")])
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

    @tf.function(input_signature=[more_models.spec([None, 8, 8, 3], tf.float32, "x")])
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

        signature = [more_models.spec([None], tf.float32, "x")]
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


def make(root):
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
        ((_, _, outputs),) = more_models.ask(version, ["serving_default"], [inputs])
        more_models.keep(root, name, "serving_default", inputs, outputs)
    checked = Checked()
    checked.kept = checked.functions()
    tf.saved_model.save(checked, str(root / "trap_checked" / "1"), signatures=checked.kept)
    parsing_lite(root)
