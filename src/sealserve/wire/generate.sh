#!/bin/sh
# Turn the .proto files into *_pb2.py and *_pb2.pyi whose messages live in the
# private pool. Run by `make wire` with the virtual environment's Python as $1.
set -eu
cd "$(dirname "$0")/../.."
protos=$(find sealserve/wire -name '*.proto' | sort)
# shellcheck disable=SC2086
"$1" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $protos
for module in $(find sealserve/wire -name '*_pb2.py'); do
    sed -i 's/^from google\.protobuf import descriptor_pool as/from sealserve.wire import private_pool as/' "$module"
done
