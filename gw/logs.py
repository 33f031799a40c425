"""How the log looks: text for people, one JSON object a line for machines; on stderr, the same in every process."""

from __future__ import annotations

import logging
from typing import Any, Final

LEVELS: Final = ("error", "warning", "info", "debug")
FORMATS: Final = ("text", "json")
CHATTY: Final = ("uvicorn", "asyncio", "watchfiles", "hpack", "h2", "pyroute2", "pyroute2.netlink.core")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (unix seconds), level, logger, message, and what came by `extra=`."""

    _standard: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        import json  # commands that log nothing do not wait for it

        line: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in self._standard})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:31:07 warning control: text`."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("gw.")
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {name}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def start(level: str, form: str) -> None:
    """Send the root logger to stderr. level: of LEVELS; form: of FORMATS."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # nothing of it is shown, and finding it out costs more than writing the line
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # HOWTO logging, "Optimization"


def chosen() -> tuple[str, str]:
    """Level and form in force, for a process that this one starts."""
    is_json = any(isinstance(each.formatter, JsonFormatter) for each in logging.root.handlers)
    return logging.getLevelName(logging.root.level).lower(), "json" if is_json else "text"
