"""Every circuit of the exam."""

from collections.abc import Callable

from igap.bench import attention, gates, hidden, read_outs
from igap.bench.circuit import Circuit

_MAKERS: tuple[Callable[[], Circuit], ...] = (
    read_outs.linear,
    read_outs.inert,
    read_outs.always_on,
    gates.and_gate,
    gates.or_gate,
    gates.xor_gate,
    gates.cancellation,
    hidden.saturation,
    hidden.self_cancelling,
    hidden.backup,
    attention.query,
    attention.key,
    attention.induction,
    attention.name_mover,
)


def circuits() -> dict[str, Circuit]:
    """Every circuit by its name, in the order of the exam. Their models are made when they are loaded."""
    return {circuit.name: circuit for circuit in (make() for make in _MAKERS)}
