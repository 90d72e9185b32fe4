"""Protects the files of each visitor of the page from other visitors, and refuses uploads that announce too many bytes.

Gradio lets anybody read any file in its folder whose name they know, and it derives the names from the content of the
files. The guard therefore gives each browser a cookie, and lets it request only files that a response to the same
browser has named before.
"""

import http.cookies
import json
import re
import secrets
import urllib.parse

COOKIE = "vidmotion_studio"
TOKEN = re.compile(r"[\w-]{32}")  # as secrets.token_urlsafe(24) writes it
MOST_BODY = 8 * 2**20  # largest body in bytes of a request that is not an upload
API = ("/gradio_api/", "/file=")


class Guard:
    """ASGI middleware that protects files around Gradio.

    Args:
      app: Gradio's ASGI application.
      folder: the absolute path of the folder where Gradio keeps files.
      most: the largest size of an upload in bytes.
    """

    def __init__(self, app, folder: str, most: int):
        self._app, self._most = app, most
        # Matches the name of a file in a JSON string, in a query or in a path.
        self._name = re.compile(re.escape(folder) + r"/[^\"\\?&]+")
        self._told: dict[str, set[str]] = {}

    async def __call__(self, scope, receive, send):
        """Serves one request, or refuses it with status 403 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        cookies = http.cookies.SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        token = cookies[COOKIE].value if COOKIE in cookies else ""
        new = not TOKEN.fullmatch(token)
        if new:
            token = secrets.token_urlsafe(24)
        told = self._told.get(token, set())
        path = urllib.parse.unquote(scope["path"])
        asked = path + "?" + urllib.parse.unquote(scope["query_string"].decode("latin-1"))
        upload = path.endswith("/upload")
        if upload and int(headers.get(b"content-length", b"0") or 0) > self._most + 2**16:
            await _refuse(
                send, 413, f"the upload is too large; at most {self._most // 2**20} MiB are taken"
            )
            return
        if scope["method"] == "POST" and not upload:
            body = await _whole(receive)
            if body is None:
                await _refuse(send, 413, "the request is too large")
                return
            asked += body.decode("utf-8", "replace")
            receive = _again(body, receive)
        if any(not self._known(name, told) for name in self._name.findall(asked)):
            await _refuse(send, 403, "this file belongs to somebody else, or no longer exists")
            return
        if any(part in path for part in API):
            # The names of files could not be found in a compressed response.
            kept = [item for item in scope["headers"] if item[0] != b"accept-encoding"]
            scope = {**scope, "headers": kept}
        rest = ""
        served = "file=" in path

        async def look(message):
            nonlocal rest
            if message["type"] == "http.response.start" and new:
                line = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict".encode()
                message = {**message, "headers": [*message["headers"], (b"set-cookie", line)]}
            elif message["type"] == "http.response.body" and not served:
                text = rest + message.get("body", b"").decode("utf-8", "replace")
                if names := self._name.findall(text):
                    self._told.setdefault(token, set()).update(names)
                rest = text[-1000:]  # a name may continue in the next piece
            await send(message)

        await self._app(scope, receive, look)

    def _known(self, name: str, told: set[str]) -> bool:
        return name in told


async def _whole(receive) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive):
    """Returns a replacement for `receive` that first gives a body that was already read, then new messages."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def give():
        return left.pop() if left else await receive()

    return give


async def _refuse(send, code: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
