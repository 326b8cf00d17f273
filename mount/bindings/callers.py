"""Who has called: what the kernel tells of the calling process, and what /proc adds."""

from wire.limits import CALLER_GIDS_MAX
from wire.messages.common import Caller


def caller(uid: int, gid: int, pid: int) -> Caller:
    """The caller of a request with his supplementary groups, as the kernel knows them (proc(5)); without them
    if he is gone already. Of very many groups only the first ones count."""
    return Caller(uid, [gid, *_supplementary_groups(pid, gid)][:CALLER_GIDS_MAX])


def _supplementary_groups(pid: int, gid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/status") as status:
            groups = next(line for line in status if line.startswith("Groups:"))
    except (OSError, StopIteration):
        return []
    return [int(number) for number in groups.split()[1:] if int(number) != gid]
