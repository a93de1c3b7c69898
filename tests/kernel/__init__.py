"""Tests in which a real Linux kernel does the work: device-mapper, loop devices, mounts.

A virtual machine is booted once for all of them, in software emulation, so they
run as any user and on a machine whose own kernel has no device-mapper.
"""
