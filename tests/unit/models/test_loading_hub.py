"""Names on the hub, with a local server as the hub: models load, and failures are reported at once."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pressgauge.models import load, location
from support.prepared import python

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
def serve(port: int = 0) -> Iterator[str]:
    """A local hub at this port, or at any, by its address."""
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
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


Loading = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Loading]:
    """Port of a local hub, and a function that loads a model in a process that knows only this hub and an empty cache,
    and compares it with the reference model."""
    with serve() as endpoint:
        pass
    home = tmp_path_factory.mktemp("home")
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"}
    program = python(**settings)

    def loads(name: str) -> subprocess.CompletedProcess[str]:
        command = [*program, "-c", SCRIPT, name]
        return subprocess.run(command, env=os.environ | settings, cwd=home, capture_output=True, text=True, check=False)

    return int(endpoint.rpartition(":")[2]), loads


def test_a_model_of_the_hub_loads_and_then_loads_without_the_hub(hub: tuple[int, Loading]) -> None:
    """A model loads from the hub, and then from the cache."""
    port, loads = hub
    missing = loads(NAME)
    assert missing.returncode == 1, "loaded without a hub and a cache"
    with serve(port):
        first = loads(NAME)
    assert first.returncode == 0, first.stderr
    second = loads(NAME)
    assert second.returncode == 0, second.stderr


def test_a_model_that_the_hub_does_not_know_is_refused(hub: tuple[int, Loading]) -> None:
    """An unknown model is refused with transformers' reason."""
    port, loads = hub
    with serve(port):
        refused = loads("some/folder")
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
