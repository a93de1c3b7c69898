from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Result(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class SecretPutRequest(_message.Message):
    __slots__ = ("resource", "sealed_key", "record", "owner_public_key", "policy", "lease_seconds", "kind", "expires", "replace")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SEALED_KEY_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    OWNER_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    sealed_key: bytes
    record: bytes
    owner_public_key: bytes
    policy: bytes
    lease_seconds: int
    kind: str
    expires: str
    replace: bool
    def __init__(self, resource: _Optional[str] = ..., sealed_key: _Optional[bytes] = ..., record: _Optional[bytes] = ..., owner_public_key: _Optional[bytes] = ..., policy: _Optional[bytes] = ..., lease_seconds: _Optional[int] = ..., kind: _Optional[str] = ..., expires: _Optional[str] = ..., replace: _Optional[bool] = ...) -> None: ...

class SecretRotateRequest(_message.Message):
    __slots__ = ("secret", "sealed_key", "record", "owner_public_key", "retire_after_seconds", "expires")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    SEALED_KEY_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    OWNER_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    RETIRE_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    secret: str
    sealed_key: bytes
    record: bytes
    owner_public_key: bytes
    retire_after_seconds: int
    expires: str
    def __init__(self, secret: _Optional[str] = ..., sealed_key: _Optional[bytes] = ..., record: _Optional[bytes] = ..., owner_public_key: _Optional[bytes] = ..., retire_after_seconds: _Optional[int] = ..., expires: _Optional[str] = ...) -> None: ...

class SecretListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SecretShowRequest(_message.Message):
    __slots__ = ("secret",)
    SECRET_FIELD_NUMBER: _ClassVar[int]
    secret: str
    def __init__(self, secret: _Optional[str] = ...) -> None: ...

class SecretDisableRequest(_message.Message):
    __slots__ = ("secret", "version")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    secret: str
    version: int
    def __init__(self, secret: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SecretEnableRequest(_message.Message):
    __slots__ = ("secret", "version")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    secret: str
    version: int
    def __init__(self, secret: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SecretRetireRequest(_message.Message):
    __slots__ = ("secret", "version")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    secret: str
    version: int
    def __init__(self, secret: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SecretDestroyRequest(_message.Message):
    __slots__ = ("secret", "version")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    secret: str
    version: int
    def __init__(self, secret: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ResourceListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResourceShowRequest(_message.Message):
    __slots__ = ("resource",)
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    def __init__(self, resource: _Optional[str] = ...) -> None: ...

class ResourceRemoveRequest(_message.Message):
    __slots__ = ("resource",)
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    resource: str
    def __init__(self, resource: _Optional[str] = ...) -> None: ...

class PolicySetRequest(_message.Message):
    __slots__ = ("resource", "policy")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    resource: str
    policy: bytes
    def __init__(self, resource: _Optional[str] = ..., policy: _Optional[bytes] = ...) -> None: ...

class PolicyDiffRequest(_message.Message):
    __slots__ = ("resource", "policy")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    resource: str
    policy: bytes
    def __init__(self, resource: _Optional[str] = ..., policy: _Optional[bytes] = ...) -> None: ...

class AuditReadRequest(_message.Message):
    __slots__ = ("after", "limit", "from_end")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FROM_END_FIELD_NUMBER: _ClassVar[int]
    after: int
    limit: int
    from_end: bool
    def __init__(self, after: _Optional[int] = ..., limit: _Optional[int] = ..., from_end: _Optional[bool] = ...) -> None: ...

class AuditSealRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaseListRequest(_message.Message):
    __slots__ = ("resource", "all")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    resource: str
    all: bool
    def __init__(self, resource: _Optional[str] = ..., all: _Optional[bool] = ...) -> None: ...

class LeaseRevokeRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: str
    def __init__(self, lease: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrincipalAddRequest(_message.Message):
    __slots__ = ("name", "role", "certificate", "replace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    certificate: str
    replace: bool
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., certificate: _Optional[str] = ..., replace: _Optional[bool] = ...) -> None: ...

class PrincipalListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrincipalRemoveRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ProposalListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProposalApproveRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ProposalWithdrawRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...
