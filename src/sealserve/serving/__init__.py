"""The model server: TensorFlow Serving's API over sealed models.

``flags -> config -> catalog -> runtimes -> dataplane -> grpc_front, rest_front``,
with ``tls`` beside them. One transport-free dataplane stands under two thin
fronts. The server gets a directory and TLS identities, and knows nothing of
where they come from.
"""

from __future__ import annotations

__all__: list[str] = []
