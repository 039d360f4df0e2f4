"""The form of the log: one line a record, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
from typing import Any


class LogFormatter(logging.Formatter):
    """Log records as text or as JSON, one a line."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}"
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        error = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            entry = {"time": when, "level": record.levelname.lower(), "message": message, **fields}
            if error:
                entry["error"] = error
            return json.dumps(entry, ensure_ascii=False)
        values = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)
        return f"{when} {record.levelname.lower()} {' '.join(filter(None, (message, values)))}" + (
            f"\n{error}" if error else ""
        )


def _quoted(value: Any) -> str:
    text = str(value)
    # A client's path must not end a line or look like another field.
    return text if re.fullmatch(r"[\x21\x23-\x3c\x3e-\x7e]+", text) else json.dumps(text)
