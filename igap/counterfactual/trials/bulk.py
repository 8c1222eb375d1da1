"""Many trials of a study written and read at once, as the rows and lines that Optuna's own methods write one by one.

Optuna looks up a trial, its study and each of its attributes before it writes one: 20 ms a trial in a database. What a
database has after a batch is the same to the last byte; `tests/counterfactual/trials/test_bulk.py` compares them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy
from optuna import Study
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import (
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial
from sqlalchemy import Connection

from igap.counterfactual.trials.locking import Journal


def add_trials(storage: BaseStorage, study: Study, trials: Sequence[FrozenTrial], n_before: int) -> None:
    """Put finished trials into the storage, numbered after the `n_before` that it has; in an `exclusive` block."""
    if not trials:
        return
    if isinstance(storage, RDBStorage) and storage.engine.dialect.insert_executemany_returning_sort_by_parameter_order:
        with closing(storage.scoped_session()) as session:
            _insert(session.connection(), study._study_id, trials, n_before)
            session.commit()
    elif isinstance(storage, Journal):
        with storage.at_once():
            study.add_trials(trials)
    else:
        study.add_trials(trials)


def read_trials(storage: BaseStorage, study: Study, after: FrozenTrial | None = None) -> list[FrozenTrial]:
    """The trials behind this one, or all, by number; read from a database, without distributions and dates."""
    if isinstance(storage, RDBStorage):
        with closing(storage.scoped_session()) as session:
            return list(_select(session.connection(), study._study_id, -1 if after is None else after._trial_id))
    first = 0 if after is None else after.number + 1
    if isinstance(storage, Journal):
        return storage.trials_from(study._study_id, first)
    return study.get_trials(deepcopy=False)[first:]


def _insert(connection: Connection, study: int, trials: Sequence[FrozenTrial], n_before: int) -> None:
    rows = [
        {
            "number": n_before + i,
            "study_id": study,
            "state": trial.state,
            "datetime_start": _in_utc(trial.datetime_start),
            "datetime_complete": _in_utc(trial.datetime_complete),
        }
        for i, trial in enumerate(trials)
    ]
    table = TrialModel.__table__
    inserted = sqlalchemy.insert(table).returning(table.c.trial_id, sort_by_parameter_order=True)
    for model, made in _rows_of_trials(connection.scalars(inserted, rows), trials).items():
        connection.execute(sqlalchemy.insert(model.__table__), made)


def _in_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _rows_of_trials(ids: Iterable[int], trials: Sequence[FrozenTrial]) -> dict[Any, list[dict[str, Any]]]:
    """What the tables beside that of trials have of them, by model, trial after trial."""
    rows = defaultdict[Any, list[dict[str, Any]]](list)
    as_json = cache(distribution_to_json)
    for trial_id, trial in zip(ids, trials, strict=True):
        for objective, number in enumerate(trial.values or ()):
            value, kind = TrialValueModel.value_to_stored_repr(number)
            rows[TrialValueModel].append(
                {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
            )
        for name, option in trial.params.items():
            distribution = trial.distributions[name]
            rows[TrialParamModel].append(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(option),
                    "distribution_json": as_json(distribution),
                }
            )
        for model, attributes in (
            (TrialUserAttributeModel, trial.user_attrs),
            (TrialSystemAttributeModel, trial.system_attrs),
        ):
            rows[model] += [
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
            ]
    return {model: made for model, made in rows.items() if made}


def _query(model: Any, *columns: str) -> Any:
    """The query for these columns of the trials behind one; made once, for it takes longer than the answer."""
    trials, table = TrialModel.__table__, model.__table__
    source = table if table is trials else table.join(trials)
    chosen = [table.c.trial_id, *(table.c[name] for name in columns)]
    query = sqlalchemy.select(*chosen).select_from(source).order_by(*chosen[:2])
    return query.where(
        trials.c.study_id == sqlalchemy.bindparam("study"), trials.c.trial_id > sqlalchemy.bindparam("after")
    )


_TRIALS = _query(TrialModel, "number", "state")
_VALUES = _query(TrialValueModel, "objective", "value", "value_type")
_PARAMS = _query(TrialParamModel, "param_name", "param_value")
_ATTRIBUTES = [_query(model, "key", "value_json") for model in (TrialUserAttributeModel, TrialSystemAttributeModel)]


def _select(connection: Connection, study: int, after: int) -> Iterator[FrozenTrial]:
    """The study's trials of a larger id than `after`; those that are not finished may lack what comes meanwhile."""
    those = {"study": study, "after": after}
    rows = connection.execute(_TRIALS, those).all()
    if not rows:
        return
    values, params, user, system = (defaultdict[int, dict[Any, Any]](dict) for _ in range(4))
    for trial_id, objective, value, kind in connection.execute(_VALUES, those):
        values[trial_id][objective] = TrialValueModel.stored_repr_to_value(value, kind)
    for trial_id, name, option in connection.execute(_PARAMS, those):
        params[trial_id][name] = option
    for query, attributes in zip(_ATTRIBUTES, (user, system), strict=True):
        texts = connection.execute(query, those).all()
        parsed = json.loads(f"[{','.join([text for _, _, text in texts])}]")  # at once: six times as fast
        for (trial_id, key, _), value in zip(texts, parsed, strict=True):
            attributes[trial_id][key] = value
    for trial_id, number, state in rows:
        yield FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=list(values[trial_id].values()) or None,
            datetime_start=None,
            datetime_complete=None,
            params=params[trial_id],
            distributions={},
            user_attrs=user[trial_id],
            system_attrs=system[trial_id],
            intermediate_values={},
            trial_id=trial_id,
        )
