"""Threads, loops, forks, pickles and ends: an embedder lives through them, or ends cleanly."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from nimbed.errors import BackendError
from nimbed.remote.embedder import RemoteEmbedder

from .double import Response, vectors
from .players import DIMENSIONS, E5, nim


def passages(count):
    return [f"passage number {row}" for row in range(count)]


def expected(texts, *, role="passage"):
    return vectors([f"{role}: {text}" for text in texts], DIMENSIONS)


def test_two_event_loops_in_a_row_share_the_connections(serve, connect):
    double = serve(nim())
    embedder = connect(double)
    for _ in range(3):
        batch = asyncio.run(embedder.aembed(["a"], input_type="query"))
        np.testing.assert_allclose(batch.vectors, expected(["a"], role="query"), atol=1e-6)
    embedder.embed(["a"], input_type="query")
    assert double.connections == 1


def test_threads_share_an_embedder(serve, connect):
    embedder = connect(serve(nim()))
    results = {}

    def work(number):
        texts = [f"{number} {row}" for row in range(100)]
        results[number] = (texts, embedder.embed(texts, input_type="passage").vectors)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for texts, made in results.values():
        np.testing.assert_allclose(made, expected(texts), atol=1e-6)


def test_concurrent_awaits_share_an_embedder(serve, connect):
    embedder = connect(serve(nim()))

    async def several():
        return await asyncio.gather(
            *[embedder.aembed([f"{n}"], input_type="passage") for n in range(50)]
        )

    batches = asyncio.run(several())
    made = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_allclose(made, expected([f"{n}" for n in range(50)]), atol=1e-6)


def _embed_in_child(embedder, queue):
    queue.put(embedder.embed(["child"], input_type="query").vectors)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12
def test_a_forked_child_opens_its_own_connections(serve, connect):
    double = serve(nim())
    embedder = connect(double)
    embedder.embed(["parent"], input_type="query")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_embed_in_child, args=(embedder, queue))
    child.start()
    made = queue.get()
    child.join(10)
    assert child.exitcode == 0
    np.testing.assert_allclose(made, expected(["child"], role="query"), atol=1e-6)
    embedder.embed(["parent again"], input_type="query")
    assert double.connections == 2


def test_a_pickle_works_elsewhere_and_reads_its_key_there(serve, connect, monkeypatch):
    double = serve(nim())
    embedder = connect(double, api_key="sk-secret-one")
    embedder.embed(["a"], input_type="query")
    pickled = pickle.dumps(embedder)
    assert b"sk-secret-one" not in pickled
    monkeypatch.setenv("NIMBED_API_KEY", "sk-secret-two")
    copy = pickle.loads(pickled)
    copy.embed(["a"], input_type="query")
    copy.close()
    sent = [post.headers["authorization"] for post in double.posts]
    assert sent == ["Bearer sk-secret-one", "Bearer sk-secret-two"]


def test_a_closed_embedder_opens_again(serve, connect):
    double = serve(nim())
    embedder = connect(double)
    with embedder:
        embedder.embed(["a"], input_type="query")
    embedder.close()
    embedder.embed(["a"], input_type="query")
    assert double.connections == 2


def test_closing_ends_what_is_under_way(serve, connect):
    double = serve(lambda request: Response(stall=30))
    embedder = connect(double)
    closer = threading.Timer(0.2, embedder.close)
    closer.start()
    with pytest.raises(BackendError, match="closed"):
        embedder.embed(["a"], input_type="query")
    closer.join()


def test_an_embedder_that_is_dropped_ends_its_thread(serve):
    double = serve(nim())
    embedder = RemoteEmbedder(E5, base_url=double.url, dialect="nim")
    embedder.embed(["a"], input_type="query")
    mine = {thread for thread in threading.enumerate() if thread.name == "nimbed-remote"}
    del embedder
    for thread in mine:
        thread.join(5)
    assert not any(thread.is_alive() for thread in mine)


def test_a_cancelled_await_stops_its_requests(serve, connect):
    double = serve(lambda request: Response(stall=30))
    embedder = connect(double)

    async def give_up():
        async with asyncio.timeout(0.2):
            await embedder.aembed(passages(2000), input_type="passage")

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    sent = len(double.posts)
    double.handler = nim()
    embedder.embed(["a"], input_type="query")
    assert len(double.posts) == sent + 1


def test_a_script_that_forgets_to_close_ends_in_silence(serve):
    double = serve(nim())
    code = (
        "from nimbed.remote.embedder import RemoteEmbedder\n"
        f"e = RemoteEmbedder({E5!r}, base_url={double.url!r}, dialect='nim')\n"
        "print(len(e.embed(['a', 'b'], input_type='query')))"
    )
    command = [sys.executable, "-X", "dev", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


def test_the_policy_of_a_process_that_prefers_uvloop_is_no_matter(serve):
    pytest.importorskip("uvloop")
    double = serve(nim())
    code = (
        "import asyncio, uvloop\n"
        "asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
        "from nimbed.remote.embedder import RemoteEmbedder\n"
        f"e = RemoteEmbedder({E5!r}, base_url={double.url!r}, dialect='nim')\n"
        "print(len(e.embed(['a', 'b'], input_type='query')))\n"
        "print(len(asyncio.run(e.aembed(['a'], input_type='query'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.returncode) == ("2\n1\n", 0), done.stderr


def test_a_proxy_of_the_environment_is_used(serve, connect, monkeypatch):
    proxy = serve(lambda request: nim()(dataclasses.replace(request, path="/v1/embeddings")))
    monkeypatch.setenv("http_proxy", proxy.origin)
    monkeypatch.setenv("no_proxy", "")
    embedder = connect(proxy, base_url="http://far.example/v1")
    batch = embedder.embed(["a"], input_type="query")
    np.testing.assert_allclose(batch.vectors, expected(["a"], role="query"), atol=1e-6)
    assert proxy.posts[0].path == "http://far.example/v1/embeddings"


def test_importing_nimbed_does_not_import_httpx():
    code = "import nimbed, sys; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
