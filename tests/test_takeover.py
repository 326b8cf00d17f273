"""A mount whose worker was killed: the next one goes on with what was open, and does nothing twice."""

import errno
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from mount.bindings.native.passthrough import Passthrough
from mount.bindings.native.protocol import Fopen
from mount.vfs import Changes
from tests.support.stack import DIRECTORY, Client, Stack
from tests.support.times import wait_until
from tests.support.vfs import cut_at
from wire.messages.common import Caller

CREATE = os.O_RDWR | os.O_CREAT


def restarted(stack: Stack, client: Client) -> Client:
    """The worker is killed, and the next one takes over."""
    client.kill()
    return stack.client(before=client)


def tokens(stack: Stack) -> set[tuple[int, int]]:
    """The locks that are held."""
    return {(lock.ino, lock.token) for lock in stack.lock.service.locks().locks}


def test_unsaved_writes_go_on_under_the_same_handle(stack: Stack) -> None:
    first = stack.client()
    handle = first.open("/file", CREATE)
    first.vfs.write(handle, 0, b"a" * 100)
    second = restarted(stack, first)
    second.vfs.write(handle, 100, b"b" * 100)
    assert second.pread(handle, 0, 300) == b"a" * 100 + b"b" * 100
    second.close_handle(handle)
    other = stack.client()
    assert other.tree() == {"/file": b"a" * 100 + b"b" * 100}


def test_the_write_lock_is_held_over_the_restart(stack: Stack) -> None:
    first = stack.client()
    first.write("/file", b"before")
    handle = first.open("/file", os.O_WRONLY)
    before = tokens(stack)
    other = stack.client(lock_wait_seconds=0.0)
    second = restarted(stack, first)
    with pytest.raises(OSError) as raised:
        other.open("/file", os.O_WRONLY)
    assert raised.value.errno == errno.EBUSY
    assert before <= tokens(stack), "the very same one"
    second.vfs.write(handle, 0, b"after!")
    second.close_handle(handle)
    with other.opened("/file", os.O_RDWR) as mine:
        assert other.pread(mine, 0, 10) == b"after!"


def test_readers_and_numbers_go_on(stack: Stack) -> None:
    first = stack.client()
    first.write("/file", b"content")
    handle = first.open("/file", os.O_RDONLY)
    second = restarted(stack, first)
    assert second.pread(handle, 0, 100) == b"content"
    assert second.open("/file", os.O_RDONLY) > handle
    third = restarted(stack, second)
    assert third.pread(handle, 0, 100) == b"content"
    third.vfs.release(handle)
    assert handle not in {file.number for _, file in third.proxy.slate.handles.items()}


def test_a_removed_file_that_is_open_goes_on(stack: Stack) -> None:
    first = stack.client()
    handle = first.open("/file", CREATE)
    first.vfs.write(handle, 0, b"nameless")
    first.vfs.flush(handle)
    first.unlink("/file")
    second = restarted(stack, first)
    assert second.pread(handle, 0, 100) == b"nameless"
    assert second.vfs.handle_attr(handle).nlink == 0
    second.vfs.write(handle, 0, b"N")
    second.vfs.flush(handle)
    assert second.pread(handle, 0, 100) == b"Nameless"
    second.vfs.release(handle)
    assert second.tree() == {}


def test_times_and_mode_that_wait_for_the_commit_survive(stack: Stack) -> None:
    first = stack.client()
    handle = first.open("/file", CREATE)
    first.vfs.write(handle, 0, b"data")
    ino = first.vfs.inode_of(handle)
    first.vfs.setattr(ino, Changes(mode=0o751, atime=3, mtime=5), None, handle)
    second = restarted(stack, first)
    attr = second.vfs.handle_attr(handle)
    assert (attr.mode & 0o777, attr.atime, attr.mtime, attr.size) == (0o751, 3, 5, 4)
    second.close_handle(handle)
    attr = stack.client().walk("/file")
    assert (attr.mode & 0o777, attr.atime, attr.mtime, attr.size) == (0o751, 3, 5, 4)
    assert list(second.proxy.slate.attributes.items()) == []


def test_a_commit_that_had_arrived_is_not_made_again(stack: Stack) -> None:
    first = stack.client()
    handle = first.open("/file", CREATE)
    first.vfs.write(handle, 0, b"data")
    first.vfs.setattr(first.vfs.inode_of(handle), Changes(mtime=5), None, handle)
    with killed_at_change(stack, first):
        first.vfs.flush(handle)
    version = stack.client().walk("/file").version
    second = restarted(stack, first)
    second.vfs.write(handle, 4, b" and more")
    second.close_handle(handle)
    attr = stack.client().walk("/file")
    assert attr.version > version
    assert stack.client().tree() == {"/file": b"data and more"}


def test_a_commit_that_had_not_arrived_is_made(stack: Stack) -> None:
    first = stack.client(deadline_seconds=0.1)
    handle = first.open("/file", CREATE)
    first.vfs.write(handle, 0, b"data")
    stack.away(DIRECTORY)
    with pytest.raises(OSError):
        first.vfs.flush(handle)
    stack.back()
    second = restarted(stack, first)
    second.close_handle(handle)
    assert stack.client().tree() == {"/file": b"data"}


def test_content_whose_close_was_cut_off_is_committed_when_there_are_readers(stack: Stack) -> None:
    first = stack.client()
    handle = first.open("/file", CREATE)
    reader = first.open("/file", os.O_RDONLY)
    first.vfs.write(handle, 0, b"data")
    slot = next(slot for slot, file in first.proxy.slate.handles.items() if file.number == handle)
    first.proxy.slate.handles.free(slot)
    second = restarted(stack, first)
    wait_until(lambda: not second.vfs.unsaved())
    assert second.pread(reader, 0, 10) == b"data"
    assert stack.client().tree() == {"/file": b"data"}


def test_recovery_leaves_alone_what_is_open(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    first = stack.client()
    opened, closed = first.open("/opened", CREATE), first.open("/closed", CREATE)
    for handle in (opened, closed):
        first.vfs.write(handle, 0, b"dirty")
    slot = next(slot for slot, file in first.proxy.slate.handles.items() if file.number == closed)
    first.proxy.slate.handles.free(slot)
    first.kill()
    second = stack.client(before=first, started=False)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        second.recovery.run()
    assert len(caplog.records) == 1, "of the one that nobody has open"
    second.start()
    second.close_handle(opened)
    tree = stack.client().tree()
    assert (tree.pop("/opened"), tree.pop("/closed")) == (b"dirty", b"")
    assert list(tree.values()) == [b"dirty"]


def test_a_writer_that_lost_its_lock_to_another_one_is_told(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    first = stack.client()
    first.write("/clean", b"old")
    first.write("/dirty", b"old")
    clean, dirty = first.open("/clean", os.O_RDWR), first.open("/dirty", os.O_RDWR)
    first.vfs.write(dirty, 0, b"own")
    first.kill()
    stack.advance_locks()
    other = stack.client()
    other.write("/clean", b"new")
    other.write("/dirty", b"new")
    second = stack.client(before=first)
    for handle in (clean, dirty):
        with pytest.raises(OSError) as raised:
            second.vfs.write(handle, 0, b"over it")
            second.vfs.flush(handle)
        assert raised.value.errno == errno.ESTALE
    third = restarted(stack, second)
    for handle in (clean, dirty):
        with pytest.raises(OSError) as raised:
            third.vfs.write(handle, 0, b"over it")
        assert raised.value.errno == errno.ESTALE, "also after the next restart"
        third.vfs.release(handle)
    tree = other.tree()
    assert (tree.pop("/clean"), tree.pop("/dirty")) == (b"new", b"new")
    assert list(tree.values()) == [b"own"]


def test_a_lock_that_only_expired_is_taken_again(stack: Stack) -> None:
    first = stack.client()
    first.write("/file", b"old")
    handle = first.open("/file", os.O_RDWR)
    first.kill()
    stack.advance_locks()
    second = stack.client(before=first)
    second.vfs.write(handle, 0, b"new")
    second.close_handle(handle)
    assert stack.client().tree() == {"/file": b"new"}


def test_trusted_handles_keep_their_users(stack: Stack) -> None:
    ann = Caller(4711, [4711])
    first = stack.client(trusted=True)
    handle = first.open("/file", CREATE, 0o600, ann)
    first.vfs.write(handle, 0, b"ann's")
    first.kill()
    second = stack.client(before=first, trusted=True)
    second.close_handle(handle)
    attr = second.walk("/file", ann, fresh=True)
    assert (attr.uid, attr.size) == (4711, 5)


# Calls that were under way


class Killed(BaseException):
    """The worker is killed here."""


@contextmanager
def killed_at_change(stack: Stack, client: Client, *, before: bool = False) -> Iterator[None]:
    """In the block the next change of the directory is made, and its answer comes too late; or ``before`` it
    is sent, the worker dies."""
    with cut_at(stack, client, "/v1/mutations", before=before), pytest.raises(OSError):
        yield


def change(client: Client, what: str) -> int:
    """A call that cannot be repeated as it is; the inode that it makes."""
    root = client.walk("/").ino
    match what:
        case "mkdir":
            return client.vfs.mkdir(root, b"new", 0o755, None).ino
        case "create":
            handle, attr = client.vfs.create(root, b"new", 0o644, os.O_RDWR | os.O_EXCL, None)
            client.vfs.write(handle.number, 0, b"content")
            client.close_handle(handle.number)
            return attr.ino
        case "create nameless":
            handle, attr = client.vfs.create_nameless(root, 0o644, os.O_TMPFILE | os.O_RDWR, None)
            client.vfs.write(handle.number, 0, b"content")
            client.vfs.link(attr.ino, root, b"new", None)
            client.close_handle(handle.number)
            return attr.ino
        case "unlink":
            client.vfs.unlink(root, b"file", None)
        case "rename":
            client.vfs.rename(root, b"file", root, b"moved", 0, None)
        case "link":
            client.vfs.link(client.walk("/file").ino, root, b"linked", None)
        case "setxattr":
            ino = client.walk("/file").ino
            client.vfs.setxattr(ino, b"user.name", b"1", os.XATTR_CREATE, None)
    return 0


CHANGES = ("mkdir", "create", "create nameless", "unlink", "rename", "link", "setxattr")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_whose_worker_died_is_made_once(stack: Stack, what: str, before: bool) -> None:
    """Other calls acknowledge what they may before it is repeated."""
    first = stack.client()
    first.write("/file", b"file")
    first.walk("/file")
    with killed_at_change(stack, first, before=before), first.call(7):
        change(first, what)
    second = restarted(stack, first)
    with second.call(8):
        second.mkdir("/meanwhile")
    with second.call(7):
        told = change(second, what)
    other = stack.client()
    tree = other.tree()
    assert tree.pop("/meanwhile", b"") is None
    expected = {
        "mkdir": {"/file": b"file", "/new": None},
        "create": {"/file": b"file", "/new": b"content"},
        "create nameless": {"/file": b"file", "/new": b"content"},
        "unlink": {},
        "rename": {"/moved": b"file"},
        "link": {"/file": b"file", "/linked": b"file"},
        "setxattr": {"/file": b"file"},
    }
    assert tree == expected[what]
    if told:
        assert told == other.walk("/new").ino
    assert list(second.proxy.slate.calls.items()) == []
    assert second.proxy.directory._channel.counter._under_way == set(), "all may be acknowledged"


def test_the_answer_of_a_call_is_not_forgotten_before_the_kernel_has_it(stack: Stack) -> None:
    """The directory has answered, other calls have acknowledged what they could, and then the worker dies."""
    first = stack.client()
    first.proxy.calls.begin(7)
    ino = first.mkdir("/new").ino
    thread = threading.Thread(target=first.mkdir, args=("/other",))
    thread.start()
    thread.join()
    second = restarted(stack, first)
    with second.call(7):
        assert second.mkdir("/new").ino == ino
    with second.call(8), pytest.raises(FileExistsError):
        second.mkdir("/new")


def test_an_open_that_was_not_answered_is_answered_again(stack: Stack) -> None:
    first = stack.client()
    first.write("/file", b"content")
    with first.call(7):
        handle = first.open("/file", os.O_RDWR | os.O_TRUNC)
        first.kill()
    second = stack.client(before=first)
    with second.call(7):
        assert second.open("/file", os.O_RDWR | os.O_TRUNC) == handle
    second.close_handle(handle)
    second.write("/file", b"x")
    assert second.tree() == {"/file": b"x"}
    assert list(second.proxy.slate.handles.items()) == []


def test_an_open_is_answered_again_though_the_name_is_gone(stack: Stack) -> None:
    """Else the handle would be open for ever, and its lock held."""
    first = stack.client()
    first.write("/file", b"content")
    with first.call(7):
        handle = first.open("/file", os.O_RDWR)
        first.kill()
    stack.client().unlink("/file")
    second = stack.client(before=first)
    with second.call(7):
        assert second.open("/file", os.O_RDWR) == handle


def test_an_append_that_was_not_answered_is_there_once(stack: Stack) -> None:
    first = stack.client()
    first.write("/file", b"0")
    handle = first.open("/file", os.O_WRONLY | os.O_APPEND)
    for unique, text in ((1, b"1"), (2, b"2")):
        with first.call(unique):
            first.vfs.write(handle, 0, text)
            if unique == 2:
                first.kill()
    second = stack.client(before=first)
    with second.call(2):
        second.vfs.write(handle, 0, b"2")
    with second.call(3):
        second.vfs.write(handle, 0, b"3")
    second.close_handle(handle)
    assert stack.client().tree() == {"/file": b"0123"}


def test_a_close_that_was_cut_off_is_done(stack: Stack) -> None:
    """Killed after each request that a flush and a release make, one after the other."""
    for steps in itertools.count():
        first = stack.client()
        name = f"/file{steps}"
        handle = first.open(name, CREATE)
        first.vfs.write(handle, 0, b"data")
        left = itertools.count(steps, -1)

        def count(_url: str, _headers: Mapping[str, str], left: Iterator[int] = left) -> None:
            if threading.current_thread() is threading.main_thread() and next(left) <= 0:
                raise Killed

        stack.wire.after.append(count)
        was_cut = False
        try:
            first.close_handle(handle)
        except Killed:
            was_cut = True
        stack.wire.after.remove(count)
        second = restarted(stack, first)
        if handle in {file.number for _, file in second.proxy.slate.handles.items()}:
            second.close_handle(handle)
        assert stack.client().read(name) == b"data"
        if not was_cut:
            break
    assert steps >= 2
    assert len(stack.client().names()) == steps + 1, "no conflict copies"


def test_a_creation_that_failed_keeps_no_inode_number(stack: Stack) -> None:
    """It was given to another file, which must not lose its lock when the call is repeated."""
    first = stack.client()
    first.write("/taken", b"taken")
    first.proxy.calls.begin(7)
    root = first.walk("/").ino
    with pytest.raises(FileExistsError):
        first.vfs.create(root, b"taken", 0o644, os.O_RDWR, None)
    first.proxy.calls._current.__dict__.clear()  # another thread goes on
    others = [first.open(f"/other{n}", CREATE) for n in range(70)]
    second = restarted(stack, first)
    with second.call(7), pytest.raises(FileExistsError):
        second.vfs.create(root, b"taken", 0o644, os.O_RDWR, None)
    more = [second.open(f"/more{n}", CREATE) for n in range(70)]
    numbers = [second.vfs.inode_of(handle) for handle in others + more]
    assert len(set(numbers)) == 140
    for handle in others + more:
        second.vfs.write(handle, 0, b"x")
        second.close_handle(handle)


def test_calls_that_no_kernel_repeats_are_given_up(stack: Stack) -> None:
    first = stack.client()
    first.proxy.calls.note_all = True
    first.write("/file", b"file")
    with first.call(1):
        kept = first.open("/file", os.O_RDONLY)
    for unique in (2, 3, 4):  # none of these is answered
        first.proxy.calls.begin(unique)
        match unique:
            case 2:
                first.walk("/file")
            case 3:
                opened = first.open("/opened", CREATE)
            case 4:
                first.proxy.calls.closing(kept)
    second = restarted(stack, first)
    assert {handle.number for handle in second.vfs.handles()} == {kept, opened}
    assert sorted(second.vfs.give_up_calls()) == [2, 3, 4]
    assert second.vfs.handles() == []
    assert list(second.proxy.slate.calls.items()) == []
    assert second.proxy.directory._channel.counter._under_way == set()
    other = stack.client()
    wait_until(lambda: can_write(other, "/opened"))


def can_write(client: Client, path: str) -> bool:
    """Whether nobody else has the lock."""
    try:
        client.write(path, b"mine")
    except OSError:
        return False
    return True


def test_the_backing_file_of_an_inode_is_known_whichever_handle_names_it(stack: Stack) -> None:
    """One that the kernel has closed, and whose map may be left, names none."""
    first = stack.client()
    first.write("/file", b"content")
    reader, mapped = first.open("/file", os.O_RDONLY), first.open("/file", os.O_RDWR)
    for number, backing, is_aside in ((reader, 3, False), (mapped, 0, True)):
        handle = next(handle for handle in first.vfs.handles() if handle.number == number)
        first.vfs.note_served(handle, Fopen.PASSTHROUGH, backing, 9 * bool(backing), is_aside=is_aside)
    second = restarted(stack, first)
    passthrough = Passthrough(second.vfs, -1, lambda _handle: None, is_possible=False)
    inode = passthrough._inodes[second.vfs.inode_of(reader)]
    assert (inode.backing, inode.file_number, inode.borrowers) == (3, 9, 1)
    assert [handle.number for handle in inode.put_aside] == [mapped]
    passthrough.close()


def test_locks_that_nobody_needs_any_more_are_given_back(stack: Stack) -> None:
    first = stack.client()
    first.open("/file", CREATE)
    first.kill()
    before = len(stack.lock_holders())
    second = stack.client(before=first)
    renewed = second.proxy.lock.renew()
    second.proxy.write_locks._give_back_unheard(renewed.held, set())
    wait_until(lambda: len(stack.lock_holders()) == 1)
    assert before > 1
