"""An HTTP client for one server. It distinguishes two kinds of failure: the server is gone, or it refuses a request."""

import http
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from gpg_vl.errors import RunError

ANSWER_SECONDS = 3600.0
"""Time limit of a request for answers. Long answers take long; if the server dies, the connection breaks at once."""
TALK_SECONDS = 60.0

# ignore the proxy of the environment, which is for the internet and not for the servers of a run
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class ServerGoneError(Exception):
    """Nothing answers at the URL, or the connection broke: the server has died or not started yet."""


class ServerRefusedError(RunError):
    """The server answered with an error."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that `gpg-vl serve` has started.

    Example: `Server("http://127.0.0.1:8000").get("/health")`
    """

    url: str

    def get(self, path: str, *, seconds: float = TALK_SECONDS) -> Any:
        """Raises ServerGoneError or ServerRefusedError."""
        return self._ask(urllib.request.Request(self.url + path), seconds)

    def post(
        self, path: str, body: Any = None, *, seconds: float = TALK_SECONDS, **query: str
    ) -> Any:
        """Raises ServerGoneError or ServerRefusedError."""
        address = self.url + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        request = urllib.request.Request(
            address,
            data=json.dumps({} if body is None else body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        return self._ask(request, seconds)

    def call(self, method: str, *, seconds: float = TALK_SECONDS) -> list[Any]:
        """Call a method of `worker.Served` on every worker. Returns their results."""
        results: list[Any] = self.post("/collective_rpc", {"method": method}, seconds=seconds)[
            "results"
        ]
        return results

    def _ask(self, request: urllib.request.Request, seconds: float) -> Any:
        try:
            with _open(request, timeout=seconds) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            reply = error.read().decode(errors="replace")[:2000]
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise ServerGoneError(f"{self.url}: {reply.strip() or error.reason}") from None
            raise ServerRefusedError(
                f"The server {self.url} answers {error.code} to {request.selector}: {reply.strip() or error.reason}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerGoneError(f"{self.url}: {error}") from None
        return json.loads(text) if text.strip() else None
