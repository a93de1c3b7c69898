"""A graph compiled one way, and made anew after an inference that failed.

OpenVINO works out the sizes within a graph again only where they changed since the last
inference that succeeded. One that fails half-way leaves sizes of its own behind, and later
requests of the earlier shapes are then computed with those: they get rows too many, which are
the failed request's, or fail in their turn (2026.4).

Rules this module keeps:

* A graph in which an inference has failed computes nothing more; it is compiled again before
  the next one. Where that fails, the request that asked for it is told, and the next one tries.
* An inference that may fail - of shapes that were not computed before, or in a graph whose
  sizes follow from values - runs alone, so that nobody else uses the graph before that is known.
* Shapes that failed are refused from then on without trying, so that repeating them costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import openvino as ov

from sealserve.errors import InputError, Unavailable
from sealserve.serving.runtimes.graphs import reason_of
from sealserve.wire.tensors import Array

__all__ = ["Lane", "Way"]

_MOST_SHAPES: Final = 4096

Shapes = tuple[tuple[int, ...], ...]


class Way:
    """A compiled graph.

    Args:
        compile_graph: compiles it, now and after a failure.
        by_values: sizes within it follow from values, too.
    """

    def __init__(self, compile_graph: Callable[[], ov.CompiledModel], *, by_values: bool) -> None:
        self.model = compile_graph()
        self.generation = 0
        self._compile = compile_graph
        self._by_values = by_values
        self._changed = threading.Condition()
        self._running = 0
        self._trying = False
        self._spoilt = False
        self._known: set[Shapes] = set()
        self._failed: dict[Shapes, str] = {}

    @contextmanager
    def computing(self, shapes: Shapes) -> Iterator[None]:
        """While an inference runs; it runs alone if it may fail.

        Raises:
            InputError: ``request.inference_failed``.
        """
        with self._changed:
            if shapes in self._failed:
                raise _failed(self._failed[shapes])
            self._changed.wait_for(lambda: not self._trying)
            trying = self._spoilt or self._by_values or shapes not in self._known
            if trying:
                self._trying = True
                self._changed.wait_for(lambda: not self._running)
            self._running += 1
        try:
            if trying and self._spoilt:
                self._begin_anew()
            yield from self._noting(shapes)
        finally:
            with self._changed:
                self._running -= 1
                if trying:
                    self._trying = False
                self._changed.notify_all()

    def _noting(self, shapes: Shapes) -> Iterator[None]:
        """Remember how an inference ends."""
        try:
            yield
        except RuntimeError as error:
            reason = reason_of(error)
            self._spoilt = True
            if not self._by_values and "memory" not in reason and "alloc" not in reason:
                _make_room(self._failed)
                self._failed[shapes] = reason
            raise _failed(reason) from None
        if shapes not in self._known:
            _make_room(self._known)
            self._known.add(shapes)

    def _begin_anew(self) -> None:
        try:
            self.model = self._compile()
        except RuntimeError as error:
            raise Unavailable(
                "servable.runtime_cannot",
                f"OpenVINO cannot compile this signature again: {reason_of(error)}",
            ) from None
        self.generation += 1
        self._spoilt = False


class Lane:
    """What runs one inference at a time of a way."""

    def __init__(self, way: Way) -> None:
        # The way comes before the request, and so goes before it: the end of the last request
        # gives back the weights without the interpreter's lock, that of the compiled graph with it.
        self._way = way
        self._generation = way.generation
        self._request = way.model.create_infer_request()

    @contextmanager
    def infer(self, feeds: Mapping[int, Array]) -> Iterator[Callable[[int], Array]]:
        """Compute; gives what looks at an output, which is to be copied before the end.

        Raises:
            InputError: ``request.inference_failed``.
        """
        with self._way.computing(tuple(each.shape for each in feeds.values())):
            if self._generation != self._way.generation:
                self._generation = self._way.generation
                self._request = self._way.model.create_infer_request()
            # The inputs are copied: where nothing of a graph is left between an input and an
            # output, the plugin goes on writing into the memory of an earlier request's input.
            self._request.infer(dict(feeds), share_outputs=True)
        yield self._output

    def _output(self, position: int) -> Any:
        return self._request.get_output_tensor(position).data


def _make_room(shapes: set[Shapes] | dict[Shapes, str]) -> None:
    if len(shapes) >= _MOST_SHAPES:
        shapes.clear()


def _failed(reason: str) -> InputError:
    return InputError(
        "request.inference_failed", f"the inputs cannot be computed together: {reason}"
    )
