"""The typed messages, one module a service. Units: bytes, nanoseconds since the epoch where a name
ends in ``time``, seconds elsewhere. Inode numbers, versions and tokens are 64-bit and positive."""
