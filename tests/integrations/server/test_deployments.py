"""How servers are run by those who have others already: under gunicorn, and behind nginx."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

import nimbed
from nimbed import FakeEmbedder

from .conftest import MODEL, free_port, wait_until

ROOT = Path(__file__).parents[3]
TEXTS = [f"text {n}" for n in range(20)]


@pytest.fixture
def started(tmp_path):
    """Start programs whose output goes to a file; those that still run are killed at the end."""
    running = []

    def start(*words, **options):
        with (tmp_path / "log").open("w") as log:
            running.append(subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, **options))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.parametrize(
    "flags", [("--preload",), pytest.param((), marks=pytest.mark.slow)], ids=["preload", ""]
)
def test_gunicorns_workers_serve_the_application(started, tmp_path, flags):
    pytest.importorskip("gunicorn")
    pytest.importorskip("uvicorn_worker")
    page = (ROOT / "integrations/nimbed_server/README.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n# asgi.py\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```bash\n(gunicorn .*?)\n```", page)
    (tmp_path / "asgi.py").write_text(
        program.replace('load("minilm")', 'load("minilm", device="cpu", dtype="float32")')
    )
    url = f"http://127.0.0.1:{(port := free_port())}"
    shown = shlex.split(command.replace("--workers 4", "--workers 2"))
    shown[shown.index("0.0.0.0:8000")] = f"127.0.0.1:{port}"
    process = started(sys.executable, "-m", *shown, *flags)
    log = tmp_path / "log"

    def ready():  # each worker reads the weights itself
        assert process.poll() is None, log.read_text()
        return all(httpx.get(f"{url}/v1/health/ready").status_code == 200 for _ in range(8))

    wait_until(ready, seconds=60)
    right = nimbed.load(device="cpu", dtype="float32").embed(TEXTS, input_type="passage").vectors
    for row, text in enumerate(TEXTS):  # a connection each, so that both workers are asked
        body = {"input": text, "input_type": "passage"}
        answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).json()
        np.testing.assert_allclose(answer["data"][0]["embedding"], right[row], atol=1e-6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    said = log.read_text()
    assert len(set(re.findall(r"Booting worker with pid: (\d+)", said))) == 2
    assert "Traceback" not in said


NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 64m;
    server {
        listen 127.0.0.1:%(port)s;
        location /taken/ {
            proxy_pass %(url)s/;
            proxy_set_header X-Forwarded-Prefix /taken;
        }
        location /kept/ {
            proxy_pass %(kept)s;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx here")
def test_nginx_takes_a_prefix_away_or_passes_it_on(serve, started, tmp_path):
    plain, kept = serve(), serve(base_path="/kept")
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX % {"port": port, "url": plain.url, "kept": kept.url})
    words = ("nginx", "-p", str(tmp_path), "-c", str(configuration), "-e", "stderr")
    process = started(*words, env=dict(os.environ))
    url = f"http://127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, (tmp_path / "log").read_text()
        return httpx.get(f"{url}/kept/health").status_code == 200

    wait_until(ready)
    texts = [f"{text} {'of many words ' * 200}" for text in TEXTS * 100]  # 6 MB
    right = FakeEmbedder().embed(texts, input_type="passage", truncate="END").vectors
    extra = {"input_type": "passage", "truncate": "END"}
    for prefix in ("taken", "kept"):
        with openai.OpenAI(base_url=f"{url}/{prefix}/v1", api_key="none", max_retries=0) as sdk:
            answer = sdk.embeddings.create(model=MODEL, input=texts, extra_body=extra)
            with pytest.raises(openai.BadRequestError, match="must not be empty"):
                sdk.embeddings.create(model=MODEL, input=[])
        np.testing.assert_allclose([row.embedding for row in answer.data], right, atol=1e-6)
        with nimbed.load(MODEL, base_url=f"{url}/{prefix}") as far:
            assert far.identify() == (MODEL, "nim")
            assert far.embed(TEXTS, input_type="query").vectors.shape == (20, 64)
        page = httpx.get(f"{url}/{prefix}/docs")
        assert f"/{prefix}/v1/embeddings" in page.text
        told = httpx.get(f"{url}/{prefix}/openapi.json").json()
        assert told["servers"] == [{"url": f"/{prefix}"}]
    process.terminate()
    assert process.wait(10) == 0
