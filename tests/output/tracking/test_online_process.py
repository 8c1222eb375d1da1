"""W&B on and off the network: decided once, bounded in time, and nothing lost. The server is one of our own."""

import contextlib
import json
import os
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from igap import cli
from igap.config import TrackingConfig
from igap.output.tracking import places, reading, wandb_run

KEY = "a" * 40


def _talks_to(process, address):
    return (process.info["environ"] or {}).get("WANDB_BASE_URL") == address and "wandb-core" in process.name()


def config(mode, timeout=60.0):
    return TrackingConfig.model_validate({"mode": mode, "timeout": timeout})


@pytest.fixture
def server(no_key, monkeypatch):
    """Sets the server's address and the key: `with server("silent")`, "closed", "answering" (with 404) or "garbage"."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.server.garbage:
                self.wfile.write(b"\0\xff" * 500 + b"\r\n")
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    @contextlib.contextmanager
    def serve(kind):
        with contextlib.ExitStack() as stack:
            if kind in ("answering", "garbage"):
                http = stack.enter_context(HTTPServer(("127.0.0.1", 0), Answer))
                http.garbage = kind == "garbage"
                threading.Thread(target=http.serve_forever, daemon=True).start()
                stack.callback(http.shutdown)
                port = http.server_port
            else:
                listening = stack.enter_context(socket.socket())
                listening.bind(("127.0.0.1", 0))
                port = listening.getsockname()[1]
                if kind == "silent":
                    listening.listen()
                else:
                    listening.close()
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
            yield

    return serve


def test_auto_is_online_where_there_is_a_key_and_an_answer(server):
    with server("answering"):
        settled, said = wandb_run.resolve_mode(config("auto"))
    assert (settled.mode, said) == ("online", "W&B: online (there is a key, and W&B's server answers)")


@pytest.mark.parametrize("kind", ["closed", "silent", "garbage"])
def test_auto_is_offline_where_nobody_answers(server, kind, capsys, monkeypatch):
    monkeypatch.setattr(reading, "PROBE_SECONDS", 1.0)
    with server(kind):
        settled, said = wandb_run.resolve_mode(config("auto"))
    assert settled.mode == "offline"
    assert "does not answer within 1 s" in said
    assert "".join(capsys.readouterr()) == ""


def test_auto_is_offline_without_a_key_whoever_answers(server, monkeypatch):
    with server("answering"):
        monkeypatch.delenv("WANDB_API_KEY")
        settled, said = wandb_run.resolve_mode(config("auto"))
    assert (settled.mode, said) == ("offline", "W&B: offline (W&B has no key for this machine)")


@pytest.mark.parametrize("mode", ["offline", "online", "disabled"])
def test_what_was_asked_for_by_name_stays_and_nobody_is_asked(mode, monkeypatch):
    monkeypatch.setattr(reading, "missing_key", lambda: pytest.fail("asked"))
    assert wandb_run.resolve_mode(config(mode)) == (config(mode), None)


@pytest.mark.usefixtures("forks")
def test_a_server_that_hangs_costs_the_timeout_and_no_result(server, slim, tmp_path, caplog):
    folder = shutil.copytree(slim, tmp_path / "run")
    with server("silent"):
        address = os.environ["WANDB_BASE_URL"]
        place = wandb_run.log(folder, config("online", timeout=2.0))
    assert (
        "W&B did not finish online within tracking.timeout=2 s; logged offline. Upload it later: igap sync"
        in caplog.text
    )
    assert places.find_logged_run(folder) == places.LoggedRun("offline", place)
    assert len(list(folder.glob("wandb/*run-*"))) == 1, "of the online one nothing is left"
    left = [one.cmdline() for one in psutil.process_iter(["environ"]) if _talks_to(one, address)]
    assert all(str(os.getpid()) in command for command in left), "only the service that this process started is there"


def test_a_failing_child_is_told_in_one_line_and_the_run_logged_offline(slim, tmp_path, caplog):
    folder = shutil.copytree(slim, tmp_path / "run")
    bad = config("online").model_copy(update={"project": "a/b"})
    assert "W&B failed online (wandb.errors.errors.UsageError: Invalid project name" in (
        wandb_run._in_a_child(folder, bad) or ""
    )
    assert places.find_logged_run(folder) is None


def test_a_sweep_with_auto_decides_once_and_says_it(server, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(reading, "answers", lambda: asked.append(1) is not None)
    quiet = ["curves.components=none", "explain=false", "prompts.min_gap=0", "tracking=auto", "plots=none"]
    with server("closed"):
        model = ["model=hf", f"model.name={checkpoint('gpt2')}"]
        assert cli.main(["run", "-m", *model, *quiet, "sites=heads", "ig.n_steps=2,3"]) == 0
    assert asked == [1]
    assert capsys.readouterr().out.count("W&B: offline (W&B's server does not answer within 3 s)") == 1
    folders = [path.parent for path in (tmp_path / "runs").glob("*/*/summary.json")]
    assert [places.find_logged_run(folder).mode for folder in folders] == ["offline"] * 2
    assert all(json.loads((folder / "config.json").read_text())["tracking"]["mode"] == "auto" for folder in folders)
