"""The Hugging Face hub: whether it can be reached (checked once), and the download of data sets by explicit name.

The hub's own client tries six times per file, which takes most of a minute. Here one attempt of a few seconds decides for
the whole process. If it fails, files that were downloaded before are still found in the cache.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpg_vl.errors import UserError

SECONDS = 4.0
"""Time limit for the hub's response."""
_TRIED = f"one attempt of {SECONDS:.0f} seconds, or HF_HUB_OFFLINE is set"
PREFIX = "hub:"
_known: list[bool] = []
"""Whether the hub can be reached; empty until this process, or another process of the run, has checked."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class UnreachableError(UserError):
    """A checkpoint or data set is not on this machine, and the hub cannot be reached. The rest of a run can still be
    checked."""


def is_hub_name(path: str) -> bool:
    """Whether a text may be a hub name: it is not a local path and has at most one slash."""
    return not Path(path).exists() and not path.startswith((".", "/", "~")) and path.count("/") < 2


def is_reachable() -> bool:
    """Whether the hub can be reached. Checked once per process. False without an attempt if HF_HUB_OFFLINE is set."""
    if not _known:
        remember(_ask())
    return _known[0]


def remember(answers: bool | None) -> None:
    """Store whether the hub can be reached, as another process of the run has found. None: check again at the next call."""
    _known[:] = [] if answers is None else [answers]


def _ask() -> bool:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False

    # the hub's client uses a different HTTP library in different versions; find the error class of the one in use
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
    """Whether to look for the files of a checkpoint only on this machine."""
    return not is_hub_name(path) or not is_reachable()


def refuse_unreachable(path: str) -> None:
    """Raise UnreachableError for a hub checkpoint of which nothing is cached, if the hub cannot be reached."""
    if not is_hub_name(path) or is_reachable():
        return
    name, parent = Path(path).name, Path(path).parent
    near = (
        f" The folder {parent} exists, but has no {name} in it."
        if "/" in path and parent.is_dir()
        else ""
    )
    raise UnreachableError(
        f"The checkpoint {path} is not a local folder, so it was taken for a hub name; it is not in the cache, and the "
        f"hub cannot be reached ({_TRIED}).{near} Correct the path, or download it on a machine with a network: hf "
        f"download {path} --local-dir FOLDER, and give that folder."
    )


def describe_unreachable_data(name: str) -> str:
    """The error message for a data set that is not on this machine while the hub cannot be reached."""
    return (
        f"The data set {name} is neither a local folder nor in the cache, and the hub cannot be reached ({_TRIED}). Check "
        f"the name and the network, or download it on a machine with a network: hf download {name} --repo-type dataset "
        f"--local-dir FOLDER, and give that folder."
    )


@contextmanager
def cached_data_only() -> Iterator[None]:
    """Inside the block the datasets library uses only its cache if the hub cannot be reached."""
    import datasets

    was = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was or not is_reachable()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was


def fetch_data(name: str) -> Path:
    """The local folder of a hub data set `OWNER/NAME` or `OWNER/NAME@REVISION`. Downloads it unless it is in the cache.

    Raises UserError; UnreachableError if it is not in the cache and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not _NAME.fullmatch(name):
        raise UserError(
            f"{PREFIX}{name} is not the name of a hub data set. Allowed are {PREFIX}OWNER/NAME and "
            f"{PREFIX}OWNER/NAME@REVISION, such as {PREFIX}nyu-visionx/CV-Bench."
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
            f"The data set {repository} cannot be downloaded from the hub: {words}. Check its name and whether you have "
            f"access (hf auth login)."
        ) from error
    return Path(folder)
