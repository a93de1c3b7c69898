"""The descriptor pool that all of sealserve's messages live in.

The generated ``*_pb2.py`` modules import this module under the name they would
otherwise give protobuf's own ``descriptor_pool`` and call `Default` on it.
"""

from __future__ import annotations

from google.protobuf import any_pb2, descriptor_pool, wrappers_pb2

__all__ = ["Default"]

_POOL = descriptor_pool.DescriptorPool()
for _well_known in (any_pb2, wrappers_pb2):
    _POOL.AddSerializedFile(_well_known.DESCRIPTOR.serialized_pb)


def Default() -> descriptor_pool.DescriptorPool:  # noqa: N802 - protobuf's name for it
    """The pool itself; named as the generated code expects."""
    return _POOL
