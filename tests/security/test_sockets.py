"""Whoever holds connections, or sends too much, keeps nobody from the page, and fills no disk."""

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from types import SimpleNamespace
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

import pytest
import uvicorn
from tests.support.planting import plant
from tests.support.serving import serving

from ckptdb.web.connections import ConnectionLimits, bounded, find_superfluous, network

ENDLESS = "with recursive c(x) as (select 1 union all select x+1 from c) select count(*) from c"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("tree") / "results")


@pytest.fixture(scope="module")
def served(tree, tmp_path_factory):
    with serving(tree, home=tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def mortal(tree, tmp_path):
    with serving(tree, home=tmp_path) as server:
        yield server


@pytest.fixture
def connect(served):
    """Open connections that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_one(source="127.0.0.1"):
            where = urlsplit(served.base)
            return stack.enter_context(
                socket.create_connection(
                    (where.hostname, where.port), timeout=20, source_address=(source, 0)
                )
            )

        yield open_one


def get(address, path="/"):
    with urlopen(f"{address}{path}", timeout=20) as answer:
        return answer.status, answer.read()


def open_files(served):
    return len(os.listdir(f"/proc/{served.process.pid}/fd"))


def is_closed(connection, within=20):
    """Wait until the other side has closed it; return what it said before."""
    connection.settimeout(within)
    told = b""
    try:
        while part := connection.recv(65536):
            told += part
    except ConnectionResetError:
        pass
    return told


@pytest.mark.slow
@pytest.mark.parametrize("files", [256, 20_000], ids=["few files", "many files"])
def test_four_hundred_silent_sockets_leave_the_page_reachable(tree, tmp_path, files):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))
    with serving(tree, home=tmp_path) as served, contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        where = urlsplit(served.base)
        for _ in range(400):
            stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=20))
        assert get(served.base)[0] == 200
        assert open_files(served) < 200
        assert served.log.read_text() == ""


def test_silent_sockets_from_many_addresses_leave_the_page_reachable(served, connect):
    for number in range(400):
        connect(f"127.0.{number % 200}.2")

    assert get(served.base)[0] == 200
    assert open_files(served) < 200


# --- half a request, half an answer ---------------------------------------------------------------


@pytest.fixture
def hasty():
    """A server of large answers that waits for nobody longer than half a second."""

    async def answer(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(30_000_000)})

    limits = ConnectionLimits(most=20, most_of_one=20, patience_seconds=0.5)
    config = uvicorn.Config(
        answer, http=bounded(limits), ws="none", lifespan="off", log_config=None
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        server.place = listener.getsockname()
        yield server
        server.should_exit = True
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "more"),
    [
        (b"", b""),
        (b"GET / HT", b"x"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"x"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: 1\r\n"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nx", b"x"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n", b"x"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    ],
    ids=["silence", "line", "header", "headers", "body", "chunk", "idle after an answer"],
)
def test_half_of_a_request_does_not_stay_however_slowly_it_goes_on(hasty, sent, more):
    with socket.create_connection(hasty.place, timeout=20) as connection:
        connection.sendall(sent)
        connection.settimeout(0.05)
        for _ in range(90):
            try:
                connection.sendall(more)
                while connection.recv(1_000_000):
                    pass
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
    pytest.fail("The connection is still open.")


@pytest.mark.slow
def test_who_does_not_read_an_answer_is_not_waited_for(hasty):
    with socket.create_connection(hasty.place, timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(10)
        assert hasty.server_state.connections
        for _ in range(90):
            if not hasty.server_state.connections:
                return
            time.sleep(0.05)
    pytest.fail("The connection is still open.")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_reads_an_answer_slowly_gets_all_of_it(hasty, version):
    with socket.create_connection(hasty.place, timeout=20) as connection:
        connection.sendall(f"GET / HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        size = 0
        while size < 30_000_000 and (part := connection.recv(1_000_000)):
            size += len(part)
            time.sleep(0.05)  # in all longer than anything may wait

    assert size >= 30_000_000


def test_who_does_not_read_takes_no_memory(served, connect):
    def resident():
        with open(f"/proc/{served.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) // 1024 for line in status if "VmRSS" in line)

    path = "/-/ckptdb/plotly.min.js"
    assert len(get(served.base, path)[1]) > 4_000_000
    before = resident()
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    lazy = [connect() for _ in range(60)]
    for connection in lazy:
        connection.sendall(request)
    for connection in lazy:
        connection.recv(1)

    assert resident() < before + 60


def test_who_goes_away_in_the_middle_of_an_answer_is_not_logged(served, connect):
    for _ in range(60):
        connection = connect()
        request = "GET /-/ckptdb/plotly.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request.encode())
        connection.recv(1)
        reset_at_close = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_at_close)
        connection.close()
    assert get(served.base)[0] == 200

    assert served.log.read_text() == ""


# --- too much -------------------------------------------------------------------------------------

REQUEST = b"GET /-/versions.json HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * 2_000_000,
        b"G" * 2_000_000,
        REQUEST + b"X: " + b"x" * 2_000_000,
        REQUEST + b"X: 1\r\n" * 100_000 + b"\r\n",
        REQUEST + b" \r\n" * 100_000,
        b"\r\n" * 1_000_000,
    ],
    ids=["address", "method", "header", "headers", "folded", "empty lines"],
)
def test_a_request_that_is_too_large_is_refused_at_once(served, connect, sent):
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(sent)
    told = is_closed(connection, within=5)

    assert b"200 OK" not in told
    assert get(served.base)[0] == 200
    assert served.log.read_text() == ""


def test_a_body_without_an_end_is_not_read(served, connect):
    connection = connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n")
    with pytest.raises(ConnectionError):
        connection.sendall(bytes(100_000_000))

    assert get(served.base)[0] == 200


def test_an_address_that_is_too_long_is_told_so(served, connect):
    connection = connect()
    connection.sendall(
        b"GET /catalog?sql=" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )

    assert connection.recv(65536).startswith(b"HTTP/1.1 414 ")


def test_whatever_strangers_send_the_log_stays_as_it_is(served, connect):
    for sent in (
        b"\x16\x03\x01\x02\n\n",
        b"GET / HTTP/9\r\n\r\n",
        b"\x1b]0;owned\x07 / HTTP/1.1\r\n\r\n",
    ):
        for _ in range(100):
            connection = connect()
            connection.sendall(sent)
            is_closed(connection)
    for _ in range(100):
        connection = connect()
        connection.sendall(REQUEST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        connection.recv(10)

    assert served.log.read_text() == ""


@pytest.mark.slow
def test_the_page_answers_while_forty_slow_queries_run(mortal):
    began, ended = threading.Barrier(41), []

    def ask():
        began.wait()
        with contextlib.suppress(OSError):
            get(mortal.base, f"/catalog.json?sql={quote(ENDLESS)}")
        ended.append(time.monotonic())

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(40)]
    for thread in threads:
        thread.start()
    began.wait()
    for path in ("/", "/catalog", "/catalog/runs", "/catalog/runs.json", "/-/ckptdb/page.js?1"):
        assert get(mortal.base, path)[0] == 200
    assert len(ended) < 40  # however slow the machine: some still wait or run
    mortal.process.kill()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_very_many_queries_are_refused_rather_than_kept_waiting(mortal):
    told = []

    def ask():
        with contextlib.suppress(OSError), socket.create_connection(where, timeout=20) as one:
            one.sendall(
                f"GET /catalog?sql={quote(ENDLESS)} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
            )
            told.append(one.recv(65536))

    where = (urlsplit(mortal.base).hostname, urlsplit(mortal.base).port)
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(90)]
    for thread in threads:
        thread.start()
    while not any(b"503" in one for one in told):
        time.sleep(0.05)
    assert get(mortal.base)[0] == 200
    mortal.process.kill()
    for thread in threads:
        thread.join()
    assert any(b"Too many queries are running here; try again shortly." in one for one in told)


# --- which connection is closed -------------------------------------------------------------------


def held(peer, since, *, busy=False):
    return SimpleNamespace(peer=peer, since=since, is_busy=busy)


LIMITS = ConnectionLimits(most=4, most_of_one=3)


@pytest.mark.parametrize(
    ("before", "newest", "closed"),
    [
        ([held("a", 1), held("b", 2)], held("a", 3), None),
        ([held("a", 1), held("a", 2), held("a", 3)], held("a", 4), 1),
        ([held("a", 1, busy=True), held("a", 2), held("a", 3)], held("a", 4), 2),
        ([held("a", 1, busy=True)] * 3, held("a", 4), 4),
        ([held("b", 0), held("a", 1), held("a", 2), held("a", 3)], held("b", 4), 1),
        ([held("b", 0), held("c", 1), held("d", 2), held("e", 3)], held("f", 4), 0),
        ([held("b", 0, busy=True), held("c", 1, busy=True), held("a", 2), held("d", 3)],
         held("f", 4), 2),
    ],
    ids=["room", "oldest", "not a busy one", "all busy", "of the most", "one of each", "waiting"],
)  # fmt: skip
def test_of_too_many_connections_the_one_that_waits_for_longest_goes(before, newest, closed):
    found = find_superfluous([*before, newest], newest, LIMITS)

    assert (found and found.since) == closed


def test_few_open_files_mean_few_connections():
    assert [ConnectionLimits.of(files).most for files in (64, 256, 1024, 2**40)] == [
        16,
        64,
        128,
        128,
    ]


def test_addresses_of_one_network_are_one():
    assert network("2001:db8::1") == network("2001:db8::2%eth0") != network("2001:db8:1::1")
    assert network("10.0.0.1") != network("10.0.0.2")
    assert network("") == ""
