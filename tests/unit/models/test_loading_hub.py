"""Names on the hub, with a local server as the hub: models load, and failures are reported at once."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pressgauge.models import load, location

FOLDER = Path(location("reference"))
NAME = "owner/model"


class Handler(BaseHTTPRequestHandler):
    """Responds as the hub does for the files of one model."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """Send the headers of a response, and the file or nothing."""
        folder, _, name = self.path.partition("/resolve/main/")
        file = FOLDER / name
        there = folder == f"/{NAME}" and file.is_file()
        self.send_response(200 if there else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("X-Error-Code", "" if there else "EntryNotFound" if NAME in self.path else "RepoNotFound")
        self.send_header("ETag", f'"{name}"')
        content = file.read_bytes() if there else b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serve() -> Iterator[str]:
    """A local hub, by its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


SCRIPT = """
import sys, torch
from pressgauge.models import load

(model, tokenizer), (own, own_tokenizer) = load(sys.argv[1]), load("reference")
text = "remember bado"
assert tokenizer(text).input_ids == own_tokenizer(text).input_ids
assert all(torch.equal(weight, own.state_dict()[key]) for key, weight in model.state_dict().items())
"""


def loads(name: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Load the model in a process that knows only this hub and cache, and compare it with the reference model."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", SCRIPT, name]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)


def test_a_model_of_the_hub_loads_and_then_loads_without_the_hub(tmp_path: Path) -> None:
    """A model loads from the hub, and then from the cache."""
    with serve() as endpoint:
        first = loads(NAME, endpoint, tmp_path)
    assert first.returncode == 0, first.stderr
    second = loads(NAME, endpoint, tmp_path)
    assert second.returncode == 0, second.stderr


def test_a_model_that_the_hub_does_not_know_is_refused(tmp_path: Path) -> None:
    """An unknown model is refused with transformers' reason."""
    with serve() as endpoint:
        refused = loads("some/folder", endpoint, tmp_path)
    assert "ValueError: model 'some/folder' could not be loaded" in refused.stderr
    assert "(some/folder is not a local folder" in refused.stderr


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that does not respond, and an empty cache, without waiting between retries."""
    with serve() as endpoint:
        pass  # from now on nobody listens there
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"asked again after {seconds} s"))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["some/folder", "folder"])
def test_a_missing_folder_is_refused_at_once_without_a_hub(name: str) -> None:
    """Without a responding hub, a missing folder is refused after one request."""
    with pytest.raises(
        ValueError, match=rf"model '{name}' could not be loaded: give .* \(there is no such folder, the"
    ):
        load(name)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["./folder", "folder/", "~/folder", "models/some/folder", "/no/folder"])
def test_an_invalid_name_is_refused_without_a_request(name: str) -> None:
    """A name that is invalid on the hub is refused without a request."""
    with pytest.raises(ValueError, match="there is no such folder, and no name on the hub has this form"):
        load(name)
