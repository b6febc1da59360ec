"""Questions from a model behind an endpoint: a real HTTP server on this machine, which misbehaves as it is told."""

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

pytest.importorskip("openai")

from vlm_data import DataError
from vlm_data.generate import Endpoint, Journal, Product, ask_all, from_replies


class Server(ThreadingHTTPServer):
    """Replies to chat completions. misbehave(number of the request about this image) -> None or what goes wrong."""

    daemon_threads = True

    def __init__(self, misbehave=lambda image, times: None, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.misbehave, self.delay = misbehave, delay
        self.asked: Counter[int] = Counter()  # requests by image, which its color tells
        self.answered: Counter[int] = Counter()
        self.keys: set[str] = set()
        self.running = self.most_running = 0
        self.lock, self.over = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that gave up is no error here."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image = shown(request)
        with server.lock:
            server.asked[image] += 1
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            server.keys.add(self.headers["Authorization"])
            wrong = server.misbehave(image, server.asked[image])
        time.sleep(server.delay)
        with server.lock:
            server.running -= 1
        if wrong == "slow":  # no reply before the test is over
            server.over.wait()
            self.close_connection = True
            return None
        if isinstance(wrong, int):
            return self.send(wrong, b'{"error": {"message": "told to"}}', {"Retry-After": "0.01"})
        if wrong == "cut off":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
            return None
        if wrong == "not json":
            return self.send(200, b"<html>busy</html>")
        if wrong == "no choices":
            return self.send(200, b'{"choices": []}')
        pairs = [
            {"question": f"Is this image {image}?", "answer": "yes"},
            {"question": "What is it?", "answer": "red chair"},
        ]
        text = wrong if isinstance(wrong, str) else json.dumps(pairs)
        message = {"role": "assistant", "content": text}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        with server.lock:
            server.answered[image] += 1
        return self.send(200, json.dumps(body).encode())

    def send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


def shown(request: dict) -> int:
    """The number of the image that a request shows, by its color."""
    (part,) = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return round(Image.open(io.BytesIO(data)).getpixel((0, 0))[0] / 8)


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def products(tmp_path) -> list[Product]:
    found = []
    for number in range(12):
        Image.new("RGB", (1500, 8), (number * 8, number * 8, number * 8)).save(tmp_path / f"{number}.png")
        found.append(Product(f"{number}.png", str(tmp_path / f"{number}.png"), {"color": "gray"}))
    return found


def ask(products, server, path, **options):
    endpoint = Endpoint(server.url, "a-model", key="a-key", retries=3)
    with Journal(path, {"model": "a-model"}) as journal:
        failed = ask_all(products, endpoint, journal, **options)
        return from_replies(products, journal), failed


def test_every_image_is_asked_about_once_and_few_at_a_time(serve, products, tmp_path):
    server, seen = serve(delay=0.05), []
    (questions, dropped), failed = ask(
        products, server, tmp_path / "j", concurrency=3, progress=lambda *numbers: seen.append(numbers)
    )
    assert [one.question for one in questions] == [f"Is this image {number}?" for number in range(12)]
    assert dropped == {"answer of several words": 12} and failed == []
    assert server.asked == dict.fromkeys(range(12), 1)
    assert 2 <= server.most_running <= 3
    assert server.keys == {"Bearer a-key"}
    assert seen == [(number, 12) for number in range(1, 13)]
    (again, _), _ = ask(products, server, tmp_path / "j")
    assert again == questions and server.asked.total() == 12


@pytest.mark.parametrize("wrong", [429, 500, 503, "cut off"])
def test_what_passes_is_tried_again(serve, products, tmp_path, wrong):
    server = serve(lambda image, times: wrong if image == 5 and times <= 2 else None)
    (questions, _), failed = ask(products, server, tmp_path / "j")
    assert len(questions) == 12 and failed == []
    assert server.asked[5] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (500, "told to"),
        (429, "told to"),
        (400, "told to"),
        ("slow", "imed out"),
        ("not json", "malformed"),
        ("no choices", "malformed"),
    ],
)
def test_what_does_not_pass_is_told_and_asked_again_by_the_next_run(serve, products, tmp_path, wrong, reason):
    bad = serve(lambda image, times: wrong if image == 5 else None)
    endpoint = Endpoint(bad.url, "a-model", retries=1, timeout=3.0 if wrong == "slow" else 60.0)
    with Journal(tmp_path / "j", {"model": "a-model"}) as journal:
        (failed,) = ask_all(products, endpoint, journal)
    assert failed.source == products[5].path and reason in failed.reason
    good = serve()
    (questions, _), failed = ask(products, good, tmp_path / "j")
    assert len(questions) == 12 and failed == []
    assert good.asked == {5: 1}


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_wrong_key_or_model_ends_it_at_once(serve, products, tmp_path, code):
    server = serve(lambda image, times: code)
    with pytest.raises(DataError, match="check the endpoint, --model and the key"):
        ask(products, server, tmp_path / "j", concurrency=2)
    assert server.asked.total() <= 4


def test_an_endpoint_that_always_fails_is_given_up(serve, products, tmp_path):
    server = serve(lambda image, times: 500)
    endpoint = Endpoint(server.url, "a-model", retries=0)
    with (
        Journal(tmp_path / "j", {}) as journal,
        pytest.raises(DataError, match="failed for 20 images in a row, at last with: InternalServerError"),
    ):
        ask_all([Product(f"{number}", products[0].path, {}) for number in range(100)], endpoint, journal, concurrency=2)
    assert server.asked.total() <= 22


def test_an_image_that_does_not_decode_is_not_asked_about(serve, products, tmp_path):
    server = serve()
    (tmp_path / "3.png").write_bytes(b"<html>")
    _, (failed,) = ask(products, server, tmp_path / "j")
    assert failed.source == products[3].path and "not an image" in failed.reason
    assert server.asked[3] == 0 and server.asked.total() == 11


RUN = """
import sys
from vlm_data.generate import Endpoint, Journal, Product, ask_all
url, path, *images = sys.argv[1:]
with Journal(path, {"model": "a-model"}) as journal:
    products = [Product(image.rpartition("/")[2], image, {}) for image in images]
    ask_all(products, Endpoint(url, "a-model"), journal, concurrency=2)
"""


@pytest.mark.slow
def test_after_a_kill_no_reply_is_asked_for_twice(serve, products, tmp_path):
    server = serve(delay=0.2)
    arguments = [sys.executable, "-c", RUN, server.url, str(tmp_path / "j"), *(product.path for product in products)]
    process = subprocess.Popen(arguments)
    while len(server.answered) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()  # SIGKILL
    process.wait()
    with open(tmp_path / "j", "a") as file:
        file.write('{"image": "11.png", "rep')  # a line that a kill cut off
    kept = [json.loads(line).get("image") for line in (tmp_path / "j").read_text().splitlines()[1:-1]]
    assert len(kept) >= 3
    (questions, _), failed = ask(products, server, tmp_path / "j", concurrency=2)
    assert len(questions) == 12 and failed == []
    assert all(server.asked[int(image.removesuffix(".png"))] == 1 for image in kept)
    assert server.asked.total() <= 12 + 2  # the two that were under way


def test_a_journal_of_something_else_is_refused(tmp_path):
    with Journal(tmp_path / "j", {"model": "a"}):
        pass
    with pytest.raises(DataError, match="written by other settings"):
        Journal(tmp_path / "j", {"model": "b"})
    for content in ("image_name,question\n", '{"a": 1}\n', '["a"]\n'):
        (tmp_path / "k").write_text(content)
        with pytest.raises(DataError, match="not a record of asked questions|other settings"):
            Journal(tmp_path / "k", {"model": "a"})
        assert (tmp_path / "k").read_text() == content


def test_duplicates_are_dropped_and_counted(serve, products, tmp_path):
    pairs = [{"question": text, "answer": "red"} for text in ("What color is it?", "what  color is it?")]
    (questions, dropped), _ = ask(products, serve(lambda image, times: json.dumps(pairs)), tmp_path / "j")
    assert len(questions) == 12 and dropped == {"duplicate": 12}
