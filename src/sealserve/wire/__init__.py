"""Wire formats: our own wire-compatible definitions, in a private pool.

The ``.proto`` files beside this module are written by us from interface facts
(names, field numbers, types): TensorFlow Serving's API, the parts of
TensorFlow's graph format that model import needs, and the broker's protocol.
``make wire`` turns them into the ``*_pb2.py`` modules.

Their descriptors live in a pool of their own (`sealserve.wire.private_pool`),
because TensorFlow registers messages of the same names in protobuf's default
pool: both can then be imported into one process, in either order.
"""
