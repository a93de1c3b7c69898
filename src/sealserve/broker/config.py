"""``broker.yaml``: what an operator chooses, in the broker's directory.

Rules this module keeps:

* A field stands here once, with its default and its description; `render` writes
  the commented file from them. Without the file every default holds.
* An unknown field, a wrong type and a value out of range are errors that name
  the field. No password stands in the file: one in a URL is refused.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import textwrap
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import sqlalchemy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy.exc import ArgumentError

from sealserve import strict_yaml
from sealserve.address import Address
from sealserve.broker.challenges import CAPACITY
from sealserve.errors import InputError, Refused
from sealserve.files import read_limited
from sealserve.https import is_this_machine

__all__ = [
    "CONFIG_FILE",
    "AdminConfig",
    "AuditConfig",
    "BrokerConfig",
    "KekConfig",
    "KekProvider",
    "LimitsConfig",
    "StoreConfig",
    "TelemetryConfig",
    "TwoPerson",
    "load",
    "parse",
    "render",
    "with_kek",
    "with_store",
]

CONFIG_FILE: Final = "broker.yaml"
"""The file's name in the broker's directory."""

_MAX_BYTES: Final = 64 * 1024
_MAX_NODES: Final = 1024
_WIDTH: Final = 98
# Others could lead to another server than the URL names (hostaddr, service), or undo
# what the broker sets (options).
_PARAMETERS: Final = frozenset(
    (
        "host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile",
        "target_session_attrs",
    )
)  # fmt: skip
_VERIFIED: Final = ("verify-ca", "verify-full")

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
        try:
            url = sqlalchemy.make_url(text)
        except (ArgumentError, ValueError):
            raise ValueError("is not a database URL") from None
        if url.get_backend_name() == "sqlite":
            _check_sqlite(url)
        elif url.drivername == "postgresql":
            _check_postgresql(url)
        else:
            raise ValueError("must begin with sqlite:/// or postgresql://")
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
        if not text:
            return text
        try:
            parts = urllib.parse.urlsplit(text)
            invalid = parts.port == 0 or not parts.hostname or bool(parts.query or parts.fragment)
        except ValueError:
            raise ValueError("is not the address of a service") from None
        if invalid or not text.isascii() or not text.isprintable() or " " in text or "@" in text:
            raise ValueError("is not the address of a service")
        here = is_this_machine(parts.hostname or "")
        if parts.scheme != "https" and not (parts.scheme == "http" and here):
            raise ValueError("must begin with https://, since Vault is another machine")
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
                Address.parse(text, where=CONFIG_FILE)
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
        if text.startswith("http://"):
            host = urllib.parse.urlsplit(text).hostname or ""
            if not _is_local(host):
                raise ValueError("must be https://, since the collector is another machine")
        return text


class BrokerConfig(_Section):
    """All of ``broker.yaml``, checked."""

    store: StoreConfig = Field(default_factory=StoreConfig)
    kek: KekConfig = Field(default_factory=KekConfig)
    admin: AdminConfig = Field(default_factory=AdminConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)


def load(root: Path) -> BrokerConfig:
    """Read a broker directory's file; the defaults if there is none.

    Raises:
        InputError: ``broker.config_invalid`` naming the field, ``file.too_large``.
        Refused: ``broker.config_has_password``.
        Unavailable: ``file.unreadable``.
    """
    path = root / CONFIG_FILE
    if not path.exists():
        return BrokerConfig()
    return parse(read_limited(path, _MAX_BYTES), where=str(path))


def parse(raw: bytes, *, where: str = CONFIG_FILE) -> BrokerConfig:
    """Read the file's content.

    Args:
        raw: at most 64 KiB of YAML; sections and fields left out have their defaults.
        where: the file's name, for errors.

    Raises:
        InputError: ``broker.config_invalid`` naming the field.
        Refused: ``broker.config_has_password``.
    """
    if len(raw) > _MAX_BYTES:
        raise _invalid(f"has more than {_MAX_BYTES} bytes", where)
    try:
        document = strict_yaml.read(raw, max_nodes=_MAX_NODES)
    except strict_yaml.NotYaml as error:
        raise _invalid(f"is not a YAML document: {error}", where) from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise _invalid("is no mapping of sections", where)
    # A section whose every line is a comment is empty, and that means its defaults.
    given = {name: {} if part is None else part for name, part in document.items()}
    return _checked(given, where)


def with_store(url: str, *, where: str) -> BrokerConfig:
    """The defaults with this database.

    Raises:
        InputError: ``broker.config_invalid``.
        Refused: ``broker.config_has_password``.
    """
    return _checked({"store": {"url": url}}, where)


def with_kek(
    config: BrokerConfig, provider: str, settings: Sequence[str], *, where: str
) -> BrokerConfig:
    """A configuration with another key-encryption key.

    Args:
        config: all that stays.
        provider: such as ``"vault"``.
        settings: ``NAME=VALUE`` for fields of the section ``kek``.
        where: for errors.

    Raises:
        InputError: ``broker.config_invalid``.
    """
    given: dict[str, Any] = {"provider": provider}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or name in given:
            raise _invalid("a setting is NAME=VALUE, each name once", where)
        given[name] = int(value) if value.isascii() and value.isdecimal() else value
    kept = config.model_dump(mode="json", exclude_defaults=True, exclude={"kek"})
    return _checked({**kept, "kek": given}, where)


def render(config: BrokerConfig) -> bytes:
    """The file for `broker init` to write: what is set, and every default as a comment."""
    lines = [
        "# What this broker is told. A line that is a comment shows the default;",
        "# remove the # to change it. The broker reads this file when it starts.",
    ]
    for name in type(config).model_fields:
        section = getattr(config, name)
        summary = inspect.cleandoc(type(section).__doc__ or "").partition("\n")[0]
        lines += ["", f"# {summary}", f"{name}:"]
        default = type(section)()
        for key, part in type(section).model_fields.items():
            value = getattr(section, key)
            mark = "# " if value == getattr(default, key) else ""
            lines += textwrap.wrap(
                part.description or "", _WIDTH, initial_indent="  # ", subsequent_indent="  # ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            lines.append(f"  {mark}{key}: {json.dumps(_plain(value))}")
    return ("\n".join(lines) + "\n").encode()


def _checked(given: dict[str, Any], where: str) -> BrokerConfig:
    try:
        return BrokerConfig.model_validate_json(json.dumps(given))
    except (ValidationError, ValueError, RecursionError) as error:
        raise _explained(error, where) from None


def _check_sqlite(url: sqlalchemy.URL) -> None:
    name = url.database or ""
    if (
        url.drivername != "sqlite"
        or url.query
        or Path(name).name != name
        or name in ("", ".", "..")
    ):
        raise ValueError("must be sqlite:///FILE, a file in the broker's directory")


def _check_postgresql(url: sqlalchemy.URL) -> None:
    if url.password is not None or {"password", "sslpassword"} & set(url.query):
        raise ValueError(_PASSWORD)
    unknown = sorted(set(url.query) - _PARAMETERS)
    if unknown:
        raise ValueError(
            f"has the parameter {unknown[0]!r}; allowed: {', '.join(sorted(_PARAMETERS))}"
        )
    if not url.database:
        raise ValueError("must name a database")
    if url.query.get("sslmode") in _VERIFIED:
        return
    hosts = url.query.get("host", ())
    for host in (hosts,) if isinstance(hosts, str) else hosts or (url.host or "/",):
        if not _is_local(host):
            raise ValueError("must have sslmode=verify-full, since the server is another machine")


_PASSWORD: Final = "must not hold a password: give it by PGPASSFILE, or use peer authentication"  # noqa: S105


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _explained(error: Exception, where: str) -> InputError | Refused:
    if not isinstance(error, ValidationError):
        return _invalid("holds a value that is none", where)
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    place = f"{where}: {field}" if field else where
    message = first["msg"].removeprefix("Value error, ")
    if message == _PASSWORD:
        return Refused("broker.config_has_password", message, where=place)
    return _invalid(message, place)


def _invalid(message: str, where: str) -> InputError:
    return InputError(
        "broker.config_invalid",
        message,
        where=where,
        hint="`sealserve broker init` writes a file with every field and its default",
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
