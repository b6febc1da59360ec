"""Uploads to a stand-in of the hub's HTTP interface: what huggingface_hub asks for is answered, and kept."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from vlm_export import ExportError, cli
from vlm_export.push import check_access

TOKEN = "hf_write"


class Hub(BaseHTTPRequestHandler):
    """The routes that an upload takes: who am I, make a repository, what goes where, large files, one commit."""

    protocol_version = "HTTP/1.1"

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "me", "orgs": []})
        elif self.path.startswith("/api/models/me/"):
            made = [one["visibility"] for one in self.server.created]
            self.answer({"id": "me/adapted", "sha": "0" * 40, "siblings": [], "private": made == ["private"]})
        else:
            self.answer({"error": "Repository not found"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        here = f"http://127.0.0.1:{hub.server_port}"
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            hub.created.append(wanted)
            owner = wanted.get("organization") or "me"
            if owner != "me":
                return self.answer({"error": "You don't have the rights to create a model here"}, 403)
            self.answer({"url": f"{here}/me/{wanted['name']}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            large = ("safetensors", "tokenizer.json")
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(large) else "regular" for path in files]
            found = zip(files, modes, strict=True)
            self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in found]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{here}/blob/{one['oid']}"}}} for one in objects]
            self.answer({"transfer": "basic", "objects": upload})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.blobs[value["oid"]]
            self.answer({"commitOid": "1" * 40, "commitUrl": f"{here}/me/adapted/commit/1", "pullRequestUrl": None})
        else:
            self.answer({"error": self.path}, 404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/blob/")
        self.server.blobs[self.path.removeprefix("/blob/")] = body
        self.answer({})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.blobs, server.files = [], {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def use(monkeypatch, endpoint: str) -> None:
    """What HF_ENDPOINT and its kin set when huggingface_hub is imported; here it has been already."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def push(run: Path, out: Path, repository: str, *more: str):
    arguments = ["--run", str(run), "--out", str(out), "--push-to-hub", repository, *more]
    return CliRunner().invoke(cli.app, arguments)


def test_the_folder_arrives_byte_for_byte(git_run, hub, tmp_path):
    result = push(git_run, tmp_path / "out", "me/adapted", "--private")
    assert result.exit_code == 0, result.stderr
    assert f"uploaded to http://127.0.0.1:{hub.server_port}/me/adapted" in result.stdout
    assert [(one["name"], one["visibility"]) for one in hub.created] == [("adapted", "private")]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == written and {"README.md", "model.safetensors", "config.json"} <= written.keys()


def test_a_repository_of_others_is_told_and_the_folder_stays(git_run, hub, tmp_path):
    result = push(git_run, tmp_path / "out", "others/adapted", "--to", "peft")
    assert result.exit_code == 2 and "out is written, but was not uploaded: the hub answered 403" in result.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_public_repository_does_not_become_private_in_silence(git_run, hub, tmp_path):
    hub.created.append({"name": "adapted", "visibility": "public"})
    result = push(git_run, tmp_path / "out", "me/adapted", "--private", "--to", "run")
    assert result.exit_code == 2 and "me/adapted exists and is public" in result.stderr and not hub.files


def test_no_access_is_known_before_the_work(git_run, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    result = push(git_run, tmp_path / "out", "me/adapted")
    assert result.exit_code == 2 and "the hub answered 401; log in with `hf auth login`" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ExportError, match="there is no token; log in"):
        check_access("me/adapted")


def test_a_hub_out_of_reach(monkeypatch):
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ExportError, match=r"http://127.0.0.1:9 cannot be reached \(.*refused"):
        check_access("me/adapted")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set; unset it"):
        check_access("me/adapted")
