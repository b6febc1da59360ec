"""The command: on tables, on an endpoint that misbehaves, and killed in the middle."""

import csv
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vlm_data
from vlm_questions.cli import app

COMMAND = [sys.executable, "-c", "from vlm_questions.cli import app; app()"]


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """Twelve images and their table; one more row whose image is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOP_KEY", "secret")
    (tmp_path / "photos").mkdir()
    rows = ["image_name,category,color,count"]
    for number in range(12):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(tmp_path / f"photos/{number}.png")
        rows.append(f"{number}.png,lamp,{['red', 'black', 'Dark green'][number % 3]},{number % 2 + 1}")
    (tmp_path / "products.csv").write_text("\n".join([*rows, "99.png,lamp,red,1"]))
    return tmp_path


TABLE = ("--data", "products.csv", "--image-dir", "photos")


def test_templates(shop):
    said = run(*TABLE, "--out", "made/q.csv").stdout
    rows = vlm_data.open(shop / "made/q.csv", image_dir=shop / "photos")
    assert len(rows) == 48 and {row["references"][0] for row in rows} == {
        "red",
        "black",
        "green",
        "1",
        "2",
        "yes",
        "no",
    }
    report = json.loads((shop / "made/q.report.json").read_text())
    assert (report["images"], report["questions"], report["rejected"]) == (12, 48, 1)
    assert report["types"]["color"] == {
        "questions": 12,
        "answers": 3,
        "most_frequent": {"red": 4, "black": 4, "green": 4},
        "share_of_first": 0.3333,
    }
    (left_out,) = map(json.loads, (shop / "made/q.rejected.jsonl").read_text().splitlines())
    assert left_out["source"] == "products.csv:14" and "99.png" in left_out["reason"]
    assert said.splitlines()[-1].strip() == f"vlm-train --data made/q.csv --image-dir {shop}/photos"
    first = (shop / "made/q.csv").read_bytes()
    run(*TABLE, "--out", "made/q.csv")
    assert (shop / "made/q.csv").read_bytes() == first


def test_fewer_images_and_kinds(shop):
    run(*TABLE, "--images", "5", "--kinds", "count", "--per-image", "1")
    with open(shop / "questions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["image_name"] for row in rows}) == 5
    assert {row["question_type"] for row in rows} <= {"count", "yes/no"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        ([*TABLE, "--out", "q.txt"], "--out q.txt must end in .csv"),
        ([*TABLE, "--endpoint", "http://localhost:1"], "--endpoint and --model go together"),
        ([*TABLE, "--kinds", "size"], "unknown kind of question 'size'"),
        ([*TABLE, "--kinds", "shape"], "no product has an attribute to ask about"),
    ],
)
def test_errors_are_one_line(shop, arguments, message):
    said = run(*arguments, code=2).stderr
    assert message in said and said.startswith("error: ") and len(said.splitlines()) == 1


def test_help_is_there_for_every_option_and_light():
    code = "import sys; from vlm_questions.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "False"


class Model(ThreadingHTTPServer):
    """Gives each image one question. trouble: the replies to the first requests of all, before it works."""

    daemon_threads = True

    def __init__(self, trouble: list[int], delay: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble, self.delay, self.lock = trouble, delay, threading.Lock()
        self.replied: Counter[str] = Counter()  # by image
        self.keys: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no error here."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image = body["messages"][0]["content"][1]["image_url"]["url"]
        with self.server.lock:
            self.server.keys.add(self.headers["Authorization"])
            code = self.server.trouble.pop() if self.server.trouble else 200
            self.server.replied[image] += code == 200
        time.sleep(self.server.delay)
        message = {"role": "assistant", "content": '[{"question": "What is it?", "answer": "lamp"}, {"question": "x"}]'}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        data = json.dumps(reply if code == 200 else {"error": {"message": "busy"}}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def serve():
    servers = []

    def start(trouble: list[int] | None = None, delay: float = 0.0) -> tuple[Model, tuple[str, ...]]:
        server = Model(trouble or [], delay)
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return server, (*TABLE, "--endpoint", url, "--model", "m", "--key-variable", "SHOP_KEY", "--concurrency", "2")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_behind_an_endpoint_that_is_busy(shop, serve):
    server, arguments = serve([500, 429, 503, 429])
    result = run(*arguments)
    assert "12 questions about 12 images in questions.csv" in result.stdout
    assert "dropped 12: not texts" in result.stderr
    assert sorted(server.replied.values()) == [1] * 12 and server.keys == {"Bearer secret"}
    rows = vlm_data.open(shop / "questions.csv", image_dir=shop / "photos")
    assert set(rows["prompt"]) == {"What is it?"} and len(rows) == 12
    run(*arguments)
    assert server.replied.total() == 12


def test_images_without_a_reply_are_told_and_asked_again(shop, serve):
    server, arguments = serve([400] * 3)
    result = run(*arguments)
    assert "3 images have no reply" in result.stderr and "9 questions about 9 images" in result.stdout
    assert json.loads((shop / "questions.report.json").read_text())["unanswered"] == 3
    assert len((shop / "questions.rejected.jsonl").read_text().splitlines()) == 4
    assert "12 questions about 12 images" in run(*arguments).stdout
    assert server.replied.total() == 12


def test_a_refused_key_is_an_error(shop, serve):
    _, arguments = serve([401] * 100)
    said = run(*arguments, code=2).stderr
    assert "check the endpoint, --model and the key" in said and "Traceback" not in said
    assert not (shop / "questions.csv").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_without_asking_twice(shop, serve):
    server, arguments = serve(delay=0.2)
    process = subprocess.Popen([*COMMAND, *arguments])
    replies = shop / "questions.replies.jsonl"
    while not replies.exists() or len(replies.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()  # SIGKILL
    process.wait()
    kept = len(replies.read_text().splitlines()) - 1
    before = server.replied.copy()
    assert 4 <= kept < 12 and not (shop / "questions.csv").exists()
    assert "12 questions about 12 images" in run(*arguments).stdout
    assert len(server.replied) == 12
    # Only the two requests that were under way at the kill can be asked again: their replies reached nobody.
    assert server.replied.total() - 12 <= before.total() - kept <= 2
