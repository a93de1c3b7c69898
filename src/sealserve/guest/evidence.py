"""Which evidence a key is released for."""

from __future__ import annotations

from typing import cast

from sealserve.errors import Refused
from sealserve.tdx.azure import AzureProvider
from sealserve.tdx.evidence import EvidenceProvider, QuoteProvider

__all__ = ["quotes_of"]


def quotes_of(provider: EvidenceProvider) -> QuoteProvider:
    """The provider, if its quotes speak for the report data themselves.

    Raises:
        Refused: ``guest.evidence_unsupported``.
    """
    if isinstance(provider, AzureProvider):
        raise Refused(
            "guest.evidence_unsupported",
            "Azure's evidence speaks for a vTPM key, not for our report data",
            hint="no key is released for it in this version; use a TD with configfs-tsm or QGS",
        )
    return cast("QuoteProvider", provider)
