"""Sealed volumes: an encrypted, authenticated filesystem in one file.

``LUKS2 (AES-256-XTS, 4096-byte sectors, one keyslot) holding ext4 | dm-verity
tree over ALL of it, header included``. The root hash and everything else that
opening needs stand in a record that the owner signs, so the host that keeps the
file can neither change, swap nor roll back a block, nor offer its own header.

* `record`: what a volume is, as its owner states it
* `maker`: make one; `mount`: open one
* `engine`: the verified view, without any mount
* `mapper`: what a driver is; `drivers`: the two there are, `kernel_driver` and `fuse_driver`
* `luks2`, `cipher`, `verity`: the formats
"""
