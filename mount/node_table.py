"""The open inodes and handles of a mount, and what the next worker must know of them.

What a program has open is written down on the slate (mount.slate) before the program hears that it is open,
and stays there until its close is done: a worker that is killed leaves it as it was, and the next one goes on
with it (mount.takeover).

``NodeTable._guard`` protects which inodes are open. It stands beside ``Node.guard`` in the order of the locks
(see mount.nodes): under it local copies are opened and closed, and nothing is asked of a service.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from cache.copies import CopyStore
from mount.calls import Calls
from mount.nodes import Handle, Node
from mount.pending import NOTHING_PENDING, PendingAttrs
from mount.slate import Attributes, OpenFile, Slate
from wire.messages.common import Caller
from wire.messages.directory import Attr
from wire.permissions import Identity


class NodeTable:
    """All nodes and handles of a mount. They are written down in ``slate`` as they come and go, for the next
    worker to ``restore``."""

    def __init__(
        self,
        copies: CopyStore,
        slate: Slate,
        calls: Calls,
        identity: Callable[[Caller | None], Identity],
    ) -> None:
        self._copies = copies
        self._identity = identity
        self._slate = slate
        self._calls = calls
        self._guard = threading.Lock()
        self._noting = threading.Lock()  # a leaf: what is on the slate of a handle
        self._nodes: dict[int, Node] = {}
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(slate.first_number)
        self._restored: dict[int, Handle] = {}
        self._attributes = {kept.ino: slot for slot, kept in slate.attributes.items()}

    def peek(self, ino: int) -> Node | None:
        """The node, if the inode is open."""
        return self._nodes.get(ino)

    def pin(self, attr: Attr) -> Node:
        """The node of an inode, made if need be; it stays until as many ``unpin``."""
        with self._guard:
            node = self._nodes.get(attr.ino)
            if node is None:
                copy = self._copies.open(attr.ino)
                node = self._nodes[attr.ino] = Node(copy, attr, self._keep, self._note_outrun, self._identity)
            node.pins += 1
            return node

    def unpin(self, node: Node) -> bool:
        """One user less; True if that was the last."""
        with self._guard:
            node.pins -= 1
            if node.pins:
                return False
            del self._nodes[node.ino]
            if node.ino in self._attributes:
                self._keep(node.ino, NOTHING_PENDING)
            node.copy.close()
            return True

    @contextmanager
    def pinned(self, attr: Attr) -> Iterator[Node]:
        """A node for the length of a block."""
        node = self.pin(attr)
        try:
            yield node
        finally:
            self.unpin(node)

    def add_handle(self, node: Node, flags: int, who: Caller | None, *, is_writer: bool) -> Handle:
        """A handle for a node that the caller has pinned. Raises ENFILE."""
        number = next(self._numbers)
        token = 0 if node.lock is None else node.lock.token
        file = OpenFile(
            *(number, node.ino, flags, who, is_writer, self._calls.unique, token, node.copy.version),
            is_shared=node.is_shared,
        )
        handle = Handle(number, node, flags, who, is_writer, self._slate.handles.take(file), file)
        self._handles[number] = handle
        return handle

    def handle(self, number: int) -> Handle:
        """Raises KeyError for a number that is not open."""
        return self._handles[number]

    def handles(self) -> list[Handle]:
        """All open files, as of now."""
        return list(self._handles.values())

    def remove_handle(self, number: int) -> Handle:
        """Takes the handle out of the table; its node stays pinned, and the slate has it until ``forget``: a
        worker that dies before has its close done anew."""
        return self._handles.pop(number)

    def note(self, handle: Handle, **what: int) -> None:
        """Writes down what is so of a handle from now on, unless it is hidden or forgotten by now."""
        with self._noting:
            record = msgspec.structs.replace(handle.record, **what)
            if handle.is_noted:
                self._slate.handles.put(handle.slot, record)
            handle.record = record

    def hide(self, handle: Handle) -> None:
        """For the kernel, and so for the next worker, the handle is closed; until it is shown again."""
        with self._noting:
            handle.is_noted = False
            self._slate.handles.hide(handle.slot)

    def show(self, handle: Handle, unique: int) -> None:
        """The call ``unique`` has opened a hidden handle."""
        with self._noting:
            handle.record = msgspec.structs.replace(handle.record, opened_by=unique)
            self._slate.handles.put(handle.slot, handle.record)
            handle.is_noted = True

    def forget(self, handle: Handle) -> None:
        """The handle is closed."""
        with self._noting:
            handle.is_noted = False
            self._slate.handles.free(handle.slot)

    def nodes(self) -> list[Node]:
        """All open inodes, as of now."""
        with self._guard:
            return list(self._nodes.values())

    # From worker to worker

    def restore(self, slot: int, file: OpenFile, node: Node) -> None:
        """A handle that an earlier worker has written down, for a node that the caller has pinned."""
        handle = Handle(file.number, node, file.flags, file.caller, file.is_writer, slot, file)
        self._handles[file.number] = handle
        if file.opened_by:
            self._restored[file.opened_by] = handle

    def opened_before(self, unique: int = 0) -> Handle | None:
        """The handle that this call (or another one) has opened already, though its worker died before it
        could say so."""
        return self._restored.pop(unique or self._calls.unique, None) if self._restored else None

    def _note_outrun(self, node: Node) -> None:
        for handle in list(self._handles.values()):
            if handle.node is node and handle.is_writer:
                self.note(handle, opened_by=0, outrun=True)

    def note_shared(self, node: Node) -> None:
        """Writes down, for the next worker, that programs lock the file for themselves."""
        for handle in list(self._handles.values()):
            if handle.node is node:
                self.note(handle, is_shared=True)

    def attributes_left(self, ino: int) -> PendingAttrs:
        """What an earlier worker has written down of an inode, and no commit has made true."""
        slot = self._attributes.get(ino)
        kept = next((kept for found, kept in self._slate.attributes.items() if found == slot), None)
        return PendingAttrs() if kept is None else PendingAttrs(kept.mode, kept.atime, kept.mtime)

    def forget_attributes_left(self) -> None:
        """Those of inodes that nobody has open."""
        for ino in self._attributes.keys() - self._nodes.keys():
            self._keep(ino, PendingAttrs())

    def _keep(self, ino: int, attrs: PendingAttrs) -> None:
        """Under the node's guard, or when nobody has the node."""
        slot = self._attributes.get(ino)
        kept = Attributes(ino, attrs.mode, attrs.atime, attrs.mtime)
        if slot is not None and attrs:
            self._slate.attributes.put(slot, kept)
        elif attrs:
            self._attributes[ino] = self._slate.attributes.take(kept)
        elif slot is not None:
            self._slate.attributes.free(self._attributes.pop(ino))
