from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ChallengeRequest(_message.Message):
    __slots__ = ("resource",)
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    def __init__(self, resource: _Optional[str] = ...) -> None: ...

class ChallengeResponse(_message.Message):
    __slots__ = ("nonce", "lifetime_seconds")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    lifetime_seconds: int
    def __init__(self, nonce: _Optional[bytes] = ..., lifetime_seconds: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("resource", "nonce", "boot_id", "hpke_public_key", "quote", "secret_version")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    HPKE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    SECRET_VERSION_FIELD_NUMBER: _ClassVar[int]
    resource: str
    nonce: bytes
    boot_id: bytes
    hpke_public_key: bytes
    quote: bytes
    secret_version: int
    def __init__(self, resource: _Optional[str] = ..., nonce: _Optional[bytes] = ..., boot_id: _Optional[bytes] = ..., hpke_public_key: _Optional[bytes] = ..., quote: _Optional[bytes] = ..., secret_version: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    def __init__(self, sealed: _Optional[bytes] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("secret", "secret_version", "volume_record", "lease_seconds", "lease_id")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    SECRET_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOLUME_RECORD_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    secret_version: int
    volume_record: bytes
    lease_seconds: int
    lease_id: str
    def __init__(self, secret: _Optional[bytes] = ..., secret_version: _Optional[int] = ..., volume_record: _Optional[bytes] = ..., lease_seconds: _Optional[int] = ..., lease_id: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("lease_id", "resource", "nonce", "boot_id", "quote")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    resource: str
    nonce: bytes
    boot_id: bytes
    quote: bytes
    def __init__(self, lease_id: _Optional[str] = ..., resource: _Optional[str] = ..., nonce: _Optional[bytes] = ..., boot_id: _Optional[bytes] = ..., quote: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("lease_seconds",)
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: int
    def __init__(self, lease_seconds: _Optional[int] = ...) -> None: ...
