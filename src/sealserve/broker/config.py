"""``broker.yaml``: what an operator chooses, in the broker's directory.

Rules this module keeps:

* A field stands here once, with its default and its description; `config_file` writes
  the commented file from them. Without the file every default holds.
* An unknown field, a wrong type and a value out of range are errors that name
  the field. No password stands in the file: one in a URL is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

import sqlalchemy
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sealserve.address import Address
from sealserve.broker.challenges import CAPACITY
from sealserve.broker.endpoints import check_collector, check_database, check_vault
from sealserve.errors import InputError

__all__ = [
    "AdminConfig",
    "AuditConfig",
    "BrokerConfig",
    "KekConfig",
    "KekProvider",
    "LimitsConfig",
    "StoreConfig",
    "TelemetryConfig",
    "TwoPerson",
]


TwoPerson = Literal["destroy", "loosen"]
"""What can be put under two people's control."""


KekProvider = Literal["file", "pkcs11", "vault"]
"""Where the key-encryption key can be."""

_KEK_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "file": ("file",),
    "pkcs11": ("pkcs11_module", "pkcs11_token", "pkcs11_key", "pkcs11_pin_file"),
    "vault": ("vault_url", "vault_mount", "vault_key", "vault_token_file"),
}


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, hide_input_in_errors=True
    )


class StoreConfig(_Section):
    """Where secrets, resources, leases and the audit chain are kept."""

    url: Annotated[
        str,
        Field(
            max_length=1024,
            description="sqlite:///FILE in this directory for one broker process, or"
            " postgresql://USER@HOST/DATABASE?sslmode=verify-full for several."
            " No password here: PostgreSQL's client reads PGPASSFILE or ~/.pgpass, or a client"
            " certificate (sslcert, sslkey), or the server knows the user of a UNIX socket"
            " (postgresql:///DATABASE?host=/run/postgresql).",
        ),
    ] = "sqlite:///broker.db"
    timeout_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=60,
            description="How long anything may wait for the database: for a connection,"
            " a lock or an answer.",
        ),
    ] = 5
    connections: Annotated[
        int,
        Field(ge=2, le=64, description="How many connections one process opens to PostgreSQL."),
    ] = 10

    @field_validator("url")
    @classmethod
    def _usable(cls, text: str) -> str:
        check_database(text)
        return text

    @property
    def shared(self) -> bool:
        """Whether several brokers may use this store at once."""
        return self.location.get_backend_name() == "postgresql"

    @property
    def location(self) -> sqlalchemy.URL:
        """The URL, parsed."""
        return sqlalchemy.make_url(self.url)


class KekConfig(_Section):
    """The key-encryption key (KEK), under which everything secret is wrapped."""

    provider: Annotated[
        KekProvider,
        Field(
            description="Where the key is: file (in this directory), pkcs11 (an HSM) or vault"
            " (the transit engine of HashiCorp Vault or OpenBao). It is not changed here but by"
            " `sealserve broker rekey`, which wraps everything anew."
        ),
    ] = "file"
    file: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            description="(file) its name in this directory; 32 bytes, mode 0600.",
        ),
    ] = "kek"
    pkcs11_module: Annotated[
        str, Field(max_length=1024, description="(pkcs11) the library of the HSM's maker.")
    ] = ""
    pkcs11_token: Annotated[
        str, Field(max_length=32, description="(pkcs11) the token's label.")
    ] = ""
    pkcs11_key: Annotated[
        str,
        Field(
            max_length=255,
            description="(pkcs11) the label of an AES-256 key, sensitive and not extractable.",
        ),
    ] = ""
    pkcs11_pin_file: Annotated[
        str,
        Field(
            max_length=1024,
            description="(pkcs11) a file (0600) with the user's PIN, or fd:N for a descriptor"
            " that is open when the broker starts.",
        ),
    ] = ""
    vault_url: Annotated[
        str,
        Field(
            max_length=1024,
            description="(vault) https://HOST:PORT; plain http for this machine only.",
        ),
    ] = ""
    vault_namespace: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9._/-]*$", max_length=255, description="(vault) if used.")
    ] = ""
    vault_mount: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._/-]+$",
            max_length=255,
            description="(vault) where the transit engine is mounted.",
        ),
    ] = "transit"
    vault_key: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._-]*$",
            max_length=255,
            description="(vault) the key's name; of type aes256-gcm96, not derived.",
        ),
    ] = ""
    vault_token_file: Annotated[
        str,
        Field(
            max_length=1024,
            description="(vault) a file (0600) with the token, read for each call: Vault's agent"
            " may renew it there.",
        ),
    ] = ""
    vault_ca_file: Annotated[
        str,
        Field(max_length=1024, description='(vault) its CA (PEM); "" for those of the system.'),
    ] = ""
    timeout_seconds: Annotated[
        int, Field(ge=1, le=60, description="(vault) how long one call may take.")
    ] = 5

    @field_validator("vault_url")
    @classmethod
    def _reachable(cls, text: str) -> str:
        if text:
            check_vault(text)
        return text

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name in _KEK_NEEDS[self.provider]:
            if not getattr(self, name):
                raise ValueError(f"the provider {self.provider} needs {name}")
        return self


class AdminConfig(_Section):
    """The administration port, and what needs two people; who may call it is in the database."""

    listen: Annotated[
        str,
        Field(
            max_length=300,
            description="Administration by gRPC under mutual TLS: HOST:PORT, never the guests'"
            ' port; "" for none. `sealserve broker principal` says who may call it.',
        ),
    ] = ""
    two_person: Annotated[
        tuple[TwoPerson, ...],
        Field(
            max_length=2,
            description="What a second administrator must approve: destroy (a version of a"
            " secret), loosen (a policy). If it names anything, adding or removing an"
            " administrator needs two as well, from the first one on. The command line on"
            " the broker's directory is held to it too.",
        ),
    ] = ()
    proposal_hours: Annotated[
        int, Field(ge=1, le=24 * 30, description="How long a proposal waits for the second person.")
    ] = 72

    page_socket: Annotated[
        str,
        Field(
            max_length=107,
            description="The operator's page and metrics on this machine: a UNIX socket that only"
            " the broker's user may open, relative to this directory (operator.sock);"
            ' "" for none.',
        ),
    ] = ""
    page_listen: Annotated[
        str,
        Field(
            max_length=300,
            description="The same by HTTPS, for principals with their client certificates:"
            ' HOST:PORT, never the guests\' port; "" for none.',
        ),
    ] = ""

    @field_validator("listen", "page_listen")
    @classmethod
    def _address(cls, text: str) -> str:
        if text:
            try:
                Address.parse(text, where="broker.yaml")
            except InputError:
                raise ValueError("must be HOST:PORT") from None
        return text


class LimitsConfig(_Section):
    """How much one guest, or all guests of one resource, may ask."""

    peer_calls_per_second: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Calls of one address (an IPv6 host counts as its /64), in the long run."
            " A guest that comes up makes two, and two more whenever it renews its lease.",
        ),
    ] = 100
    peer_burst: Annotated[
        int, Field(ge=1, le=1_000_000, description="How many it may make at once.")
    ] = 500
    resource_releases_per_second: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Releases of one resource to all guests that its policy accepts.",
        ),
    ] = 200
    resource_burst: Annotated[
        int, Field(ge=1, le=1_000_000, description="How many there may be at once.")
    ] = 1000
    challenges: Annotated[
        int,
        Field(ge=64, le=1_000_000, description="How many challenges are kept for two minutes."),
    ] = CAPACITY


class AuditConfig(_Section):
    """The audit chain, and how often the broker signs where it stands."""

    checkpoint_lines: Annotated[
        int, Field(ge=1, le=1_000_000, description="Sign after so many lines.")
    ] = 1000
    checkpoint_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=86_400,
            description="Sign after so long, if there are new lines. What is cut off after the"
            " last signature shows only against a head that was kept elsewhere.",
        ),
    ] = 300


class TelemetryConfig(_Section):
    """Traces of decisions; metrics are on the operator's page."""

    otlp_endpoint: Annotated[
        str,
        Field(
            max_length=300,
            pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+)?$",
            description="An OpenTelemetry collector, by OTLP over gRPC: https://HOST:4317, or"
            ' http:// for one on this machine; "" for none. Spans hold codes and times only.'
            " Needs pip install 'sealserve[otel]'.",
        ),
    ] = ""
    trace_percent: Annotated[
        int, Field(ge=0, le=100, description="How many of a hundred calls are traced.")
    ] = 100

    @field_validator("otlp_endpoint")
    @classmethod
    def _plaintext_stays_here(cls, text: str) -> str:
        check_collector(text)
        return text


class BrokerConfig(_Section):
    """All of ``broker.yaml``, checked."""

    store: StoreConfig = Field(default_factory=StoreConfig)
    kek: KekConfig = Field(default_factory=KekConfig)
    admin: AdminConfig = Field(default_factory=AdminConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
