"""The real server of MONAI Label on this machine, and the requests that a client sends to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests
from harness import variables_of_a_client

__all__ = ["Answer", "Client", "serving"]

HOST = "127.0.0.1"  # the server's own default, 0.0.0.0, is open to the network
START_SECONDS = 300
ANSWER_SECONDS = 1800
STOP_SECONDS = 20


class Answer(NamedTuple):
    """What the server said to one request, and the name of the file that it sent."""

    status: int
    content: bytes
    name: str

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class Client:
    """Requests to one model of one server."""

    def __init__(self, port: int, model: str) -> None:
        self.address = f"http://{HOST}:{port}"
        self.model = model
        self.session = requests.Session()
        self.session.trust_env = False  # a proxy of the environment has no business with this machine's own address

    def info(self) -> dict[str, Any]:
        """What ``/info`` says of the model: a client such as 3D Slicer builds its options from it."""
        answer = self.session.get(f"{self.address}/info/", timeout=60)
        answer.raise_for_status()
        return answer.json()["models"][self.model]

    def infer(self, image: str = "", *, file: Path | None = None, output: str = "image", **params: Any) -> Answer:
        """Ask for a translation of the study ``image``, or of an uploaded ``file``."""
        parts: dict[str, Any] = {"params": (None, json.dumps({"device": "cpu", **params}))}
        if file is not None:
            parts["file"] = (file.name, file.read_bytes())
        query = {"image": image, "output": output}
        answer = self.session.post(
            f"{self.address}/infer/{self.model}", params=query, files=parts, timeout=ANSWER_SECONDS
        )
        name = re.search(r'filename="(.+?)"', answer.headers.get("content-disposition", ""))
        return Answer(answer.status_code, answer.content, name[1] if name else "")


@contextmanager
def serving(python: Path, app: Path, bundle: Path, studies: Path, cwd: Path) -> Iterator[Client]:
    """Serve a bundle with the sample app ``monaibundle``; the server is stopped in any case.

    Args:
        python: of an environment with MONAI Label.
        app: folder of the sample app.
        bundle: under the app's ``model``.
        studies: folder of images.
        cwd: working directory of the server; its log goes to ``server.log`` beside it.

    Yields:
        A client, once the server answers.

    Raises:
        RuntimeError: if the server ends or does not answer in time, with the end of its log.
    """
    label, log = [python, "-m", "monailabel.main"], cwd.with_name("server.log")
    port = _free_port()
    # without zoo_source "local" the app asks the model zoo, which needs the network
    conf = ["--conf", "models", bundle.name, "--conf", "zoo_source", "local"]
    command = [*label, "start_server", "--app", app, "--studies", studies, *conf, "--host", HOST, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=variables_of_a_client(), stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        client = Client(port, bundle.name)
        _wait(client, process, log)
        yield client
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(client: Client, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            client.info()
            return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not answer within {START_SECONDS} s:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End the server's process group: politely, then not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
