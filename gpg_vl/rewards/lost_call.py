"""The failure that is reported when a reward call ended its worker process."""

import signal
from contextlib import suppress

from gpg_vl.rewards.scoring import Item, RewardFailure
from gpg_vl.rewards.worker import name_place


def lost_call(
    name: str, item: Item, member: int | None, how: str, *, limit: float | None
) -> RewardFailure:
    """The failure of a call during which its worker ended: by the time limit, or else by a crash."""
    if limit is not None:
        message = (
            f"The reward {name!r} gave no result within {limit:g} s on {name_place(item, member)}. "
            f"Make it faster, or raise rewards.time_limit."
        )
    else:
        message = (
            f"The reward {name!r} {how} on {name_place(item, member)}. A reward must return or raise; "
            f"look for sys.exit, os._exit, native code and memory."
        )
    return RewardFailure(
        kind="crash" if limit is None else "timeout",
        reward=name,
        example_id=item.example.id,
        member=member,
        message=message,
        cause=how if limit is None else "timeout",
    )


def describe_end(code: int | None) -> str:
    """`ended its process (exit code 3)`, `brought its process down (SIGSEGV)`"""
    if code is None or code >= 0:
        return f"ended its process (exit code {code})"
    with suppress(ValueError):
        return f"brought its process down ({signal.Signals(-code).name})"
    return f"brought its process down (signal {-code})"
