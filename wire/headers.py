"""How sealed messages travel over HTTP: what both sides must spell alike.

A request names itself and shows its ticket in headers. Its sealed message is the body, or, if the method
has none, a header too. A reply's is always the body.
"""

REQUEST_HEADER = "DFS-Request"
"""The request id."""
TICKET_HEADER = "DFS-Ticket"
"""The ticket, in base64."""
SEAL_HEADER = "DFS-Seal"
"""The sealed message of a request without a body, in base64."""

SEALED = "application/vnd.dfs.sealed"
"""The media type of a sealed body."""
METHODS_WITH_BODY = ("PUT", "POST")
