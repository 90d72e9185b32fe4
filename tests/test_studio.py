"""The browser page: what it does without a browser, who may read which files, and each tab in a browser."""

import asyncio
import importlib.util
import json
import re
import shutil
import threading
import time
import types

import numpy as np
import pytest

from vidmotion import media, studio
from vidmotion.data import heads
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError
from vidmotion.studio import __main__ as command
from vidmotion.studio.guard import COOKIE, Guard

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def film(path, frames=3, fps=25, side=16):
    media.write_mp4(path, np.zeros((frames, side, side, 3), np.uint8), fps=fps)
    return str(path)


# -- without a browser ----------------------------------------------------------------------------


def test_runs_are_found_by_their_configs(tmp_path):
    for name, system in (("a", "bcd"), ("b", "heads_reader")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"system": {"name": system}}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("torn")
    known = studio.found(str(tmp_path))
    assert known == {
        "a (bcd)": str(tmp_path / "a"),
        "b (heads_reader)": str(tmp_path / "b"),
    }
    assert studio.movers(known) == ["a (bcd)"]
    assert studio.found(str(tmp_path / "none"), [str(tmp_path / "a")]) == {
        "a (bcd)": str(tmp_path / "a")
    }


def test_the_shipped_networks_are_among_what_moves():
    shipped = studio.shipped()
    assert sorted(studio.movers(shipped)) == sorted(shipped) and len(shipped) == 4
    one = studio.opened(shipped["heads_bcd (bcd)"])
    assert one.run.system.size == studio.SIZE
    assert studio.opened("heads_bcd") is one


def test_poses_are_passed_through_in_equal_times():
    first, second = studio.rest(), {**studio.rest(), "yaw": 0.4}
    course = studio.between([first, second, first], 5)
    yaw = [f.name for f in heads.MOTION_FACTORS].index("yaw")
    np.testing.assert_allclose(course[:, yaw], [0, 0.2, 0.4, 0.2, 0], atol=1e-6)
    np.testing.assert_array_equal(studio.between([second], 3)[:, yaw], np.float32([0.4] * 3))
    assert heads.render(studio.head(3), course, 16).shape == (5, 16, 16, 3)


def test_a_walk_of_a_long_window_reaches_its_second_pose(monkeypatch):
    def sampled(one, first, course, second, seed):
        return np.linspace(-1, 1, len(course), dtype=np.float32)[:, None, None, None] * np.ones(3)

    monkeypatch.setattr(studio, "_sampled", sampled)
    for window, levels in ((20, 8), (4, 4)):
        one = types.SimpleNamespace(
            run=types.SimpleNamespace(system=types.SimpleNamespace(window=window))
        )
        frames = studio.walk(one, {}, {})[:, 0, 0, 0]
        assert len(frames) == levels and (frames[0], frames[-1]) == (0, 255)


def test_each_bad_upload_is_one_sentence(tmp_path, monkeypatch):
    def refused(path, match, moving=True):
        with pytest.raises(MediaError, match=match) as caught:
            studio.check_upload(path and str(path), "video", moving)
        assert "\n" not in str(caught.value)

    refused(None, "choose a video first")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty.mp4 is empty: 0 bytes")
    (tmp_path / "text.mp4").write_text("no video")
    refused(tmp_path / "text.mp4", "text.mp4.*not a readable video")
    media.write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    refused(tmp_path / "a.png", "a.png is a picture; choose a video here")
    studio.check_upload(str(tmp_path / "a.png"), "picture", moving=False)
    studio.check_upload(film(tmp_path / "b.mp4"), "video", moving=True)
    refused(film(tmp_path / "long.mp4", 61, fps=1), "long.mp4 lasts 61 s; the limit is 60 s")
    monkeypatch.setattr(studio, "MOST_SIDE", 12)
    refused(tmp_path / "b.mp4", "16 x 16 pixels; the limit is 12 on each side")
    monkeypatch.setattr(studio, "MOST_BYTES", 100)
    refused(tmp_path / "b.mp4", "b.mp4 has .* MiB; the limit is")


def test_a_run_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no longer holds a run"):
        studio.opened(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="or the runs no longer exist"):
        studio.curves({"x": str(tmp_path / "gone")}, "loss/model")


def test_work_ends_when_nobody_waits_for_it():
    ended = threading.Event()

    def work(tell):
        try:
            for k in range(1000):
                tell(k, 1000)
                time.sleep(0.01)
        finally:
            ended.set()

    steps = studio.in_steps(work)
    assert next(steps) == (0, 1000)
    steps.close()
    assert ended.wait(5)
    assert [*studio.in_steps(lambda tell: "done")] == ["done"]
    with pytest.raises(ConfigError, match="as it was"):
        list(studio.in_steps(raising))


def raising(tell):
    raise ConfigError("as it was")


def test_a_port_in_use_is_one_sentence(monkeypatch):
    import socket

    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be used.*another --port"):
            command.serve("runs", (), "127.0.0.1", port)


# -- who may read what ----------------------------------------------------------------------------


def ask(guard, path, method="GET", body=b"", headers=(), cookie=""):
    """Sends one request; returns its status, body and cookie."""
    sent = []
    lines = [*headers, (b"cookie", f"{COOKIE}={cookie}".encode())] if cookie else [*headers]
    url, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": url, "query_string": query.encode()}

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(guard({**scope, "headers": lines}, receive, send))
    given = dict(sent[0].get("headers", ())).get(b"set-cookie", b"").decode()
    return sent[0]["status"], sent[1]["body"], given.partition(";")[0].partition("=")[2]


def test_a_file_is_read_by_the_visitor_to_whom_it_was_named():
    async def app(scope, receive, send):
        text = b'["/cache/ab/face.png"]' if scope["path"].endswith("upload") else b"bytes"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text})

    guard = Guard(app, "/cache", 1000)
    code, said, mine = ask(guard, "/gradio_api/upload", "POST")
    assert code == 200 and b"face.png" in said and mine
    _, _, other = ask(guard, "/")
    file = "/gradio_api/file=/cache/ab/face.png"
    assert ask(guard, file, cookie=mine)[:2] == (200, b"bytes")
    assert ask(guard, file, cookie=other)[0] == 403
    assert ask(guard, file)[0] == 403
    assert ask(guard, "/gradio_api/file=%2Fcache%2Fab%2Fface.png", cookie=other)[0] == 403
    assert list(guard._told) == [mine]  # nothing is kept for a visitor who was told of no file
    # Another visitor may not name the file as an input, either.
    body = b'{"data": [{"path": "/cache/ab/face.png"}]}'
    assert ask(guard, "/gradio_api/queue/join", "POST", body, cookie=mine)[0] == 200
    assert ask(guard, "/gradio_api/queue/join", "POST", body, cookie=other)[0] == 403


def test_an_upload_that_announces_too_much_is_refused_before_it_is_read():
    async def app(scope, receive, send):
        raise AssertionError

    guard = Guard(app, "/cache", 2**20)
    ten = [(b"content-length", str(10 * 2**30).encode())]
    code, said, _ = ask(guard, "/gradio_api/upload", "POST", headers=ten)
    assert code == 413 and b"at most 1 MiB are taken" in said


# -- in a browser ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not CHROMIUM or not importlib.util.find_spec("playwright"),
    reason="no chromium or no playwright",
)
def test_each_tab_in_a_browser(heads_run, tmp_path):
    pytest.importorskip("gradio")
    import uvicorn
    from playwright.sync_api import expect, sync_playwright

    app, _ = command.application(str(tmp_path / "none"), (str(heads_run),))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    (tmp_path / "empty.mp4").touch()
    try:
        with sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.goto(f"http://127.0.0.1:{port}/")
            expect(page.get_by_alt_text("").first).to_be_visible(timeout=60_000)
            for name in studio.shipped():
                page.get_by_label(name).uncheck()
            page.get_by_label(f"{heads_run.name} (bcd)").check()
            page.get_by_role("button", name="Move", exact=True).first.click()
            expect(page.get_by_text(re.compile("trained at 16 pixels"))).to_be_visible(
                timeout=120_000
            )
            page.get_by_role("tab", name="Your files").click()
            upload = page.locator(
                '.block:has-text("picture or video to move") input[type=file]'
            ).last
            upload.set_input_files(tmp_path / "empty.mp4")
            expect(page.get_by_text(re.compile("empty.mp4 is empty"))).to_be_visible(timeout=60_000)
            page.get_by_role("tab", name="Latents").click()
            page.get_by_role("button", name="Each latent alone").click()
            expect(page.get_by_text(re.compile("only VidTwin"))).to_be_visible(timeout=120_000)
            page.get_by_role("tab", name="Runs").click()
            page.get_by_role("button", name="Show", exact=True).click()
            expect(page.get_by_text("psnr/swap")).to_be_visible(timeout=60_000)
            browser.close()
    finally:
        server.should_exit = True
        thread.join(20)
