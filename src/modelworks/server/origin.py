"""Who asks: the Host and Origin headers, and what a browser is told about other origins (CORS)."""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelworks.core.config import Settings
from modelworks.core.errors import Invalid
from modelworks.server.errors import ForeignHost, ForeignOrigin
from modelworks.server.refusal import refuse
from modelworks.surfaces.envelopes import is_foreign

logger = logging.getLogger(__name__)

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PREFLIGHT_SECONDS = "600"
# All that a page opened as a file may ever call: a hostile page in a sandboxed frame looks the same.
FILE_PAGE_PATHS = frozenset({"/slm/generate", "/slm/info", "/slm/stream"})
CORS_METHODS = "GET, HEAD, POST, PUT, DELETE"
CORS_HEADERS = "Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Api-Key"
CORS_EXPOSED = "Location, Retry-After"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
}


class HostGuard:
    """Answers only to its own names, so that a foreign name that resolves to this machine leads nowhere."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.names = LOOPBACK_HOSTS | {settings.host.lower()} | {name.lower() for name in settings.allowed_hosts}
        self.anywhere = settings.host in WILDCARD_HOSTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            host = host_of(Headers(scope=scope).get("host", ""))
            if host not in self.names and not (self.anywhere and _is_own_address(host, scope)):
                error = ForeignHost(f"this server is not called {host!r}; --allowed-host {host or 'NAME'} allows it")
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


class OriginGuard:
    """Keeps other web pages from changing anything, and tells browsers which of them may read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        if "*" in settings.allowed_origins:
            raise Invalid("allowed_origins: '*' lets every web page in; name each, e.g. https://app.example.com")
        self.app = app
        self.origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        self.opened_to_files = FILE_PAGE_PATHS if settings.cors_origin == "null" else frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and self._is_allowed(origin.lower(), scope["path"])
        harmless = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        if scope["type"] == "http" and "access-control-request-method" in headers and scope["method"] == "OPTIONS":
            if origin is not None and not allowed:
                _explain(origin, scope["path"])
            await self._preflight(allowed)(scope, receive, self._marked(origin, allowed, send))
        elif origin is None or allowed or harmless or _is_same(origin, headers.get("host", "")):
            await self.app(scope, receive, self._marked(origin, allowed, send))
        else:
            await refuse(ForeignOrigin(_explain(origin, scope["path"])), scope, receive, send)

    def _is_allowed(self, origin: str, path: str) -> bool:
        """The five documents' addresses are open to pages of this machine, whatever their port; ours are not."""
        if origin == "null":
            return path in self.opened_to_files
        return origin in self.origins or (is_foreign(path) and urlsplit(origin).hostname in LOOPBACK_HOSTS)

    def _preflight(self, allowed: bool) -> Response:
        answer = {
            "Access-Control-Allow-Methods": CORS_METHODS,
            "Access-Control-Allow-Headers": CORS_HEADERS,
            "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        }
        return Response(status_code=204, headers=answer if allowed else {})

    def _marked(self, origin: str | None, allowed: bool, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.add_vary_header("Origin")
                if allowed and origin is not None:
                    headers["Access-Control-Allow-Origin"] = origin
                    headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
            await send(message)

        return marked


class SecurityHeaders:
    """What every answer says to the browser that shows it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, marked)


def _explain(origin: str, path: str) -> str:
    """Say in the log, where the page's author looks, why a browser was refused; return the same for an answer."""
    if origin == "null":
        opened = ", ".join(sorted(FILE_PAGE_PATHS))
        said = f"a page opened as a file may not do this; open it over http, or --cors-origin null opens {opened}"
    else:
        said = f"a page from {origin} may not do this; --allowed-origin {origin} allows it"
    logger.warning("a web page was refused", extra={"path": path, "reason": said})
    return said


def host_of(header: str) -> str:
    """The name in a Host header, in lower case, without port and brackets."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _is_own_address(host: str, scope: Scope) -> bool:
    """Whether `host` is the very address that was connected to: a number, which no foreign name server can forge."""
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address(scope["server"][0])
    except ValueError:
        return False


def _is_same(origin: str, host_header: str) -> bool:
    scheme, separator, authority = origin.lower().partition("://")
    return bool(separator) and scheme in {"http", "https"} and authority == host_header.strip().lower()
