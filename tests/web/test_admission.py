"""Of each kind of request only so many wait for their answer to begin."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptdb.web.admission import MOST_HELD_BYTES, Admission, is_question

BASE = "/f00/"


def run(coroutine):
    """Run it in a thread of its own: Playwright's loop may hold this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


class Backstage:
    """What is behind it: answers begin and end when the test says so."""

    def __init__(self):
        self.may_begin, self.may_end = asyncio.Event(), asyncio.Event()
        self.questions = []

    async def __call__(self, _scope, _receive, send):
        self.questions.append(is_question())
        await self.may_begin.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b""})


async def ask(application, path):
    path, _, query = path.partition("?")
    sent = []

    async def send(message):
        sent.append(message)

    await application(
        {"type": "http", "path": path, "query_string": query.encode()}, None, send
    )  # fmt: skip
    return sent[0]["status"]


async def crowd(path, number, *others, begun=False):
    """Ask for a page so often at a time; return how these and the others are answered."""
    backstage = Backstage()
    application = Admission(backstage, base=BASE, room=20)
    if begun:
        backstage.may_begin.set()
    tasks = [asyncio.create_task(ask(application, path)) for _ in range(number)]
    await asyncio.sleep(0)
    more = [asyncio.create_task(ask(application, other)) for other in others]
    await asyncio.sleep(0)
    backstage.may_begin.set()
    backstage.may_end.set()
    told = await asyncio.gather(*tasks)
    return told.count(503), await asyncio.gather(*more), backstage.questions


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/", 26), (BASE, 26), ("/catalog/runs", 26), (f"{BASE}catalog/runs", 26),
        ("/catalog?sql=select+1", 20), (f"{BASE}catalog?sql=select+1", 20),
        ("/-/ckptdb/page.js?1", 0), (f"{BASE}-/static/app.css?1", 0),
    ],
)  # fmt: skip
def test_of_thirty_requests_at_a_time_so_many_are_refused(path, refused):
    assert run(crowd(path, 30))[0] == refused


def test_one_kind_does_not_keep_out_another():
    others = ("/", "/catalog/runs", "/-/ckptdb/page.js")
    assert run(crowd("/catalog?sql=select+1", 30, *others))[1] == [200] * 3


def test_who_reads_slowly_keeps_nobody_out():
    path = "/catalog.json?sql=select+1"
    assert run(crowd(path, 10, path, begun=True))[:2] == (0, [200])


@pytest.mark.parametrize("path", ["/catalog.csv?sql=select+1", "/catalog/runs.json?_stream=on"])
def test_but_a_download_counts_until_it_has_ended(path):
    others = (path, "/catalog.json?sql=select+1", "/")
    assert run(crowd(path, 1, *others, begun=True))[:2] == (0, [503, 200, 200])


async def read_later(*paths):
    """Ask for large answers, of which none is read before all have been asked for."""
    is_read = asyncio.Event()
    told = []

    async def large(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(MOST_HELD_BYTES * 2 // 3)})

    application = Admission(large, base=BASE, room=20)

    async def send(message):
        if message["type"] == "http.response.start":
            told.append(message["status"])
        elif told[-1] == 200:
            await is_read.wait()

    async def ask_for(path):
        path, _, query = path.partition("?")
        scope = {"type": "http", "path": path, "query_string": query.encode()}
        await application(scope, None, send)

    tasks = []
    for path in paths:
        tasks.append(asyncio.create_task(ask_for(path)))
        await asyncio.sleep(0)
    is_read.set()
    await asyncio.gather(*tasks)
    await ask_for(paths[0])
    return told


def test_answers_that_nobody_reads_take_only_so_much_memory_and_never_the_page_its_place():
    question = "/catalog.json?sql=select+1"
    assert run(read_later(question, question, "/", question)) == [200, 503, 200, 503, 200]


def test_no_answer_is_too_large_by_itself():
    async def ask_alone():
        sent = []

        async def send(message):
            sent.append(message)

        async def large(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(MOST_HELD_BYTES + 1)})

        scope = {"type": "http", "path": "/catalog", "query_string": b"sql=select+1"}
        await Admission(large, base=BASE, room=20)(scope, None, send)
        return sent[0]["status"], len(sent[1]["body"])

    assert run(ask_alone()) == (200, MOST_HELD_BYTES + 1)


def test_only_a_question_is_one():
    questions = run(crowd("/catalog?sql=select+1", 1, "/", "/catalog/runs"))[2]

    assert questions == [True, False, False]


def test_after_a_failure_there_is_as_much_room_as_before():
    async def fails(scope, receive, send):
        raise LookupError

    async def ask_often():
        application = Admission(fails, base="/", room=20)
        for _ in range(30):
            with pytest.raises(LookupError):
                await ask(application, "/")

    run(ask_often())
