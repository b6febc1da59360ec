"""The page: by Gradio's own client, and in a real browser what people see."""

import shutil
import socket
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from vlm_demo import page as demo
from vlm_demo.models import load_all
from vlm_demo.sources import read_examples, read_sources

QUESTION = "what color is the circle?"


@pytest.fixture(scope="module")
def asked_for():
    """Names of the machines that are looked up."""
    found, resolve = set(), socket.getaddrinfo

    def recording(host, *args, **kwargs):
        found.add(host)
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = recording
    yield found
    socket.getaddrinfo = resolve


@pytest.fixture(scope="module")
def address(near, far, asked_for):
    page = demo.build(load_all(read_sources([near, far], []), "cpu"), read_examples([near]))
    yield demo.serve(page, "127.0.0.1", None)
    page.close()


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def ask(client, picture, question=QUESTION, models=("near", "far"), tokens=48, beams=1, temperature=0, attention=True):
    image = picture and handle_file(picture)
    found = client.predict(image, question, list(models), tokens, beams, temperature, attention, api_name="/ask")
    return [(text.get("value"), looks.get("value")) for text, looks in (found[:2], found[2:])]


def test_models_side_by_side(client, picture, asked_for):
    (near, looks), (far, _) = ask(client, picture)
    assert near == "green" != far and Path(looks).stat().st_size > 1000
    assert ask(client, picture, models=["far"], attention=False) == [("", None), (far, None)]
    assert asked_for <= {"127.0.0.1", "localhost", None} and not client.config["analytics_enabled"]


def test_settings(client, picture):
    (short, _), (caption, _) = (ask(client, picture, "", tokens=tokens)[0] for tokens in (3, 48))
    assert len(short) < len(caption) and caption.startswith(short)
    assert ask(client, picture, beams=3)[0][0] == "green"
    texts = {ask(client, picture, "", ["far"], tokens=8, temperature=2, attention=False)[1][0] for _ in range(4)}
    assert len(texts) > 1
    with pytest.raises(AppError, match="num_beams > 1 or temperature > 0, not both"):
        ask(client, picture, beams=2, temperature=1)


def test_what_is_no_picture_is_told(client, picture, tmp_path):
    (tmp_path / "page.png").write_text("<html>not found</html>")
    with pytest.raises(AppError, match="page.png is HTML text, not an image"):
        ask(client, tmp_path / "page.png")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:150])
    with pytest.raises(AppError, match="cut.png"):
        ask(client, tmp_path / "cut.png")
    (tmp_path / "large.png").write_bytes(bytes(21 * 2**20))
    with pytest.raises(Exception, match="413|too large|exceeds"):
        ask(client, tmp_path / "large.png")
    with pytest.raises(AppError, match="Give a picture first"):
        ask(client, None)
    with pytest.raises(AppError, match="Choose at least one model"):
        ask(client, picture, models=())


def test_several_users_wait_for_their_turn(address, picture):
    answers = []

    def one_user():
        answers.append(ask(Client(address, verbose=False), picture, attention=False)[0][0])

    users = [threading.Thread(target=one_user) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert answers == ["green"] * 3


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def test_in_a_browser(browser, address, picture, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    elsewhere = []
    page.on("request", lambda request: elsewhere.append(request.url) if "127.0.0.1" not in request.url else None)
    page.set_default_timeout(60_000)
    page.goto(address)
    page.set_input_files("#picture input[type=file]", picture)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", QUESTION)
    page.click("#ask")
    page.wait_for_function("[...document.querySelectorAll('.answer textarea')].filter(one => one.value).length == 2")
    assert page.input_value(".answer textarea >> nth=0") == "green"
    assert page.locator(".answer:visible").count() == 2

    page.click("#models label:has-text('near')")  # switched off
    page.fill("#question textarea", "")
    page.click("#ask")
    page.wait_for_function("document.querySelectorAll('.answer textarea').length == 1")

    (tmp_path / "page.png").write_text("<html>not found</html>")
    page.click("#picture button[aria-label='Remove Image']")
    page.set_input_files("#picture input[type=file]", tmp_path / "page.png")
    page.wait_for_selector("#picture img", state="attached")  # it is there, though there is nothing to see
    refused = page.locator("text=page.png is HTML text, not an image")
    for _ in range(60):  # a click while the question before is still being answered does nothing
        page.click("#ask")
        page.wait_for_timeout(1000)
        if refused.count():
            break
    assert refused.count()
    assert page.input_value(".answer textarea") == ""  # not the answer about another picture

    page.click("text=what color is the circle?")  # the example
    page.wait_for_function(f"document.querySelector('#question textarea').value == '{QUESTION}'")
    assert elsewhere == []
    page.close()
