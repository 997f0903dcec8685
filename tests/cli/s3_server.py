"""A real server of S3 on loopback (moto's), whose requests are counted, and which can be held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

moto = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")

BUCKET = "goldens"


class S3:
    """The server.

    Args:
        url: its address.

    The public attributes: ``asked``, the requests since it was last cleared, as ``GET /bucket/key``; ``hold``,
    called with each before it is answered.
    """

    def __init__(self) -> None:
        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = serving.make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.asked: list[str] = []
        self.hold: Callable[[str, Any], None] = lambda request, environ: None

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        query = f"?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else ""
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}"
        self.asked.append(request)
        self.hold(request, environ)
        found: Iterable[bytes] = self._app(environ, start)
        return found

    @contextmanager
    def running(self) -> Iterator[S3]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
