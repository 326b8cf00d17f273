"""The directory: commits make versions of content, exactly once and for who may."""

import errno
import stat

import pytest
from sqlalchemy import create_engine, text

from tests.support.directory import BOB, DirectoryRealm, User, commit, fails, look, placed
from wire.errors import BadMessage, ChunksMissing, Conflict
from wire.limits import CHUNK_BYTES
from wire.messages.directory import (
    ROOT_INO,
    ChunkChange,
    Commit,
    Create,
    FoundCommit,
    OpenWrite,
    Rename,
    Reserve,
    SetAttr,
    Unlink,
)

BILLION = 10**9


def test_a_commit_makes_a_version_and_the_old_one_stays_readable(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    size = 5 * CHUNK_BYTES
    chunks = [realm.stored(index, server) for index in (0, 1, 2, 4)]  # 3 is a hole
    first = alice.do(commit(file, grant, size, chunks))
    assert (first.size, first.version, first.mtime) == (size, first.change, first.ctime)
    manifest = alice.client.manifest(file.ino)
    assert [(c.index, c.id, c.size, c.servers) for c in manifest.chunks] == [
        (chunk.index, chunk.id, 100, [server]) for chunk in chunks
    ]
    assert [address.id for address in manifest.servers] == [server]
    new, hole = realm.stored(1, server), ChunkChange(2)
    second = alice.do(commit(first, grant, 4 * CHUNK_BYTES, [new, hole], keep=size))
    assert placed(alice, file.ino) == {0: chunks[0].id, 1: new.id}
    assert placed(alice, file.ino, first.version) == {chunk.index: chunk.id for chunk in chunks}
    assert alice.client.manifest(file.ino, first.version).size == size
    assert [c.index for c in alice.client.manifest(file.ino, 0, 1, 1).chunks] == [1]
    third = alice.do(commit(second, grant, 4 * CHUNK_BYTES, [], keep=CHUNK_BYTES + 100))
    assert placed(alice, file.ino) == {0: chunks[0].id, 1: new.id}
    alice.do(commit(third, grant, 4 * CHUNK_BYTES, [], keep=CHUNK_BYTES))
    assert placed(alice, file.ino) == {0: chunks[0].id}
    assert alice.client.manifest(file.ino, first=2**63 - 1).chunks == []
    with fails(errno.ESTALE):
        alice.client.manifest(file.ino, 12345)


def test_holes_are_counted(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    far = 2**18 * CHUNK_BYTES  # 1 TiB
    holes, taken = [], []
    for size, places, emptied, kept in (
        (far, [0, 2**18 - 1], [], 0),
        (far, [2, 3], [0], far),
        (far + 1, [1], [0, 2], far),  # the last one is cut off by nothing
        (4 * CHUNK_BYTES, [], [], 4 * CHUNK_BYTES),
        (6 * CHUNK_BYTES, [5], [], CHUNK_BYTES),
        (CHUNK_BYTES + 100, [0, 1], [], 0),
        (0, [], [], 0),
    ):
        chunks = [realm.stored(index, server) for index in places]
        file = alice.do(commit(file, grant, size, [*chunks, *map(ChunkChange, emptied)], keep=kept))
        assert look(alice, file.ino) == file
        holes.append(file.holes)
        taken.append(file.stored_bytes // CHUNK_BYTES)
    assert holes == [2**18 - 2, 2**18 - 3, 2**18 - 2, 2, 5, 0, 0]
    assert taken == [2, 3, 3, 2, 1, 1, 0]


def test_a_commit_needs_the_current_base_and_token(realm: DirectoryRealm, alice: User, bob: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f", token=5)
    alice.do(SetAttr(file.ino, mode=0o666))
    first = alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    with pytest.raises(Conflict, match="base"):
        alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 6)))
    with pytest.raises(Conflict, match="lock"):
        alice.do(commit(first, grant, 10, []))
    with pytest.raises(Conflict):
        alice.do(OpenWrite(file.ino, grant))
    for stolen in (bob.grant(file.ino, 7), alice.grant(file.ino + 1, 7), b"forged"):
        with fails(errno.EPERM):
            alice.do(commit(first, stolen, 10, []))
    other, _ = alice.open_new(b"g")
    with fails(errno.EPERM):
        alice.do(commit(other, bob.grant(other.ino, 1), 0, []))


def test_a_commit_is_known_by_its_id(realm: DirectoryRealm, alice: User, bob: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    sent = commit(file, grant, 10, [realm.stored(0, server)])
    assert alice.client.find_commit(file.ino, sent.commit_id) == FoundCommit(0, file.version)
    first = alice.do(sent)
    assert alice.do(sent) == first  # another request, the same commit
    second = alice.do(commit(first, grant, 10, [], keep=10))
    assert alice.client.find_commit(file.ino, sent.commit_id) == FoundCommit(first.version, second.version)
    assert alice.client.find_commit(12345, sent.commit_id) == FoundCommit(0, 0)
    closed = alice.mkdir(b"closed", mode=0o700)
    alice.do(Rename(ROOT_INO, b"f", closed.ino, b"f"))
    assert bob.client.find_commit(file.ino, b"0" * 16) == FoundCommit(0, 0)


def test_when_a_file_was_written_is_believed_between_its_base_and_now(
    realm: DirectoryRealm, alice: User
) -> None:
    file, grant = alice.open_new(b"f")
    for since_base, wanted in ((-1, 0), (2, 2), (9, 5)):
        realm.clock.now += 5
        base = file.version
        file = alice.do(commit(file, grant, 10, [], written=base + since_base * BILLION))
        assert abs(file.mtime - base - wanted * BILLION) < BILLION
        assert file.ctime == file.mtime <= file.version == file.change
    realm.clock.now += 5
    changed = alice.do(commit(file, grant, 10, [], mtime=7, changed=file.version + BILLION))
    assert (changed.mtime, changed.ctime) == (7, file.version + BILLION)


def test_a_commit_names_only_chunks_that_can_be_counted_on(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    good, late = realm.stored(0, server), realm.stored(1, server, age_seconds=3601)
    bare = ChunkChange(2, realm.stored(2, server).id, 100)
    other = ChunkChange(3, realm.stored(3, server).id, 100, realm.stored(3, server).receipt)
    shrunk = ChunkChange(4, (chunk := realm.stored(4, server)).id, 99, chunk.receipt)
    nowhere = realm.stored(5, 999)
    bad = [late, bare, other, shrunk, nowhere]
    with pytest.raises(ChunksMissing) as caught:
        alice.do(commit(file, grant, 6 * CHUNK_BYTES, [good, *bad]))
    assert sorted(caught.value.chunks) == sorted(change.id or b"" for change in bad)
    assert look(alice, file.ino) == file
    alice.do(commit(file, grant, CHUNK_BYTES, [good]))
    copy, its_grant = alice.open_new(b"copy")
    assert good.id is not None
    alice.do(commit(copy, its_grant, CHUNK_BYTES, [ChunkChange(0, good.id, 100)]))
    assert placed(alice, copy.ino) == placed(alice, file.ino)
    engine = create_engine(realm.config.database)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT refs FROM chunks")).scalars().all() == [2]
        connection.execute(text("UPDATE chunks SET condemned_at = 1.0"))
    engine.dispose()
    third, its_grant = alice.open_new(b"third")
    with pytest.raises(ChunksMissing):
        alice.do(commit(third, its_grant, CHUNK_BYTES, [good]))


def test_content_that_was_cut_off_does_not_come_back(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    full = alice.do(
        commit(file, grant, 2 * CHUNK_BYTES, [realm.stored(i, server, CHUNK_BYTES) for i in (0, 1)])
    )
    cut = alice.do(commit(full, grant, 10, [], keep=10))
    assert list(placed(alice, file.ino)) == [0]
    with pytest.raises(BadMessage, match="cut off"):
        alice.do(commit(cut, grant, 20, [], keep=10))
    again = alice.do(commit(cut, grant, 2 * CHUNK_BYTES, [realm.stored(0, server, 10)], keep=10))
    assert list(placed(alice, file.ino)) == [0]
    with fails(errno.EINVAL):
        alice.do(commit(again, grant, 10, [ChunkChange(1)]))
    with fails(errno.EINVAL):
        alice.do(commit(again, grant, 10, [ChunkChange(0), ChunkChange(0)]))


def test_a_commit_drops_set_id_bits_unless_it_brings_a_mode(
    realm: DirectoryRealm, alice: User, bob: User, root: User
) -> None:
    file, grant = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o6777))
    file = alice.do(commit(file, grant, 0, []))
    assert stat.S_IMODE(file.mode) == 0o777
    file = alice.do(commit(file, grant, 0, [], mode=0o4711, mtime=5, atime=6))
    assert (stat.S_IMODE(file.mode), file.mtime, file.atime, file.ctime) == (0o4711, 5, 6, file.version)
    alice.do(SetAttr(file.ino, mode=0o4777))
    file = root.do(OpenWrite(file.ino, root.grant(file.ino, 2)))
    file = root.do(commit(file, root.grant(file.ino, 2), 0, []))
    assert stat.S_IMODE(file.mode) == 0o4777
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 3)))
    with fails(errno.EPERM):
        bob.do(commit(file, bob.grant(file.ino, 3), 0, [], mode=0o777))
    with fails(errno.EPERM):
        bob.do(commit(file, bob.grant(file.ino, 3), 0, [], mtime=1))


def test_who_opens_needs_permission_and_who_commits_the_grant(alice: User, bob: User) -> None:
    file, grant = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o444))
    alice.do(commit(file, grant, 0, []))
    with fails(errno.EACCES):
        alice.do(OpenWrite(file.ino, grant))
    alice.do(SetAttr(file.ino, mode=0o602))
    bob.do(OpenWrite(file.ino, bob.grant(file.ino, 2)))
    with fails(errno.EACCES):
        bob.do(OpenWrite(file.ino, bob.grant(file.ino, 2), read=True))
    with fails(errno.EACCES):
        bob.client.manifest(file.ino)


def test_a_lock_without_an_opening_commits_only_what_may_be_written(alice: User, bob: User) -> None:
    file, _ = alice.open_new(b"f")
    file = alice.do(SetAttr(file.ino, mode=0o600))
    for base in (0, file.version):
        with fails(errno.EACCES):
            bob.do(Commit(file.ino, bob.grant(file.ino, 2), base, b"2" * 16, 0, 0, []))
    assert alice.attr(file.ino) == file
    alice.do(SetAttr(file.ino, mode=0o444))
    file = alice.do(commit(file, alice.grant(file.ino, 3), 0, []))  # a lock that was lost and taken again
    with fails(errno.EACCES):
        bob.do(commit(file, bob.grant(file.ino, 4), 0, []))
    alice.do(SetAttr(file.ino, mode=0o666))
    file = bob.do(commit(file, bob.grant(file.ino, 5), 0, []))
    alice.do(SetAttr(file.ino, mode=0o600))
    bob.do(commit(file, bob.grant(file.ino, 5), 0, []))  # as through a descriptor that is open


def test_an_old_version_is_for_who_could_read_it_then(
    realm: DirectoryRealm, alice: User, bob: User, root: User
) -> None:
    file, grant = alice.open_new(b"f")
    secret = alice.do(commit(file, grant, 10, [], mode=0o600))
    public = alice.do(commit(secret, grant, 20, [], mode=0o644))
    assert bob.client.manifest(file.ino).size == 20
    with fails(errno.EACCES):
        bob.client.manifest(file.ino, secret.version)
    last = alice.do(commit(public, grant, 30, []))
    assert bob.client.manifest(file.ino, public.version).size == 20
    root.do(SetAttr(file.ino, uid=BOB, mode=0o600))
    for user, version in ((bob, secret.version), (alice, public.version), (alice, last.version)):
        with fails(errno.EACCES):
            user.client.manifest(file.ino, version)
    assert root.client.manifest(file.ino, secret.version).size == 10


def test_an_orphan_can_be_committed(realm: DirectoryRealm, alice: User) -> None:
    server = realm.add_file_server()
    file, grant = alice.open_new(b"f")
    alice.do(Unlink(ROOT_INO, b"f", hold=True))
    alice.do(commit(file, grant, 10, [realm.stored(0, server)]))
    assert list(placed(alice, file.ino)) == [0]


def test_reserved_numbers_belong_to_their_session(alice: User, bob: User) -> None:
    with fails(errno.EINVAL):
        alice.client.mutate([Reserve(1000), Reserve(25)])
    inos = alice.client.mutate([Reserve(3)])[0].inos
    assert len(set(inos)) == 3
    with fails(errno.EINVAL):
        bob.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=bob.grant(inos[0], 1)))
    with fails(errno.EPERM):
        alice.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=alice.grant(inos[1], 1)))
    alice.do(Create(ROOT_INO, b"f", 0o100644, ino=inos[0], grant=alice.grant(inos[0], 1)))
    with fails(errno.EINVAL):
        alice.do(Create(ROOT_INO, b"g", 0o100644, ino=inos[0], grant=alice.grant(inos[0], 1)))
    assert alice.create(b"g").ino not in inos


def test_statfs_placement_and_servers_are_asked_through_the_client(
    realm: DirectoryRealm, alice: User
) -> None:
    server = realm.add_file_server()
    assert alice.client.statfs().inodes == 1
    assert alice.client.placement(1).sets[0][0].id == server
    assert [state.id for state in alice.client.servers().servers] == [server]
    known = alice.client.known_servers().servers
    assert [(one.id, one.name, one.state) for one in known] == [(server, "f", "alive")]
