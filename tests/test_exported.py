"""The public names: adding one is a decision, losing one breaks somebody."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import sealserve
import sealserve.client

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(sealserve.__path__, "sealserve.")
    if not name.endswith(("_pb2", "__main__")) and ".migrations" not in name
]


def test_the_clients_names() -> None:
    assert sorted(sealserve.client.__all__) == [
        "Anchor",
        "BenchResult",
        "Collateral",
        "Connection",
        "INTEL",
        "Policy",
        "TensorSpec",
        "Trust",
        "TrustReport",
        "Verifier",
        "connect_attested",
        "connect_classic",
        "fetch_certificate",
        "run_bench",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_a_module_exports_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} says nothing about itself"
    for exported in getattr(module, "__all__", ()):
        assert hasattr(module, exported), f"{name}.{exported}"
