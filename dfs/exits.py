"""The exit statuses of the ``dfs`` command.

==  ==========================================================================
 0  done
 1  failed; the sentence on standard error says why
 2  the command line is wrong, or a value in it
 3  a service is not reachable, or did not answer in time
 4  wrong user name or password, or not logged in
 5  not permitted
 6  it runs or is there already, or somebody else uses it
 7  not found
==  ==========================================================================
"""

import errno

from wire.errors import BadSeal, TicketRefused, Unavailable, WrongCredentials

DONE = 0
GENERAL = 1
USAGE = 2
NOT_REACHABLE = 3
CREDENTIALS = 4
REFUSED = 5
BUSY = 6
NOT_FOUND = 7
INTERRUPTED = 130
"""As shells say it of SIGINT."""

_STATUS = {
    errno.EINVAL: USAGE,
    errno.ENAMETOOLONG: USAGE,
    errno.ECONNREFUSED: NOT_REACHABLE,
    errno.EPROTO: NOT_REACHABLE,
    errno.EKEYREJECTED: CREDENTIALS,
    errno.EPERM: REFUSED,
    errno.EACCES: REFUSED,
    errno.EBUSY: BUSY,
    errno.EAGAIN: BUSY,
    errno.EEXIST: BUSY,
    errno.EADDRINUSE: BUSY,
    errno.ENOENT: NOT_FOUND,
    errno.ENOTDIR: NOT_FOUND,
}


def status_of(error: OSError) -> int:
    """The exit status that tells of ``error``."""
    if isinstance(error, Unavailable):
        return NOT_REACHABLE
    if isinstance(error, WrongCredentials | TicketRefused | BadSeal):
        return CREDENTIALS
    return _STATUS.get(error.errno or 0, GENERAL)


def sentence_of(error: OSError) -> str:
    """What to tell the user of ``error``."""
    text = str(error.strerror or error)
    return f"{error.filename}: {text}" if error.filename else text
