"""What a volume's record demands of the models in it: whose signatures they must carry."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sealserve.errors import InputError
from sealserve.provenance.trust import Trust

__all__ = ["Provenance"]


class Provenance(BaseModel):
    """Whose signatures the models of a volume must carry.

    Attributes:
        signers: `sealserve.provenance.trust.Trust.pem`: public keys and root certificates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    signers: Annotated[str, Field(min_length=1, max_length=16 * 1024)]

    @model_validator(mode="after")
    def _is_in_its_one_form(self) -> Self:
        try:
            same = self.trust.pem.decode() == self.signers
        except InputError as error:
            raise ValueError(error.message) from None
        if not same:
            raise ValueError("the signers are not in their one form")
        return self

    @property
    def trust(self) -> Trust:
        """The signers, to check models against."""
        return Trust.from_pem(self.signers.encode(), where="the volume's record")

    @classmethod
    def of(cls, trust: Trust) -> Self:
        """The demand for signatures of these."""
        return cls(signers=trust.pem.decode())
