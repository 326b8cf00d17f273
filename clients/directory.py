"""The directory server, for one session."""

from collections.abc import Sequence

from clients.session import Channel, Numbering
from wire.limits import LEASE_SECONDS, LIST_ENTRIES_MAX, MANIFEST_CHUNKS_MAX
from wire.messages.common import Caller
from wire.messages.directory import (
    Attr,
    Attrs,
    FindCommit,
    FoundCommit,
    GetAttrs,
    GetManifest,
    GetPaths,
    GetPlacement,
    GetTarget,
    GetXattrs,
    KnownServers,
    List,
    Listing,
    Manifest,
    Mutated,
    Mutations,
    Op,
    Paths,
    Placement,
    Resolve,
    Resolved,
    Result,
    Servers,
    Statfs,
    Target,
    Xattrs,
)

CHANGE_WAIT_SECONDS = 2 * LEASE_SECONDS
"""How long a change may wait until all who must know of it do: for a mount that has died, a lease; a second
one if there is more than one reason."""


class DirectoryClient:
    """Thread-safe. Every method raises what the server raises, and Unavailable when it does not answer.

    ``caller`` is for whom a trusted session acts; other sessions leave it None.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def mutate(
        self, ops: Sequence[Op], caller: Caller | None = None, numbering: Numbering | None = None
    ) -> list[Result]:
        """Applies all of ``ops`` in order, or none; exactly once, whatever is retried."""
        return self.apply(ops, caller, numbering).results

    def apply(
        self,
        ops: Sequence[Op],
        caller: Caller | None = None,
        numbering: Numbering | None = None,
        feed: int = 0,
    ) -> Mutated:
        """As ``mutate``, with what the directory says of its promises to who is at ``feed``."""
        return self._channel.mutate(
            "/v1/mutations",
            lambda acked: Mutations(acked, list(ops), caller, feed),
            Mutated,
            wait_seconds=CHANGE_WAIT_SECONDS,
            numbering=numbering,
        )

    def resolve(
        self, parent: int, names: Sequence[bytes], caller: Caller | None = None, *, content: bool = False
    ) -> Resolved:
        """Walks ``names`` from ``parent`` as far as it goes; ``errno`` says what stopped it. With ``content``
        the manifest comes along."""
        message = Resolve(parent, list(names), caller, content)
        return self._channel.call("POST", "/v1/resolve", message, Resolved)

    def attrs(self, inos: Sequence[int], caller: Caller | None = None) -> list[Attr | None]:
        """One for each of ``inos``; None where it is not there or not reachable."""
        return self.find(inos, caller).attrs

    def find(self, inos: Sequence[int], caller: Caller | None = None) -> Attrs:
        """As ``attrs``, with what the directory says of its promises."""
        return self._channel.call("POST", "/v1/attrs", GetAttrs(list(inos), caller), Attrs)

    def list_page(
        self,
        ino: int,
        after: int = 0,
        *,
        limit: int = LIST_ENTRIES_MAX,
        change: int = 0,
        caller: Caller | None = None,
    ) -> Listing:
        """Entries with cookies after ``after``; "unchanged" if the directory is as of ``change`` still."""
        return self._channel.call("POST", "/v1/list", List(ino, after, limit, change, caller), Listing)

    def manifest(
        self,
        ino: int,
        version: int = 0,
        first: int = 0,
        count: int = MANIFEST_CHUNKS_MAX,
        caller: Caller | None = None,
    ) -> Manifest:
        """The chunks at ``count`` indices from ``first`` on; of the current version if it is 0."""
        message = GetManifest(ino, version, first, count, caller)
        return self._channel.call("POST", "/v1/manifest", message, Manifest)

    def target(self, ino: int, caller: Caller | None = None) -> bytes:
        """Where a symlink points."""
        return self._channel.call("POST", "/v1/target", GetTarget(ino, caller), Target).target

    def xattrs(self, ino: int, caller: Caller | None = None) -> dict[bytes, bytes | None]:
        """All extended attributes that the caller may see, but for an access ACL (see Attr); None for values
        that he may not read."""
        return self._channel.call("POST", "/v1/xattrs", GetXattrs(ino, caller), Xattrs).xattrs

    def paths(self, inos: Sequence[int]) -> list[bytes | None]:
        """A path to each of ``inos``, for people."""
        return self._channel.call("POST", "/v1/paths", GetPaths(list(inos)), Paths).paths

    def find_commit(self, ino: int, commit_id: bytes) -> FoundCommit:
        """Whether a commit has arrived, and which version is the current one."""
        return self._channel.call("POST", "/v1/commits", FindCommit(ino, commit_id), FoundCommit)

    def statfs(self) -> Statfs:
        """Space and inodes of the realm."""
        return self._channel.call("GET", "/v1/statfs", None, Statfs)

    def placement(self, count: int = 8) -> Placement:
        """Where new chunks should go."""
        return self._channel.call("POST", "/v1/placement", GetPlacement(count), Placement)

    def known_servers(self) -> KnownServers:
        """All file servers: where they are, and how."""
        return self._channel.call("GET", "/v1/servers/known", None, KnownServers)

    def servers(self) -> Servers:
        """As ``known_servers``, with what is counted: how the chunks fare. It may take seconds."""
        return self._channel.call("GET", "/v1/servers", None, Servers)
