"""The log of a daemon: one line an event, with the request id that all services share."""

import contextvars
import logging
import sys

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
"""The request that this thread works on."""

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request)s] %(message)s"


class _WithRequest(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request = request_id.get()
        return True


def set_up_logging(level: str = "INFO") -> None:
    """Logs to standard error; the supervisor or systemd says where that goes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_WithRequest())
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
