"""``sealserve entrypoint``: the entry point of TensorFlow Serving's image, in its own words."""

from __future__ import annotations

import os

import typer

from sealserve.cli.serve import start

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="rich")

_HELP = """Serve one model, as the entry point of TensorFlow Serving's image does.

MODEL_NAME (model) and MODEL_BASE_PATH (/models) name the model; gRPC is on port
8500 and REST on 8501. Further arguments are flags of `sealserve serve`; they win.

Under the name tf_serving_entrypoint.sh the program is this command, under the
name tensorflow_model_server it is `sealserve serve`: two links in an image make
its old argument lines work. TLS comes from SEALSERVE_SSL_CONFIG_FILE.

Example: MODEL_NAME=resnet50 sealserve entrypoint --ssl_config_file=ssl.cfg
"""


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help=_HELP,
)
def entrypoint(context: typer.Context) -> None:
    """Make the image's line and run the server."""
    from sealserve.serving.surroundings import image_line

    if "--help" in context.args or "-h" in context.args:
        typer.echo(_HELP)
        return
    start(image_line(context.args, os.environ))
