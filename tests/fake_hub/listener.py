"""An origin: a listening socket with a handler that reads requests, spoils answers as told, and keeps the record.

A body is always read whole before the answer. Unread bytes would be taken for the next request.
"""

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.fake_hub.faults import Fault
from tests.fake_hub.router import answer
from tests.fake_hub.store import Store
from tests.fake_hub.wire import Request, Response, Seen

# Seconds in which a piece of a body is sent where the line has a rate.
_TICK = 0.02


class Journal:
    """The record of requests and the faults to come, shared by the origins."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.failures: list[BaseException] = []  # of the server itself: a test that meets one fails
        self.released = threading.Event()  # ends every delay
        self.rate: float | None = None  # bytes a second of each answer; as fast as it goes

    def strike(self, request: Request, response: Response | None = None) -> Fault | None:
        """Return the fault that applies to a request: before it is handled one with a status, afterwards one of the
        others.
        """
        with self.lock:
            for fault in self.faults:
                early = fault.status is not None
                if (
                    fault.meets(request)
                    and early == (response is None)
                    and (response is None or fault.spoils(request, response))
                    and fault.strike()
                ):
                    return fault
        return None


class Origin(ThreadingHTTPServer):
    """A server at a port of its own. It listens from the start, and answers once `serve` is called."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str, port: int, journal: Journal) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.name, self.journal = name, journal
        self.store: Store
        self.thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, store: Store) -> None:
        self.store = store
        self.thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name=f"hub-{self.name}", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        if self.thread:
            self.shutdown()
            self.thread.join()
        self.server_close()

    def server_bind(self) -> None:
        """Bind without the base class's reverse look-up of the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client has gone, which is its right
        except Exception as error:  # noqa: BLE001
            self.server.journal.failures.append(error)

    def serve(self) -> None:
        split = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(split.query, keep_blank_values=True)
        request = Request(self.server.name, self.command, split.path, query, headers, self.body())
        journal = self.server.journal
        fault = journal.strike(request)
        response = fault.refusal(request) if fault else None
        if response is None:
            response = self.answer(request)
            fault = journal.strike(request, response)
        seen = Seen(
            request.origin, request.method, request.path, query, headers, response.status, fault.name if fault else None
        )
        with journal.lock:
            journal.seen.append(seen)
        self.reply(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, request: Request) -> Response:
        """Return the handler's answer. An error of the server is a 500, and is kept so that the test fails."""
        try:
            return answer(self.server.store, request)
        except Exception as error:  # noqa: BLE001
            error.add_note(f"while answering {request.method} {request.path}")
            self.server.journal.failures.append(error)
            return Response(500, repr(error).encode())

    def body(self) -> bytes:
        """Read the whole body, chunked or not."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def reply(self, response: Response, fault: Fault | None) -> None:
        if fault and fault.delay:
            self.server.journal.released.wait(fault.delay)
        if fault and fault.lost:
            return self.hang_up()
        if fault and fault.status is None:
            response = fault.spoil(response)
        endless = fault is not None and fault.endless
        drip = fault.drip if fault else None
        extent = {"Transfer-Encoding": "chunked"} if endless else {"Content-Length": str(len(response.body))}
        self.send_response(response.status)
        for name, value in {**response.headers, **extent}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        if drip == "headers":
            self.trickle(b"".join(self._headers_buffer))
            self._headers_buffer = []
        self.end_headers()
        cut = fault.cut if fault else None
        if self.command == "HEAD":
            pass
        elif endless:
            self.flood(response.body)
        elif drip == "body":
            self.trickle(response.body)
        else:
            self.send(response.body[:cut])
        return None if cut is None else self.hang_up()

    def send(self, content: bytes) -> None:
        """Send a body, no faster than the line is."""
        rate = self.server.journal.rate
        if rate is None:
            self.wfile.write(content)
            return
        start = time.monotonic()
        size = max(1, int(rate * _TICK))
        for place in range(0, len(content), size):
            ahead = place / rate - (time.monotonic() - start)
            self.server.journal.released.wait(max(0, ahead))
            self.wfile.write(content[place : place + size])

    def trickle(self, content: bytes) -> None:
        """Send a byte every 20 ms, until the client goes or the Hub stops, which ends the connection."""
        for place in range(len(content)):
            self.wfile.write(content[place : place + 1])
            if self.server.journal.released.wait(0.02):
                return self.hang_up()
        return None

    def flood(self, content: bytes) -> None:
        """Send chunks without end, until the client goes or the Hub stops."""
        while not self.server.journal.released.is_set():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
            content = bytes(1 << 16)

    def hang_up(self) -> None:
        """Close the connection, whatever the headers promise."""
        self.close_connection = True
        self.wfile.flush()
        with suppress(OSError):  # the client has gone already
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to stderr: the journal has the requests."""
