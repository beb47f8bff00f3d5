"""The hub: whether it can be reached, asked once, and data sets that are fetched from it by an explicit name.

Its own client tries six times, over most of a minute, for each file that it looks for. Here one attempt of a few seconds decides
for the whole process; where it fails, what was fetched before is still found.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpg_vl.errors import UserError

SECONDS = 4.0
"""That the hub has for its answer."""
_TRIED = f"one attempt of {SECONDS:.0f} seconds, or HF_HUB_OFFLINE is set"
PREFIX = "hub:"
_known: list[bool] = []
"""Whether the hub answers, once it was asked or somebody else of the run has asked."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class UnreachableError(UserError):
    """What was asked for is not here, and the hub cannot be asked. Everything else of a run can still be checked."""


def is_hub_name(path: str) -> bool:
    """Whether a text may be a name on the hub: no folder here, and at most one slash in it."""
    return not Path(path).exists() and not path.startswith((".", "/", "~")) and path.count("/") < 2


def is_reachable() -> bool:
    """Whether the hub answers; it is asked once. False without a try where HF_HUB_OFFLINE is set."""
    if not _known:
        remember(_ask())
    return _known[0]


def remember(answers: bool | None) -> None:
    """Take it as known whether the hub answers, as another process of the run has found; None: it is to be asked again."""
    _known[:] = [] if answers is None else [answers]


def _ask() -> bool:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False

    # the error of the HTTP library below the hub's client, whichever that is in its version
    kinds: tuple[type, ...] = HfHubHTTPError.__mro__
    transport = (kind for kind in kinds if kind.__name__ == "HTTPError")
    failures: tuple[type[Exception], ...] = (
        OSError,
        *(kind for kind in transport if issubclass(kind, Exception)),
    )
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except failures:
        return False
    return True


def is_local_only(path: str) -> bool:
    """Whether files of a checkpoint are to be looked for on this machine alone."""
    return not is_hub_name(path) or not is_reachable()


def refuse_unreachable(path: str) -> None:
    """Raise UnreachableError for a checkpoint by a hub name, of which nothing is here, if the hub cannot be asked."""
    if not is_hub_name(path) or is_reachable():
        return
    name, parent = Path(path).name, Path(path).parent
    near = (
        f" {parent} is a folder here, without a {name} in it."
        if "/" in path and parent.is_dir()
        else ""
    )
    raise UnreachableError(
        f"The checkpoint {path} is no folder here, so it is taken for a hub name; nothing of it is in the cache, and the hub "
        f"cannot be reached ({_TRIED}).{near} Correct the path, or download it where there is a network: "
        f"hf download {path} --local-dir FOLDER, and give that folder."
    )


def describe_unreachable_data(name: str) -> str:
    """What to say of a data set that is not here, while the hub cannot be asked."""
    return (
        f"The data set {name} is no folder here and not in the cache, and the hub cannot be reached ({_TRIED}). Check the "
        f"name and the network, or download it where there is one: hf download {name} --repo-type dataset --local-dir FOLDER, "
        f"and give that folder."
    )


@contextmanager
def cached_data_only() -> Iterator[None]:
    """The datasets library looks in its cache alone, where the hub cannot be reached."""
    import datasets

    was = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was or not is_reachable()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was


def fetch_data(name: str) -> Path:
    """The folder of a data set `OWNER/NAME` or `OWNER/NAME@REVISION` of the hub, fetched unless it is in the cache.

    Raises UserError; UnreachableError if it is not in the cache and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not _NAME.fullmatch(name):
        raise UserError(
            f"{PREFIX}{name} names no data set of the hub. {PREFIX}OWNER/NAME is allowed, or {PREFIX}OWNER/NAME@REVISION, such "
            f"as {PREFIX}nyu-visionx/CV-Bench."
        )
    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision or None,
            local_files_only=not is_reachable(),
        )
    except LocalEntryNotFoundError:
        raise UnreachableError(describe_unreachable_data(repository)) from None
    except (OSError, HfHubHTTPError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The data set {repository} cannot be fetched from the hub: {words}. Check its name and whether it is open to you "
            f"(hf auth login)."
        ) from error
    return Path(folder)
