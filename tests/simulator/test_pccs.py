"""The simulated PCCS answers as Intel's does, in the forms that dcap-qvl's client asks for."""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from urllib.parse import unquote

import dcap_qvl
import pytest
from cryptography import x509

from sealserve.address import Address
from sealserve.attestation.collateral import Collateral
from sealserve.errors import Unavailable
from sealserve.simulator.pccs import Pccs, answer
from tests.simulated import ISSUED, platform, report

FMSPC = "51494D000000"


@functools.cache
def collateral() -> Collateral:
    return Collateral.from_json(platform().collateral(ISSUED))


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"/tdx/certification/v4/tcb?fmspc={FMSPC}", 200),
        (f"/tdx/certification/v4/tcb?fmspc={FMSPC.lower()}&update=early", 200),
        (f"/tdx/certification/v4/tcb?fmspc={FMSPC}&update=never", 400),
        ("/tdx/certification/v4/tcb?fmspc=000000000000", 404),
        ("/tdx/certification/v4/tcb", 400),
        ("/tdx/certification/v4/qe/identity", 200),
        ("/sgx/certification/v4/pckcrl?ca=platform&encoding=der", 200),
        ("/sgx/certification/v4/pckcrl?ca=processor", 404),
        ("/sgx/certification/v4/pckcrl?ca=other", 400),
        ("/sgx/certification/v4/pckcrl?ca=platform&encoding=xml", 400),
        ("/sgx/certification/v4/rootcacrl", 200),
        ("/", 404),
        ("//[", 400),
    ],
)
def test_each_path(target: str, status: int) -> None:
    assert answer(collateral(), target).status == status


def test_a_crl_comes_in_der_or_pem_with_its_chain() -> None:
    path = "/sgx/certification/v4/pckcrl?ca=platform"
    der = answer(collateral(), f"{path}&encoding=der")
    pem = answer(collateral(), path)
    assert x509.load_der_x509_crl(der.body) == x509.load_pem_x509_crl(pem.body)
    chain = der.headers["SGX-PCK-CRL-Issuer-Chain"]
    assert "\n" not in chain
    assert unquote(chain) == collateral().parts["pck_crl_issuer_chain"]


def test_another_projects_client_gets_the_same() -> None:
    async def ask(url: str) -> Any:
        return await dcap_qvl.get_collateral(url, platform().quote(report()))

    with Pccs(collateral, Address("127.0.0.1", 0)) as server:
        found = asyncio.run(ask(server.url))
    assert found.tcb_info == collateral().parts["tcb_info"]
    assert found.qe_identity_signature.hex() == collateral().parts["qe_identity_signature"]
    assert found.root_ca_crl.hex() == collateral().parts["root_ca_crl"]
    assert found.pck_crl.hex() == collateral().parts["pck_crl"]
    assert found.pck_crl_issuer_chain == collateral().parts["pck_crl_issuer_chain"]


def test_a_taken_address_is_told() -> None:
    with (
        Pccs(collateral, Address("127.0.0.1", 0)) as server,
        pytest.raises(Unavailable) as caught,
    ):
        Pccs(collateral, server.address)
    assert caught.value.code == "simulator.pccs_address"
