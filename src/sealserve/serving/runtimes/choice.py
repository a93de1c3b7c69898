"""Which runtime serves a signature: decided at load, by proof, and said with the reason.

Rules this module keeps:

* OpenVINO serves what it has been shown to compute as TensorFlow does. The rest
  goes to TensorFlow where that is installed, and is refused with the reason where not.
* The choice is made once, when a version is loaded; a request never changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealserve.errors import InputError, SealserveError
from sealserve.logs import Log
from sealserve.serving.config import RuntimeConfig
from sealserve.serving.runtimes.base import Model, Runtime
from sealserve.serving.runtimes.openvino import OpenVinoRuntime
from sealserve.serving.runtimes.tensorflow import TensorFlowRuntime, find_interpreter
from sealserve.wire.tensors import Array

__all__ = ["Choice", "ChoosingRuntime"]


@dataclass(frozen=True)
class Choice:
    """Who serves a signature.

    Attributes:
        signature: its key.
        runtime: ``openvino``, ``tensorflow``, or None when nobody does.
        reason: why.
        tuning: how it is run, and why so.
    """

    signature: str
    runtime: str | None
    reason: str
    tuning: str = ""


class ChoosingRuntime(Runtime):
    """OpenVINO where it is proved right, TensorFlow where it is not."""

    name = "openvino, tensorflow"

    def __init__(self, config: RuntimeConfig, log: Log) -> None:
        self._log = log
        self._openvino = OpenVinoRuntime(config, log)
        interpreter, reason = find_interpreter(config)
        self._tensorflow = TensorFlowRuntime(interpreter, config, log) if interpreter else None
        self._missing = reason
        if self._tensorflow is None:
            self.name = self._openvino.name
        log.info("runtime", runtime="tensorflow", used=interpreter is not None, reason=reason)

    def load(self, path: Path) -> Model:
        model, choices = self.choose(path)
        for choice in choices:
            say = self._log.info if choice.runtime else self._log.warning
            say("signature", path=str(path), signature=choice.signature,
                runtime=choice.runtime, reason=choice.reason, tuning=choice.tuning)  # fmt: skip
        if not model.signatures:
            model.close()
            raise _unservable(model.refused, path)
        return model

    def give_up(self) -> None:
        self._openvino.give_up()

    def choose(self, path: Path) -> tuple[Model, list[Choice]]:
        """Load a version and say who serves what; the model may serve nothing.

        Raises:
            SealserveError: a ``servable.*`` or ``file.*`` code: it is no model.
        """
        proved = self._openvino.load(path)
        refused = dict(proved.refused)
        rest = None
        if self._tensorflow is None:
            refused = {key: self._alone(first) for key, first in refused.items()}
        elif refused:
            try:
                rest = self._tensorflow.load(path, proved.definitions, refused.keys())
            except SealserveError as error:
                refused = {
                    key: InputError("servable.no_runtime", f"{first.message}; {error.message}")
                    for key, first in refused.items()
                }
        choices = [
            Choice(
                key, self._openvino.name, "its conversion is proved equal", str(proved.tuning[key])
            )
            for key in proved.signatures
        ]
        runtime = TensorFlowRuntime.name if rest else None
        tuning = {key: str(each) for key, each in rest.tuning.items()} if rest else {}
        choices += [
            Choice(key, runtime, why.message, tuning.get(key, "")) for key, why in refused.items()
        ]
        choices.sort(key=lambda choice: choice.signature)
        if rest is None:
            proved.refused = refused
            return proved, choices
        return _SharedModel(proved, rest), choices

    def _alone(self, first: SealserveError) -> SealserveError:
        """The reason why OpenVINO does not serve it, and why nothing else does."""
        return type(first)(
            first.code,
            f"{first.message}; and there is no TensorFlow runtime to serve it: {self._missing}",
            where=first.where,
            hint=first.hint,
        )


class _SharedModel(Model):
    """One version whose signatures two runtimes share."""

    def __init__(self, *parts: Model) -> None:
        self.definitions = parts[0].definitions
        self.signatures = {key: each for part in parts for key, each in part.signatures.items()}
        self.refused = {}
        self.tuning = {key: each for part in parts for key, each in part.tuning.items()}
        self.stateful = parts[0].stateful
        self._parts = parts

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._part(signature).run(signature, inputs, outputs)

    def made_up(self, signature: str, number: int) -> Mapping[str, Array] | None:
        return self._part(signature).made_up(signature, number)

    def for_warm_up(self) -> Model:
        return _SharedModel(*(part.for_warm_up() for part in self._parts))

    def _part(self, signature: str) -> Model:
        return next(part for part in self._parts if signature in part.signatures)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _unservable(refused: Mapping[str, SealserveError], path: Path) -> SealserveError:
    if len(refused) == 1:
        return next(iter(refused.values()))
    reasons = "; ".join(f"{key}: {error.message}" for key, error in refused.items())
    return InputError(
        "servable.no_signature",
        f"the model has no signature that can be served. {reasons}".strip(),
        where=str(path),
    )
