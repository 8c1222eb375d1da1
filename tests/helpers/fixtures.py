"""Small models made on the spot, and the annotations of igap checked on every call (jaxtyping + beartype)."""

import base64
import contextlib
import csv
import dataclasses
import functools
import importlib
import inspect
import logging
import os
import shutil
import sqlite3
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType, SimpleNamespace

import hypothesis
import jaxtyping
import numpy as np
import pytest
import sqlalchemy

from helpers import annotations, composing

# Before the hook: what is imported while a module of igap loads, the hook has Python compile anew in every process.
for name in (
    *("captum.attr", "hydra", "matplotlib.pyplot", "optuna", "pandas", "rich.progress", "scipy.signal", "scipy.stats"),
    *("seaborn", "sqlalchemy", "transformer_lens.model_bridge", "transformers.models.gpt2.modeling_gpt2", "wandb"),
):
    importlib.import_module(name)
annotations.install()

hypothesis.settings.register_profile("suite", deadline=None)  # an example may take as long as a busy machine needs
hypothesis.settings.load_profile("suite")

import torch  # noqa: E402 - the import hook comes before anything that imports igap
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from transformer_lens.model_bridge.generalized_components import block, embedding  # noqa: E402

from helpers import handmade  # noqa: E402
from helpers.checkpoints import save_checkpoint  # noqa: E402
from helpers.forked import Forked  # noqa: E402
from helpers.plain import Whole  # noqa: E402
from igap import PromptPair, load_model, pipeline  # noqa: E402
from igap.cli.compose import compose_one  # noqa: E402
from igap.models import cached  # noqa: E402
from igap.models.load import EMBEDDED  # noqa: E402
from igap.output import disk  # noqa: E402
from igap.pipeline import Result  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    annotations.restart()


@pytest.fixture(autouse=True)
def _plain_logging() -> None:
    """What one test has a library log, the next does not find among its own records."""
    if logging.root.level != logging.WARNING:
        logging.root.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _reseeded() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a stack trace for the GPU each time
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, as when a user calls: what is refused is refused by igap itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def whole_in_float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """In cases "grouped" norms and softmax have the model's dtype: Llama's and Gemma's are float32 in transformers."""
    with Whole() if "grouped" in request.node.name else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models are so small that a second thread only waits


@pytest.fixture(scope="session", autouse=True)
def _nodes_once() -> Iterator[None]:
    """numpy solves an eigenvalue problem for the nodes of a quadrature; the same ones are asked for all the time."""
    legendre = np.polynomial.legendre
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(legendre, "leggauss", functools.cache(legendre.leggauss))
        yield


@pytest.fixture(scope="session", autouse=True)
def _disk_not_awaited() -> Iterator[None]:
    """What tests write survives processes that are killed; it need not survive a power cut, which takes long."""

    def hasten(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", hasten)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signatures_once() -> Iterator[None]:
    """In every forward pass, TransformerLens' blocks and embeddings read the signature of the module they wrap."""
    read = functools.cache(lambda function: inspect.signature(MethodType(function, object)))  # of any object of a class

    with pytest.MonkeyPatch.context() as patch:
        for module in (block, embedding):
            once = SimpleNamespace(signature=lambda method: read(method.__func__), Parameter=inspect.Parameter)
            patch.setattr(module, "inspect", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _files_merged_once() -> Iterator[None]:
    """The same few dozen files of conf/ make the config of every run and command of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        composing.merge_once(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _migrations_once() -> Iterator[None]:
    """Optuna reads the scripts of its migrations, the same ones, for every database that it opens."""
    from optuna.storages._rdb.storage import _VersionManager

    read, scripts = _VersionManager._create_alembic_script, []

    def remember(manager: _VersionManager) -> object:
        if not scripts:
            scripts.append(read(manager))
        return scripts[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "_create_alembic_script", remember)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a random 4-head model, 3 layers unless told otherwise."""
    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str, n_layers: int = 3) -> Path:
        key = (architecture, n_layers)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(architecture)
            save_checkpoint(architecture, n_layers, made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def small(checkpoint: Callable[..., Path]) -> Callable[..., TransformerBridge]:
    """Small models in float64, random ones and the embedded one, each loaded once: `small("llama", "raw")`."""
    made: dict[tuple[str, str], TransformerBridge] = {}

    def load(architecture: str = "gpt2", processing: str = "processed") -> TransformerBridge:
        key = (architecture, processing)
        if key not in made:
            name = EMBEDDED if architecture == EMBEDDED else str(checkpoint(architecture))
            made[key] = load_model(name, processing=processing, dtype="float64")
        return made[key]

    return load


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`python -m igap.cli` and the like run in processes forked from this one, whoever starts them; so do joblib's."""
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.backend import context

    monkeypatch.setattr(subprocess, "Popen", Forked)
    monkeypatch.setattr(context, "_DEFAULT_START_METHOD", "fork")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`fork` start method should not be used", UserWarning)
        yield
        get_reusable_executor(max_workers=1).shutdown(wait=True)


@pytest.fixture(scope="module")
def one_model() -> Iterator[None]:
    """The commands of a module share the model they load; those of others find none loaded."""
    yield
    cached._cached_model.cache_clear()


PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def small_searches() -> Iterator[None]:
    """Searches of a module make 40 ordinary prompts in place of 200, the mean is of 8 and not of 100, and 16 neutral
    edits are drawn in place of 64; of each figure, once made, a pixel is drawn.
    """
    from igap.counterfactual import session
    from igap.counterfactual.atlas import write as write_atlas
    from igap.counterfactual.output import scan, write
    from igap.counterfactual.spaces import prepare
    from igap.counterfactual.validation import pair_effects, validate
    from igap.engine.baselines import Baseline

    @dataclasses.dataclass(frozen=True)
    class OfFew(Baseline):
        n: int = 8

    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, session):
            patch.setattr(module, "MOST_ORDINARY", 40)
        patch.setattr(pair_effects, "Baseline", OfFew)
        patch.setattr(validate, "NEUTRAL", 16)
        for writes in (write, scan, write_atlas):
            patch.setattr(writes, "write_png", lambda figure, path: path.write_bytes(PIXEL))  # once it is made
        yield


@pytest.fixture(scope="session")
def ioi_mini() -> TransformerBridge:
    """The embedded model, as `igap run` loads it."""
    return load_model()


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """The model of random weights whose F is linear, of which nothing is changed."""
    return handmade.linear(tmp_path_factory.mktemp("linear"))


@pytest.fixture(scope="session")
def pair() -> PromptPair:
    """The notebook's prompt pair."""
    return PromptPair(
        clean="After John and Mary went to the store, Mary gave a bottle of milk to",
        corrupted="After John and Mary went to the store, John gave a bottle of milk to",
        answer=" John",
        distractor=" Mary",
        min_gap=0.0,
    )


@pytest.fixture(scope="session")
def result(checkpoint: Callable[..., Path]) -> Result:
    """A finished run of the random GPT-2, before anything is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
        name = f"model.name={checkpoint('gpt2')}"
        config = compose_one(["model=hf", name, "prompts.min_gap=0", "device=cpu", "seed=7"]).config
        return pipeline.run(config)


@pytest.fixture(scope="session")
def written(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run."""
    folder = tmp_path_factory.mktemp("written")
    disk.prepare(folder)
    disk.write(result, folder)
    return folder


@pytest.fixture(scope="session")
def slim(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That folder with two pictures and three tables: W&B takes as long as there are files."""
    folder = shutil.copytree(written, tmp_path_factory.mktemp("slim") / "run")
    tables = {folder / f"{name}.csv" for name in ("heads", "neurons", "curves")}
    for path in (*sorted(folder.glob("plots/*.png"))[2:], *set(folder.glob("*.csv")) - tables):
        path.unlink()
    return folder


@pytest.fixture(scope="session")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs of two lengths and three first differences, in the words of the random models."""
    rest = "went to the store, {} gave a bottle of milk to"
    rows = [
        [f"After John and Mary {rest.format('Mary')}", f"After John and Mary {rest.format('John')}", " John", " Mary"],
        [f"Then Tom and Anna {rest.format('Anna')}", f"Then Tom and Anna {rest.format('Tom')}", " Tom", " Anna"],
        ["John and Mary went to the store, Mary gave it to", "John and Mary went to the store, John gave it to",
         " John", " Mary"],
        [f"After Anna and Mary {rest.format('Mary')}", f"After Anna and Mary {rest.format('Anna')}", " Anna", " Mary"],
        [f"After John and Tom {rest.format('Tom')}", f"After Mary and Tom {rest.format('Tom')}", " John", " Mary"],
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("pairs") / "five.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["clean", "corrupted", "answer", "distractor"], *rows])
    return path


@pytest.fixture(scope="session")
def many(checkpoint: Callable[..., Path], pair_file: Path) -> Result:
    """A finished run of the random GPT-2 on those pairs, one of which has too small a gap for scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
        overrides = ["model=hf", f"model.name={checkpoint('gpt2')}", "device=cpu", f"prompts.file={pair_file}"]
        config = compose_one([*overrides, "prompts.min_gap=0.2"]).config
        return pipeline.run(config)


@pytest.fixture(scope="session")
def many_written(many: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run."""
    folder = tmp_path_factory.mktemp("many")
    disk.prepare(folder)
    disk.write(many, folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _packages_once() -> Iterator[None]:
    """For each run W&B reads the metadata of all packages that are installed."""
    from wandb import util

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "working_set", functools.cache(lambda read=util.working_set: list(read())))
        yield


@pytest.fixture
def forgetful() -> Iterator[None]:
    """W&B keeps keys and addresses for a whole process: nothing it reads from the environment meanwhile lasts."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def no_key(forgetful: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials for W&B on this machine, and no server where it looks for one."""
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
