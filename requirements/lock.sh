#!/bin/sh
# Write the lock files anew from pyproject.toml: every version, every hash, no index.
# Needs uv on the PATH. Run it from the repository's root, then review the diff.
set -eu
lock() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header "$@"
}
lock pyproject.toml -o requirements/client.txt
lock pyproject.toml --extra serve -o requirements/server.txt
lock pyproject.toml --extra demo -o requirements/demo.txt
lock pyproject.toml --extra serve --extra volume --extra provenance -o requirements/provenance.txt
lock pyproject.toml --extra demo --extra otel --extra pkcs11 --extra postgres --extra provenance --group dev -o requirements/dev.txt
lock pyproject.toml --extra serve --extra tensorflow -o requirements/tensorflow.txt
lock pyproject.toml --extra serve --extra quantize -o requirements/quantize.txt
lock requirements/build.in -o requirements/build.txt
lock requirements/fuzz.in -o requirements/fuzz.txt
lock requirements/oracle.in --override requirements/oracle-overrides.txt -o requirements/oracle.txt
