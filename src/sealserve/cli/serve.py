"""``sealserve serve``: the model server, with TensorFlow Serving's own command line."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

__all__ = ["app", "start"]

app = typer.Typer(rich_markup_mode="rich")

_HELP = """Serve models over the TensorFlow Serving API: gRPC and REST, TLS on both.

The flags are those of tensorflow_model_server, in its syntax: --name=value, and
a bare --name for a switch. Without a TLS identity the server does not start,
unless --insecure asks for plaintext.

Examples:

  sealserve serve --model_name=resnet50 --model_base_path=/models/resnet50 \\
      --port=8500 --rest_api_port=8501 --ssl_config_file=ssl.cfg

  sealserve serve --model_config_file=/mnt/models/models.config \\
      --ssl_config_file=/mnt/models/tls/ssl.cfg

SEALSERVE_SSL_CONFIG_FILE, SEALSERVE_TLS_IDENTITY_FILE and SEALSERVE_ACCESS_FILE in
the environment stand for the flags of their names, so that an argument line that
was written for TensorFlow Serving can stay as it is. Flags win.

SIGTERM, Ctrl-C or the end of its terminal let the requests under way finish,
then the server ends with status 0.
"""


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    # `sealserve --help` shows this line; `sealserve serve --help` all of _HELP.
    help="Serve models over the TensorFlow Serving API.",
)
def serve(context: typer.Context) -> None:
    """Parse TensorFlow Serving's flags and run the server."""
    from sealserve.serving import flags

    if "--help" in context.args or "-h" in context.args:
        typer.echo(f"{_HELP}\n{flags.usage()}")
        return
    if "--version" in context.args or "--version=true" in context.args:
        from sealserve import __version__

        typer.echo(f"sealserve {__version__}")
        return
    start(context.args)


def start(arguments: Sequence[str]) -> None:
    """Run the server until it is told to stop.

    Args:
        arguments: flags of TensorFlow Serving and our own.
    """
    from sealserve.serving import flags
    from sealserve.serving.surroundings import with_variables

    config = flags.parse(with_variables(arguments, os.environ))
    # gRPC's core would write lines of its own between the JSON lines of the log,
    # one for each stranger who asks for an unknown server name.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from sealserve.serving import server

    server.run(config)
