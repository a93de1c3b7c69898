"""What a container gives the server beside its arguments: variables of its environment.

So a TensorFlow Serving container's argument line can stay as it is and be served over TLS.

Rules this module keeps:

* A variable can add security and never take any away: there is none for ``--insecure``.
* A variable stands before the arguments: a flag that is given twice counts last.
* An empty variable is an error, not "unset": a path that did not expand must not go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sealserve.errors import InputError

__all__ = ["VARIABLES", "image_line", "with_variables"]

VARIABLES: Mapping[str, str] = {
    "SEALSERVE_SSL_CONFIG_FILE": "ssl_config_file",
    "SEALSERVE_TLS_IDENTITY_FILE": "tls_identity_file",
    "SEALSERVE_ACCESS_FILE": "access_file",
}
"""Variable -> the flag whose value it is."""

_IMAGE = {"MODEL_NAME": "model", "MODEL_BASE_PATH": "/models"}
_IMAGE_PORTS = ("--port=8500", "--rest_api_port=8501")


def with_variables(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The flags that stand in the environment, then those of the command line.

    Raises:
        InputError: ``flag.value``: a variable is empty.
    """
    found = []
    for variable, flag in VARIABLES.items():
        if variable not in environment:
            continue
        if not environment[variable]:
            raise InputError(
                "flag.value", "the variable is empty", where=variable, hint="give a path, or unset"
            )
        found.append(f"--{flag}={environment[variable]}")
    return [*found, *argv]


def image_line(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The line that the entry point of TensorFlow Serving's image makes.

    Args:
        argv: the container's arguments; they come last, and so win.
        environment: ``MODEL_NAME`` and ``MODEL_BASE_PATH``, with the image's defaults.
    """
    name, base = (environment.get(variable) or usual for variable, usual in _IMAGE.items())
    return [*_IMAGE_PORTS, f"--model_name={name}", f"--model_base_path={base}/{name}", *argv]
