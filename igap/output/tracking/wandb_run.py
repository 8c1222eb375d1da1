"""Weights & Biases: a sink for what is already on disk.

Everything W&B gets is read from a finished run's folder, so that a run can be logged at any time: when it ends, or from
disk later (`igap sync`). Its id in W&B is its key, and its folder holds one offline run of it at most.
"""

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

from igap.config import TrackingConfig
from igap.errors import InputError
from igap.output.tracking import places, reading
from igap.output.tracking.writing import write

log_messages = logging.getLogger("igap")


def check(tracking: TrackingConfig) -> None:
    """Raises InputError on online tracking without credentials, where W&B would stop a finished run to ask for them."""
    if tracking.mode == "online" and (missing := places.missing_key()):
        raise InputError(
            f"tracking: got online, but {missing}. Run wandb login, set WANDB_API_KEY, or use tracking=offline."
        )


def resolve_mode(tracking: TrackingConfig) -> tuple[TrackingConfig, str | None]:
    """The tracking with mode auto settled, once for all jobs, and the sentence that says so; others as they are."""
    if tracking.mode != "auto":
        return tracking, None
    if not reading.answers():  # first: W&B may ask an unreachable server about a key for longer
        mode, why = "offline", f"W&B's server does not answer within {reading.PROBE_SECONDS:.0f} s"
    elif missing := places.missing_key():
        mode, why = "offline", missing
    else:
        mode, why = "online", "there is a key, and W&B's server answers"
    return tracking.model_copy(update={"mode": mode}), f"W&B: {mode} ({why})"


def log(folder: Path, tracking: TrackingConfig) -> str | None:
    """Where W&B keeps the finished run in `folder` (offline folder or address), None when disabled.

    Online takes `tracking.timeout` seconds at most; what is not done then is logged offline. Raises whatever W&B raises
    offline; the caller decides what a lost sink is worth.
    """
    if tracking.mode == "disabled":
        return None
    assert tracking.mode != "auto", "resolve_mode() comes first"
    if tracking.mode == "online":
        trouble = _in_a_child(folder, tracking)
        if trouble is None:
            logged = places.find_logged_run(folder)
            assert logged is not None
            return logged.place
        log_messages.warning("%s: %s; logged offline. Upload it later: igap sync %s", folder, trouble, folder)
    with contextlib.redirect_stderr(io.StringIO()):  # where W&B prints the traceback of what the caller is told of
        return write(folder, tracking, "offline").place


def log_or_warn(folder: Path, tracking: TrackingConfig, name: str = "the run") -> tuple[str, ...]:
    """Log as `log` does, with the mode settled; an error is a warning, since everything is on disk.

    Args:
        folder: The folder of a finished run or search.
        tracking: Where to.
        name: What the warning calls it.

    Returns:
        What the terminal says, a line each: the mode where it was auto, and where the run is.
    """
    lines: list[str] = []
    try:
        resolved, message = resolve_mode(tracking)
        lines += [message] if message else []
        place = log(folder, resolved)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        log_messages.warning("W&B did not take %s (%s); everything is in %s", name, why, folder)
    else:
        lines.append(f"W&B run: {place}" if place else "W&B: disabled")
    return tuple(lines)


def _in_a_child(folder: Path, tracking: TrackingConfig) -> str | None:
    """Why the run could not be logged online in time, None where it was.

    In a process of its own: W&B waits for its server in threads and processes that no time limit of its own bounds
    altogether, and a sweep must go on.
    """
    command = [
        sys.executable,
        "-m",
        "igap.output.tracking.online_process",
        str(folder.resolve()),
        tracking.model_dump_json(),
    ]
    environment = {**places.own_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(  # what kills the child kills W&B's own process: it ends with the one that it serves
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=tracking.timeout,
        )
    except subprocess.TimeoutExpired:
        return f"W&B did not finish online within tracking.timeout={tracking.timeout:g} s"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else f"W&B failed online ({lines[-1][:200] if lines else 'no reason given'})"
