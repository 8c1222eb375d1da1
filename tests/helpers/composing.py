"""Hydra reads and merges the files of one choice of groups once in a process: that is most of what composing takes.

The other overrides set single keys of what the files give, and are applied anew each time.
"""

import copy
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

_list_files = config_loader_impl.create_defaults_list
_merge_files = ConfigLoaderImpl._compose_config_from_defaults_list
Plugins.instance()  # imports Hydra's sources anew: theirs are other classes than a plain import gives
_Files: Any = SourcesRegistry.instance().resolve("file")
_read_file = _Files.load_config
_lists: dict[object, Any] = {}
_merged: dict[int, Any] = {}
_read: dict[object, bytes] = {}
"""Pickled: to copy a config takes five times as long; merged ones name classes of plugins, which cannot be pickled."""


def merge_once(patch: pytest.MonkeyPatch) -> None:
    """From now on; where a file has changed, was added or taken away, all are read again."""
    patch.setattr(config_loader_impl, "create_defaults_list", _listed)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _files_merged)
    patch.setattr(_Files, "load_config", _file_read)
    patch.setattr(CachingConfigRepository, "__init__", _copy_places)


def _listed(repo: Any, config_name: Any, overrides_list: Any, prepend_hydra: bool, skip_missing: bool) -> Any:
    """Which files the overrides of groups choose, with the overrides of keys."""
    of_keys = Overrides(repo, overrides_list).config_overrides
    of_groups = [each.input_line for each in overrides_list if not any(each is other for other in of_keys)]
    chosen = (
        config_name,
        prepend_hydra,
        skip_missing,
        *of_groups,
        *_files(repo),
        *_stored(ConfigStore.instance().repo),
    )
    if chosen not in _lists:
        _lists[chosen] = _list_files(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    listed = copy.copy(_lists[chosen])
    listed.config_overrides = of_keys
    return listed


def _files_merged(loader: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
    """What the files of a list give, for the caller to change; `_lists` keeps the list, and so its id."""
    if id(defaults) not in _merged:
        _merged[id(defaults)] = _merge_files(loader, defaults, repo)
    return copy.deepcopy(_merged[id(defaults)])


def _file_read(source: Any, config_path: str) -> Any:
    """The config of a file, which Hydra reads each time that it composes also where it need not merge it again."""
    file = os.path.join(source.path, source._normalize_file_name(config_path))
    state = os.stat(file) if os.path.exists(file) else None
    read = source.provider, file, state and (state.st_mtime_ns, state.st_size)
    if read not in _read:
        _read[read] = pickle.dumps(_read_file(source, config_path))
    return pickle.loads(_read[read])


def _copy_places(caching: CachingConfigRepository, repo: Any) -> None:
    """Hydra copies with them all that plugins have registered, which nobody changes."""
    caching.delegate, caching.cache = copy.copy(repo), {}


def _files(repo: Any) -> Iterator[object]:
    """The places that configs are read from, and the state of each file there; of the folder above sweeps/ that one."""
    from igap.cli import settings  # later than the hook that checks annotations

    for source in repo.get_sources():
        yield source.provider, source.path
        walked = str(settings.SWEEPS) if source.path == str(settings.SWEEPS.parent) else source.path
        for folder, _, names in os.walk(walked) if source.scheme() == "file" else ():
            for name in names:
                state = os.stat(os.path.join(folder, name))
                yield folder, name, state.st_mtime_ns, state.st_size


def _stored(configs: dict[str, Any]) -> Iterator[object]:
    """What plugins have registered; igap takes some of it away."""
    for name, config in configs.items():
        yield name, id(config)
        if isinstance(config, dict):
            yield from _stored(config)
