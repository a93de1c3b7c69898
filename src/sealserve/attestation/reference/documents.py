"""TCB info and QE identity, from signed JSON to typed values.

Rules this module keeps:

* Only exact bytes under a good signature are parsed.
* Every field that a decision needs must be there with its type and size;
  fields that no decision needs are ignored, as Intel adds some over time.

Source: Intel PCS API version 4, TCB info version 3 and enclave identity version 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sealserve.errors import InputError, Refused

__all__ = [
    "Level",
    "Module",
    "PlatformLevel",
    "QeIdentity",
    "TcbInfo",
    "read_qe_identity",
    "read_tcb_info",
]

_T = TypeVar("_T")

_COMPONENTS: Final = 16
_PLATFORM_STATUSES: Final = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "Revoked",
    }
)
_MODULE_STATUSES: Final = frozenset({"UpToDate", "OutOfDate", "Revoked"})
_QE_STATUSES: Final = _MODULE_STATUSES | {"ConfigurationNeeded", "OutOfDateConfigurationNeeded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What Intel says about one security version or better.

    Attributes:
        svn: the least version; 0 for platforms, whose versions are many.
        status: Intel's status.
        date: how new this level is.
        advisory_ids: security advisories that apply.
    """

    svn: int
    status: str
    date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLevel:
    """A TCB level of the platform: least versions of each part, and what holds from there."""

    sgx: tuple[int, ...]
    pce_svn: int
    tdx: tuple[int, ...]
    level: Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A TDX module: who signed it and with what attributes, and its levels (best first)."""

    name: str
    mrsigner: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """What Intel says about one platform model. Levels stand in Intel's order, best first."""

    begins: datetime
    ends: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    levels: tuple[PlatformLevel, ...]
    module: Module
    modules: tuple[Module, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QeIdentity:
    """What Intel says about its TD quoting enclave; masked fields as bytes of the report."""

    begins: datetime
    ends: datetime
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mrsigner: bytes
    product_id: int
    levels: tuple[Level, ...]


class _Object:
    """A JSON object that is asked for typed fields."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _malformed(where, "an object")
        self._fields: dict[str, Any] = value
        self._where = where

    def _get(self, name: str, kind: type[_T]) -> _T:
        value = self._fields.get(name)
        if type(value) is not kind:  # exactly: True is no number
            raise _malformed(f"{self._where}.{name}", kind.__name__)
        return value

    def text(self, name: str) -> str:
        return self._get(name, str)

    def number(self, name: str, bits: int) -> int:
        value = self._get(name, int)
        if value < 0 or value.bit_length() > bits:
            raise _malformed(f"{self._where}.{name}", f"a number of {bits} bits")
        return value

    def octets(self, name: str, size: int) -> bytes:
        try:
            value = bytes.fromhex(self.text(name))
        except ValueError:
            value = b""
        if len(value) != size or len(self.text(name)) != 2 * size:
            raise _malformed(f"{self._where}.{name}", f"{size} bytes in hexadecimal")
        return value

    def time(self, name: str) -> datetime:
        try:
            moment = datetime.fromisoformat(self.text(name))
        except ValueError:
            raise _malformed(f"{self._where}.{name}", "a time") from None
        if moment.tzinfo is None:
            raise _malformed(f"{self._where}.{name}", "a time with zone")
        return moment.astimezone(UTC)

    def status(self, name: str, known: frozenset[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise _malformed(f"{self._where}.{name}", "a status defined here")
        return value

    def object(self, name: str) -> _Object:
        return _Object(self._fields.get(name), f"{self._where}.{name}")

    def objects(
        self, name: str, read: Callable[[_Object], _T], *, optional: bool = False
    ) -> tuple[_T, ...]:
        if optional and name not in self._fields:
            return ()
        items = self._get(name, list)
        where = f"{self._where}.{name}"
        return tuple(read(_Object(item, f"{where}[{i}]")) for i, item in enumerate(items))

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._get(name, list) if name in self._fields else []
        if not all(isinstance(item, str) for item in items):
            raise _malformed(f"{self._where}.{name}", "a list of texts")
        return tuple(items)


def read_tcb_info(text: str) -> TcbInfo:
    """TCB info of a TDX platform.

    Raises:
        InputError: ``collateral.malformed``.
        Refused: ``collateral.unsupported`` for another version or comparison
            rule, ``tcb.platform_mismatch`` if it is not about TDX.
    """
    document = _load(text, "tcb_info")
    form = (document.number("version", 8), document.number("tcbType", 32))
    if document.text("id") != "TDX":
        raise Refused("tcb.platform_mismatch", "the TCB info is about SGX, not about TDX")
    if form != (3, 0):
        raise Refused(
            "collateral.unsupported",
            f"TCB info of version {form[0]} and type {form[1]}; known are version 3 and type 0",
        )
    return TcbInfo(
        begins=document.time("issueDate"),
        ends=document.time("nextUpdate"),
        fmspc=document.octets("fmspc", 6),
        pce_id=document.octets("pceId", 2),
        evaluation_number=document.number("tcbEvaluationDataNumber", 32),
        levels=document.objects("tcbLevels", _platform_level),
        module=_module(document.object("tdxModule")),
        modules=document.objects("tdxModuleIdentities", _module_identity, optional=True),
    )


def read_qe_identity(text: str) -> QeIdentity:
    """Identity of the TD quoting enclave.

    Raises:
        InputError: ``collateral.malformed``.
    """
    document = _load(text, "qe_identity")
    # Version 3 differs from 2 in nothing that is looked at here.
    if document.text("id") != "TD_QE" or document.number("version", 8) not in (2, 3):
        raise _malformed("qe_identity.id", "TD_QE of version 2 or 3")
    return QeIdentity(
        begins=document.time("issueDate"),
        ends=document.time("nextUpdate"),
        evaluation_number=document.number("tcbEvaluationDataNumber", 32),
        misc_select=document.octets("miscselect", 4),
        misc_select_mask=document.octets("miscselectMask", 4),
        attributes=document.octets("attributes", 16),
        attributes_mask=document.octets("attributesMask", 16),
        mrsigner=document.octets("mrsigner", 32),
        product_id=document.number("isvprodid", 16),
        levels=document.objects("tcbLevels", lambda item: _level(item, 16, _QE_STATUSES)),
    )


def _platform_level(item: _Object) -> PlatformLevel:
    tcb = item.object("tcb")
    sgx = tcb.objects("sgxtcbcomponents", _component)
    tdx = tcb.objects("tdxtcbcomponents", _component)
    if len(sgx) != _COMPONENTS or len(tdx) != _COMPONENTS:
        raise _malformed("tcb_info.tcbLevels", f"{_COMPONENTS} SGX and TDX components each")
    return PlatformLevel(
        sgx=sgx,
        pce_svn=tcb.number("pcesvn", 16),
        tdx=tdx,
        level=_level(item, 0, _PLATFORM_STATUSES),
    )


def _component(item: _Object) -> int:
    return item.number("svn", 8)


def _level(item: _Object, bits: int, statuses: frozenset[str]) -> Level:
    return Level(
        svn=item.object("tcb").number("isvsvn", bits) if bits else 0,
        status=item.status("tcbStatus", statuses),
        date=item.time("tcbDate"),
        advisory_ids=item.texts("advisoryIDs"),
    )


def _module(item: _Object, name: str = "", levels: tuple[Level, ...] = ()) -> Module:
    return Module(
        name=name,
        mrsigner=item.octets("mrsigner", 48),
        attributes=item.octets("attributes", 8),
        attributes_mask=item.octets("attributesMask", 8),
        levels=levels,
    )


def _module_identity(item: _Object) -> Module:
    levels = item.objects("tcbLevels", lambda each: _level(each, 8, _MODULE_STATUSES))
    return _module(item, item.text("id").upper(), levels)


def _load(text: str, name: str) -> _Object:
    try:
        return _Object(json.loads(text, object_pairs_hook=_no_duplicates), name)
    except (ValueError, RecursionError):
        raise _malformed(name, "a JSON object with unique keys") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _malformed(where: str, wanted: str) -> InputError:
    return InputError("collateral.malformed", f"this is not {wanted}", where=where)
