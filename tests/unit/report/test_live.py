"""`rlhf report … --serve`: the page follows its run, for this machine's browser alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
from starlette.testclient import TestClient

from rlhf.annotation.page.guard import Guard
from rlhf.annotation.page.local import listen
from rlhf.errors import InputError
from rlhf.report.live import EVERY, LivePage
from rlhf.report.run.search import script_source


def test_the_page_follows_its_run_and_outlives_what_is_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, builds = [0.0], []

    def build() -> Path:
        builds.append(now[0])
        if len(builds) == 3:
            raise InputError("evaluation.json: half of it")
        (tmp_path / "index.html").write_text(f"<html>\n<head>\n<title>{len(builds)}</title>")
        return tmp_path / "index.html"

    live = LivePage(build, clock=lambda: now[0])
    client = TestClient(
        Guard({"secret": live}, styles="'unsafe-inline'", scripts=script_source()), base_url="http://127.0.0.1:8000"
    )
    found = client.get("/secret/")
    assert f'<meta http-equiv="refresh" content="{EVERY:g}">' in found.text and "<title>1<" in found.text
    allowed = found.headers["content-security-policy"]
    assert "style-src 'unsafe-inline'" in allowed and f"script-src {script_source()};" in allowed
    now[0] = EVERY - 1
    assert "<title>1<" in client.get("/secret/").text and builds == [0.0], "nobody asks so soon"
    now[0] = EVERY
    assert "<title>2<" in client.get("/secret/").text
    now[0] = 2 * EVERY
    assert "<title>2<" in client.get("/secret/").text
    assert "report: the page is the last one (evaluation.json: half of it)" in capsys.readouterr().err
    assert "http-equiv" not in (tmp_path / "index.html").read_text(), "the file on disk asks nobody"

    assert client.get("/secret/other").status_code == 404
    assert client.get("/guess/").status_code == 403
    assert client.get("/secret/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/secret/", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_port_that_is_taken_is_said() -> None:
    with listen(0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"port: {port} cannot be had .*; name another with --port"):
            listen(port)
