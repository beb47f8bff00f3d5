"""Look up what a user names in a config or command: a registered function or record, an installed plug-in, or
`file.py:function`.

Nothing is imported before it is looked up. A plug-in that fails to import raises its own error. If two owners register
the same name, the error names both.
"""

import difflib
import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from gpg_vl.errors import UserError

T = TypeVar("T")


class UnknownNameError(KeyError, UserError):
    """A name that nobody has registered. Also a `KeyError`, so that callers who treat the registry as a mapping can
    catch it."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


def did_you_mean(name: str, known: list[str]) -> str:
    """`Did you mean 'choice'? Known: choice, format.` The first sentence only if a known name is similar."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f"Did you mean {near[0]!r}? " if near else ""
    ) + f"Known: {', '.join(sorted(known)) or '(none)'}."


class Registry(Generic[T]):
    """Named functions, or records, of one kind.

    `builtin` maps names to `module:function`, imported on first use. `entry_point_group` is the packaging group in which
        other distributions register theirs. `kind_of` is the class that every entry must be an instance of; without it, every
        entry must be callable.

    Example:
        `rewards = Registry("reward", builtin={"choice": "gpg_vl.rewards.builtin:choice"},
        entry_point_group="gpg_vl.rewards")` then `rewards.get("choice")` or `rewards.get("my.py:in_order")`.
    """

    def __init__(
        self,
        kind: str,
        *,
        builtin: dict[str, str],
        entry_point_group: str,
        kind_of: type[T] | None = None,
    ) -> None:
        self.kind = kind
        self._lazy = dict(builtin)
        self._registered: dict[str, T] = {}
        self._group = entry_point_group
        self._kind_of = kind_of
        self._wanted = "function" if kind_of is None else kind_of.__name__

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make a function available under `name`. Raises ValueError if the name has another owner."""

        def keep(function: T) -> T:
            owner = self._owner(name)
            mine = f"{function.__module__}:{getattr(function, '__qualname__', function)}"
            if owner is not None and owner != mine:
                raise ValueError(
                    f"The {self.kind} name {name!r} is taken twice: by {owner} and by {mine}. Rename one."
                )
            self._registered[name] = function
            return function

        return keep

    def origin(self, name: str) -> tuple[str, str] | None:
        """(module, qualified name) of what this process has registered under `name`; None for any other name.

        Another process can find it by importing the module, unless the module is `__main__`.
        """
        if name not in self._registered:
            return None
        found = self._registered[name]
        return found.__module__, getattr(found, "__qualname__", str(found))

    def names(self) -> list[str]:
        """All names that `get` can find, sorted. Imports nothing. Raises ValueError if a plug-in uses a name that is
        taken."""
        return sorted({*self._lazy, *self._registered, *self._plugins()})

    def get(self, name: str) -> T:
        """The entry registered under `name`. Raises UnknownNameError, or any error that the plug-in raises on
        import."""
        if name in self._registered:
            return self._registered[name]
        if ".py:" in name:
            return self._from_file(name)
        target = self._lazy.get(name) or self._plugins().get(name)
        if target is None:
            raise UnknownNameError(
                f"There is no {self.kind} called {name!r}. {did_you_mean(name, self.names())} "
                f"A {self._wanted} of your own is named as path/to/file.py:{self._wanted.lower()}."
            )
        module, _, attribute = target.partition(":")
        return self._checked(name, getattr(import_module(module), attribute, None), target)

    def _plugins(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for point in entry_points(group=self._group):
            owner = self._lazy.get(point.name) or found.get(point.name)
            if owner is not None and owner != point.value:
                raise ValueError(
                    f"The {self.kind} name {point.name!r} is taken twice: by {owner} and by {point.value}. "
                    f"Uninstall one of the plug-ins or rename its entry point."
                )
            found[point.name] = point.value
        return found

    def _owner(self, name: str) -> str | None:
        if origin := self.origin(name):
            return ":".join(origin)
        return self._lazy.get(name) or self._plugins().get(name)

    def _from_file(self, name: str) -> T:
        path, _, attribute = name.rpartition(":")
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise UnknownNameError(
                f"The {self.kind} {name!r} names the file {file}, which does not exist. "
                f"Give a path relative to the folder you start from, or an absolute one."
            )
        return self._checked(
            name, getattr(_module_from(file), attribute, None), f"{file}:{attribute}"
        )

    def _checked(self, name: str, found: object, where: str) -> T:
        fits = callable(found) if self._kind_of is None else isinstance(found, self._kind_of)
        if not fits:
            raise UnknownNameError(
                f"The {self.kind} {name!r} points to {where}, where there is no such {self._wanted}."
            )
        return found  # type: ignore[return-value]  # of functions, the registry's T is a promise of the caller


def _module_from(file: Path) -> ModuleType:
    """Import a file as a module, once per process.

    The file's folder is added to the end of sys.path, so that files in one folder can import each other however the
        program was started. If `import NAME` finds this very file, it is imported under that name, so that other processes
        can find it too: a reward can then send its functions to a process pool. Otherwise it gets a unique module name.
    """
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
        importlib.invalidate_caches()
    if _is_importable(file):
        return import_module(file.stem)

    module_name = f"gpg_vl_user_{sha256(str(file).encode()).hexdigest()[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _is_importable(file: Path) -> bool:
    """Whether `import NAME` finds this file, and not an installed package or another file of the same name."""
    if not file.stem.isidentifier():
        return False
    try:
        spec = importlib.util.find_spec(file.stem)
    except ValueError:  # a module that was put into sys.modules by hand
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file
