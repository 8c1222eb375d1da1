"""Hydra reads and merges the files of one choice of groups once in a process: that is most of what composing takes.

The other overrides set single keys of what the files give, and are applied anew each time.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore

_list_files = config_loader_impl.create_defaults_list
_merge_files = ConfigLoaderImpl._compose_config_from_defaults_list
_lists: dict[object, Any] = {}
_merged: dict[int, Any] = {}


def merge_once(patch: pytest.MonkeyPatch) -> None:
    """From now on; where a file has changed, was added or taken away, all are read again."""
    patch.setattr(config_loader_impl, "create_defaults_list", _listed)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _files_merged)


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


def _files(repo: Any) -> Iterator[object]:
    """The places that configs are read from, and the state of each file there."""
    for source in repo.get_sources():
        yield source.provider, source.path
        for folder, _, names in os.walk(source.path) if source.scheme() == "file" else ():
            for name in names:
                state = os.stat(os.path.join(folder, name))
                yield folder, name, state.st_mtime_ns, state.st_size


def _stored(configs: dict[str, Any]) -> Iterator[object]:
    """What plugins have registered; igap takes some of it away."""
    for name, config in configs.items():
        yield name, id(config)
        if isinstance(config, dict):
            yield from _stored(config)
