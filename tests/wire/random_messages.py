"""Messages filled at random, by reflection; run by us and by the oracle alike.

``random_messages.py`` run in the oracle speaks JSON, a line a step: it is told our fields
of each message, gives messages of its own that hold only those, gets back what we made of
them together with some of ours, and says what is not the same.
"""

import base64
import json
import os
import random
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

EACH = 12
DEPTH = 5
MODULES = (
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tensorflow_serving.apis.get_model_metadata_pb2",
    "tensorflow_serving.apis.get_model_status_pb2",
    "tensorflow_serving.apis.model_management_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
)


def fill(rng: random.Random, message: Any, fields: dict[str, list[int]], depth: int = DEPTH) -> Any:
    """Set some of the fields of a message that both sides know."""
    for field in message.DESCRIPTOR.fields:
        known = fields.get(message.DESCRIPTOR.full_name, [])
        if field.number not in known or rng.random() < 0.4:
            continue
        inner = field.message_type
        if inner is None:
            if field.is_repeated:
                getattr(message, field.name).extend(
                    value(rng, field) for _ in range(rng.randrange(3))
                )
            else:
                setattr(message, field.name, value(rng, field))
        elif depth and inner.full_name.startswith(("tensorflow.", "google.protobuf.Int64Value")):
            put(rng, message, field, fields, depth)
    return message


def put(
    rng: random.Random, message: Any, field: Any, fields: dict[str, list[int]], depth: int
) -> None:
    """Set a field that holds messages: one, several, or a map."""
    inner = field.message_type
    if inner.GetOptions().map_entry:
        entries = getattr(message, field.name)
        for _ in range(rng.randrange(3)):
            key = value(rng, inner.fields_by_name["key"])
            content = inner.fields_by_name["value"]
            if content.message_type is None:
                entries[key] = value(rng, content)
            else:
                fill(rng, entries[key], fields, depth - 1)
    elif field.is_repeated:
        for _ in range(rng.randrange(3)):
            fill(rng, getattr(message, field.name).add(), fields, depth - 1)
    else:
        one = fill(rng, getattr(message, field.name), fields, depth - 1)
        if not one.ByteSize():  # set or not: where one side has bytes, that is the same
            message.ClearField(field.name)


def value(rng: random.Random, field: Any) -> Any:
    """A value of a field's type, the awkward ones among them."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([each.number for each in field.enum_type.values])
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(["a", "\u00fc", "serving_default", "x" * 200])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -0.0, 1.5, float("inf"), -(2.0**-100), 2.0**100])
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return rng.choice([0, 1, least, most, rng.randint(least, most)])


def packed(messages: list[Any]) -> list[str]:
    """Messages as lines can hold them."""
    return [base64.b64encode(each.SerializeToString()).decode() for each in messages]


def unpacked(kind: Any, lines: list[str]) -> list[Any]:
    """And back, with what the reader does not know taken out."""
    messages = [kind.FromString(base64.b64decode(line)) for line in lines]
    for each in messages:
        each.DiscardUnknownFields()
    return messages


def shape(field: Any) -> list[Any]:
    """What of a field stands on the wire: a message is its bytes, an enum its number."""
    kinds = {field.TYPE_MESSAGE: field.TYPE_BYTES, field.TYPE_ENUM: field.TYPE_INT32}
    return [field.name, kinds.get(field.type, field.type), field.is_repeated]


def oracle() -> None:
    """The other side."""
    import importlib

    from google.protobuf import descriptor_pool, message_factory

    for module in MODULES:
        importlib.import_module(module)
    pool, rng = descriptor_pool.Default(), random.Random(11)
    told = json.loads(sys.stdin.readline())
    unknown, differing, messages, kinds = [], [], [], {}
    for name, fields in told.items():
        try:
            theirs = pool.FindMessageTypeByName(name)
        except KeyError:
            unknown.append(name)
            continue
        kinds[name] = message_factory.GetMessageClass(theirs)
        for number, ours in fields.items():
            found = theirs.fields_by_number.get(int(number))
            if found is None or shape(found) != ours:
                differing.append([name, number, ours, found and shape(found)])
            elif found.message_type is not None:
                messages.append([name, int(number)])
    numbers = {name: [int(number) for number in fields] for name, fields in told.items()}
    numbers |= {"google.protobuf.Int64Value": [1]}
    made = {name: [fill(rng, kind(), numbers) for _ in range(EACH)] for name, kind in kinds.items()}
    print(
        json.dumps(
            {
                "unknown": unknown,
                "differing": differing,
                "messages": messages,
                "made": {name: packed(each) for name, each in made.items()},
            }
        ),
        flush=True,
    )
    answer = json.loads(sys.stdin.readline())
    broken = [
        name for name, each in made.items() if unpacked(kinds[name], answer["back"][name]) != each
    ]
    again = {name: packed(unpacked(kinds[name], lines)) for name, lines in answer["ours"].items()}
    print(json.dumps({"broken": broken, "again": again}), flush=True)


if __name__ == "__main__":
    oracle()
