"""A stand-in for W&B's server: what wandb's own client (wandb-core and wandb.Api, 0.31) sends is taken and kept.

It stands for the real server in what a run of igap needs: GraphQL requests by the name of their operation, the file
stream (summary, history, end of a run), uploads to signed addresses with artifacts and their manifests, and the reads
of `wandb.Api` behind `igap compare --wandb`. An operation that it does not know is answered with an error, as the real
one does, and noted in `unknown`.

Assumed, from the client's source, not seen at a real server: which fields may be left out; that a line of history whose
step is there already takes its place (a client that uploads a run twice sends its lines twice, as further ones); that
what a file holds is checked against its digest when its artifact is committed; that who has any key may do everything.
There are no limits, pages, filters, aliases, older versions of an artifact, and no features for a server to announce.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

ENTITY = "team"

Json = dict[str, Any]


@dataclass
class Run:
    """What the server has of a run."""

    name: str
    project: str
    told: Json = field(default_factory=dict)
    """The last value of each argument of UpsertBucket: displayName, groupName, jobType, tags, ..."""
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: dict[int, Json] = field(default_factory=dict)
    """By step."""
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"


@dataclass
class Artifact:
    """What the server has of an artifact."""

    id: str
    type: str
    digest: str
    run: str
    state: str = "PENDING"
    files: dict[str, bytes] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine; `with serving() as server`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.asked: Counter[str] = Counter()
        """How often each operation, "file_stream", "PUT" and "GET" was asked for."""
        self.unknown: list[str] = []
        self.faults: list[tuple[str, int | str]] = []
        """What goes wrong next: a part of the operation's name, and a status, "close", "garbage" or "slow"."""
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is none; what this server cannot answer is noted."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.unknown.append(f"{type(error).__name__}: {error}")

    def fault(self, name: str) -> int | str | None:
        """What goes wrong with this request; each fault once."""
        with self.lock:
            self.asked[name] += 1
            for at, (part, kind) in enumerate(self.faults):
                if part in name:
                    del self.faults[at]
                    return kind
        return None

    def upload_to(self, *parts: str) -> str:
        return "/".join([self.address, "storage", *(quote(part, safe="") for part in parts)])

    def stored(self, where: list[str]) -> tuple[dict[str, bytes], str]:
        kind, owner, name = where
        return (self.runs[owner] if kind == "run" else self.artifacts[owner]).files, name


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, content: Json | bytes, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def failed(self, name: str) -> bool:
        """Whether this request goes wrong, after which there is nothing to answer."""
        kind = self.server.fault(name)
        if kind == "slow":
            time.sleep(0.5)
        elif kind == "close":
            self.close_connection = True
        elif kind == "garbage":
            self.answer(b"\x00\xff<html>")
        elif isinstance(kind, int):
            self.answer({"error": "as asked for"}, kind)
        return kind not in (None, "slow")

    def do_POST(self) -> None:
        body = json.loads(self.body() or b"{}")
        if self.path.endswith("/file_stream"):
            if not self.failed("file_stream"):
                run = self.server.runs[self.path.split("/")[-2]]
                _stream(run, body)
                self.answer({"exitcode": None, "limits": {}})
            return
        if self.path != "/graphql":
            self.answer({}, 404)  # what the client tells of itself
            return
        name = re.findall(r"(?:query|mutation)\s+(\w+)", body["query"])[0]
        if self.failed(name):
            return
        if name not in OPERATIONS:
            self.server.unknown.append(name)
            self.answer({"errors": [{"message": f"no operation {name}"}]})
            return
        self.answer({"data": OPERATIONS[name](self.server, body.get("variables") or {})})

    def do_PUT(self) -> None:
        data, where = self.body(), [unquote(part) for part in self.path.split("/")[2:]]
        if not self.failed(f"PUT {where[0]}"):
            files, name = self.server.stored(where)
            files[name] = data
            self.answer({})

    def do_GET(self) -> None:
        if self.failed("GET"):
            return
        if not self.path.startswith("/storage/"):
            self.answer({}, 404)
            return
        files, name = self.server.stored([unquote(part) for part in self.path.split("/")[2:]])
        self.answer(files[name])


def _stream(run: Run, body: Json) -> None:
    for name, part in body.get("files", {}).items():
        lines = [json.loads(line) for line in part["content"]] if name.endswith((".jsonl", ".json")) else []
        if name == "wandb-history.jsonl":
            run.history |= {line["_step"]: line for line in lines}
        elif name == "wandb-summary.json":
            run.summary = lines[-1]
    if body.get("complete"):
        run.state = "finished" if body.get("exitcode", 0) == 0 else "failed"


def _viewer(server: Server, variables: Json) -> Json:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    return {"viewer": {"id": "V", "entity": ENTITY, "username": "me", "email": "", "flags": "{}", "teams": teams}}


def _upsert(server: Server, variables: Json) -> Json:
    name = variables["name"]
    inserted = name not in server.runs
    run = server.runs.setdefault(name, Run(name, variables["project"]))
    run.told |= {key: value for key, value in variables.items() if value is not None}
    run.project, run.state = variables["project"], "running"
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    entity = {"id": "E", "name": ENTITY}
    bucket = {
        "id": name,
        "name": name,
        "displayName": run.told.get("displayName"),
        "config": json.dumps(run.config),
        "project": {"id": "P", "name": run.project, "entity": entity},
        "historyLineCount": len(run.history),
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _run_files(server: Server, variables: Json) -> Json:
    files = [
        {"name": name, "uploadUrl": server.upload_to("run", variables["run"], name)} for name in variables["files"]
    ]
    return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


def _create_artifact(server: Server, variables: Json) -> Json:
    asked = variables["input"]
    name = asked["artifactCollectionName"]
    made = server.artifacts.get(name)
    if made is None or made.digest != asked["digest"]:
        made = Artifact(name, asked["artifactTypeName"], asked["digest"], asked["runName"])
        server.artifacts[name] = made
    sequence = {"latestArtifact": None}
    return {"createArtifact": {"artifact": {"id": name, "state": made.state, "artifactSequence": sequence}}}


def _manifest(server: Server, variables: Json) -> Json:
    where = server.upload_to("artifact", variables["artifactID"], "wandb_manifest.json")
    file = {"id": "F", "uploadUrl": where, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}


def _artifact_files(server: Server, variables: Json) -> Json:
    edges = []
    for asked in variables["input"]["artifactFiles"]:
        artifact = server.artifacts[asked["artifactID"]]
        artifact.digests[asked["name"]] = asked["md5"]
        node = {
            "storagePath": None,
            "uploadUrl": server.upload_to("artifact", artifact.id, asked["name"]),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": artifact.id},
        }
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit(server: Server, variables: Json) -> Json:
    artifact = server.artifacts[variables["artifactID"]]
    artifact.manifest = json.loads(artifact.files.pop("wandb_manifest.json"))
    for name, digest in artifact.digests.items():
        assert base64.b64encode(hashlib.md5(artifact.files[name]).digest()).decode() == digest, name
    artifact.state = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


def _runs(server: Server, variables: Json) -> Json:
    nodes = [_node(run) for run in server.runs.values() if run.project == variables["project"]]
    pages = {"endCursor": None, "hasNextPage": False}
    runs = {"edges": [{"node": node, "cursor": "C"} for node in nodes], "pageInfo": pages}
    return {"project": {"internalId": "1", "runCount": len(nodes), "readOnly": False, "runs": runs}}


def _node(run: Run) -> Json:
    """A run as wandb.Api reads it."""
    return {
        "id": run.name,
        "projectId": "1",
        "name": run.name,
        "displayName": run.told.get("displayName"),
        "group": run.told.get("groupName"),
        "jobType": run.told.get("jobType"),
        "tags": run.told.get("tags", []),
        "state": run.state,
        "config": json.dumps(run.config),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "historyLineCount": len(run.history),
        "createdAt": "2026-01-01T00:00:00Z",
        "user": {"name": "me", "username": "me"},
    }


def _list_files(server: Server, variables: Json) -> Json:
    run = server.runs[variables["name"]]
    names = variables.get("fileNames") or list(run.files)
    nodes = [
        {"id": name, "name": name, "url": server.upload_to("run", run.name, name), "sizeBytes": len(run.files[name])}
        for name in names
    ]
    pages = {"endCursor": None, "hasNextPage": False}
    files = {"edges": [{"node": node, "cursor": "C"} for node in nodes], "pageInfo": pages}
    return {"project": {"internalId": "1", "run": {"fileCount": len(run.files), "files": files}}}


OPERATIONS: dict[str, Callable[[Server, Json], Json]] = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "UpsertBucket": _upsert,
    "CreateRunFiles": _run_files,
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _manifest,
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": _commit,
    "Runs": _runs,
    "RunFiles": _list_files,
    "ArtifactType": lambda server, variables: {"project": None},
    "ServerFeaturesQuery": lambda server, variables: {"serverInfo": {"features": []}},
}
