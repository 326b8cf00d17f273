"""Whose files are whose: the realm's uids as the machine shows them.

In a single-user mount the session's user is shown as the local user who mounted. Realm and machine
number their users independently, so the two numbers are swapped: a swap is its own inverse, so no
file changes hands by being looked at, and no second realm user can be mistaken for the local one.
A trusted mount shows the numbers as they are.
"""

from dataclasses import dataclass

from wire import acl


@dataclass(frozen=True)
class Owners:
    """The swap of one mount; the identity if both numbers are equal."""

    realm_uid: int
    realm_gid: int
    local_uid: int
    local_gid: int

    def uid(self, uid: int) -> int:
        """A realm uid as it is shown, or a shown one as the realm's."""
        return _swap(uid, self.realm_uid, self.local_uid)

    def gid(self, gid: int) -> int:
        """A realm gid as it is shown, or a shown one as the realm's."""
        return _swap(gid, self.realm_gid, self.local_gid)

    def xattr(self, name: bytes, value: bytes) -> bytes:
        """The value of an extended attribute, the same way: ACLs name users and groups."""
        return acl.renumbered(value, self.uid, self.gid) if name in acl.NAMES else value


def _swap(number: int, one: int, other: int) -> int:
    if number == one:
        return other
    return one if number == other else number
