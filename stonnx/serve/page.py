"""The page at ``/``: one file, which may not load anything else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from functools import cache
from importlib import resources

_NO_PAGE = "<!doctype html><title>stonnx</title><p>This is a stonnx server. GET /openapi.json lists its routes.</p>"


@cache
def packed_page() -> tuple[bytes, dict[str, str]]:
    """The same for browsers that unpack it: a quarter of the bytes."""
    text, headers = page()
    return gzip.compress(text, mtime=0), {**headers, "content-encoding": "gzip"}


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that allow only its own scripts and styles, by their hashes."""
    file = resources.files("stonnx.serve").joinpath("page.html")
    text = file.read_text(encoding="utf-8") if file.is_file() else _NO_PAGE
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src 'self' data:",
        f"script-src {_hashes(text, 'script')}",
        f"style-src {_hashes(text, 'style')}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept, accept-encoding",
    }
    return text.encode(), headers


def _hashes(text: str, element: str) -> str:
    """The hashes of all inline elements of a kind, in the form of a policy."""
    found = re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
