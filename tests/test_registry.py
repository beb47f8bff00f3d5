"""Finding a function by name: built in, registered, announced by an installed package, or in a file."""

import sys
import textwrap

import pytest

from gpg_vl.registry import Registry, UnknownNameError
from gpg_vl.rewards import batched, in_range, reward, rewards

GROUP = "gpg_vl.test_plugins"


@pytest.fixture
def registry():
    return Registry(
        "reward",
        builtin={"choice": "gpg_vl.rewards.builtin:choice", "broken": "gpg_vl.nowhere:f"},
        entry_point_group=GROUP,
    )


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package as pip would leave it: a module and a dist-info folder, in a folder on sys.path."""
    imported = set(sys.modules)

    def put(distribution, code, **points):
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{distribution}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        lines = [f"{name.replace('_', '-')} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))

    yield put
    for name in set(sys.modules) - imported:
        del sys.modules[name]


def in_order(completion, example):
    return 0.5


def test_a_decorated_function_is_found_and_unchanged(registry):
    assert registry.register("in_order")(in_order) is in_order
    assert registry.get("in_order") is in_order
    assert "in_order" in registry.names()


def test_a_builtin_is_imported_when_it_is_asked_for(registry):
    from gpg_vl.rewards.builtin import choice

    assert registry.names() == ["broken", "choice"]
    assert registry.get("choice") is choice
    with pytest.raises(ModuleNotFoundError, match=r"gpg_vl\.nowhere"):
        registry.get("broken")


def test_an_installed_plugin_is_found_and_not_imported_before(registry, install):
    install(
        "plugin_tally",
        "def tally(completion, example):\n    return 0.25\n",
        tally="plugin_tally:tally",
    )
    assert "tally" in registry.names()
    assert "plugin_tally" not in sys.modules
    assert registry.get("tally")(None, None) == 0.25


def test_a_plugin_that_fails_raises_its_own_error_and_only_when_asked_for(registry, install):
    install("plugin_sick", "raise OSError('no licence')", sick="plugin_sick:f")
    assert registry.get("choice")
    with pytest.raises(OSError, match="no licence"):
        registry.get("sick")


def test_a_plugin_without_the_function_says_where_it_looked(registry, install):
    install("plugin_empty", "", empty="plugin_empty:f")
    with pytest.raises(
        UnknownNameError, match="'empty' points to plugin_empty:f, where there is no such function"
    ):
        registry.get("empty")


def test_two_plugins_with_one_name_are_an_error_that_names_both(registry, install):
    install("plugin_one", "def f(completion, example): return 0.0", tally="plugin_one:f")
    install("plugin_two", "def f(completion, example): return 1.0", tally="plugin_two:f")
    with pytest.raises(
        ValueError, match=r"'tally' is taken twice: by plugin_\w+:f and by plugin_\w+:f"
    ) as error:
        registry.get("tally")
    assert "plugin_one:f" in str(error.value)
    assert "plugin_two:f" in str(error.value)


def test_a_plugin_cannot_take_the_name_of_a_builtin(registry, install):
    install("plugin_greedy", "def f(completion, example): return 1.0", choice="plugin_greedy:f")
    with pytest.raises(
        ValueError, match=r"by gpg_vl\.rewards\.builtin:choice and by plugin_greedy:f"
    ):
        registry.names()


def test_a_decorator_cannot_take_a_taken_name(registry, install):
    install(
        "plugin_tally", "def tally(completion, example): return 0.25", tally="plugin_tally:tally"
    )
    registry.register("mine")(in_order)
    registry.register("mine")(in_order)  # the same function again, as when its module is reloaded
    for name, owner in (
        ("choice", r"gpg_vl\.rewards\.builtin:choice"),
        ("tally", "plugin_tally:tally"),
        ("mine", rf"{__name__}:in_order"),
    ):
        with pytest.raises(
            ValueError, match=rf"'{name}' is taken twice: by {owner} and by .*lambda"
        ):
            registry.register(name)(lambda completion, example: 1.0)


def test_a_function_of_a_file_is_found(registry, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "COUNT = []\ndef f(completion, example):\n    return 0.75\nf_again = f\n"
    )
    monkeypatch.chdir(tmp_path)
    assert registry.get("mine.py:f")(None, None) == 0.75
    assert registry.get(f"{tmp_path}/mine.py:f") is registry.get(
        "mine.py:f_again"
    )  # one module, not three


def test_files_that_lie_together_can_share_code_and_hide_nothing(registry, tmp_path, monkeypatch):
    """Whatever folder the program was started in, and without their folder coming before what is installed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "task_beside.py").write_text(
        "from shared_by_two import VALUE\nimport yaml\ndef f(a, b):\n    return VALUE"
    )
    (tmp_path / "shared_by_two.py").write_text("VALUE = 0.25")
    (tmp_path / "yaml.py").write_text("1 / 0")
    monkeypatch.delitem(sys.modules, "yaml", raising=False)
    assert registry.get(f"{tmp_path}/task_beside.py:f")(None, None) == 0.25
    monkeypatch.delitem(sys.modules, "shared_by_two")


def test_a_file_that_fails_is_tried_again(registry, tmp_path):
    file = tmp_path / "sick.py"
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        registry.get(f"{file}:f")
    file.write_text("def f(completion, example):\n    return 1.0\n")
    assert registry.get(f"{file}:f")(None, None) == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such.py:f", r"names the file /.*/no/such\.py, which does not exist"),
        (
            "chioce",
            r"There is no reward called 'chioce'\. Did you mean 'choice'\? Known: broken, choice\.",
        ),
        (
            "xyz",
            r"There is no reward called 'xyz'\. Known: broken, choice\. .*path/to/file\.py:function",
        ),
    ],
)
def test_an_unknown_name_is_explained(registry, name, message):
    with pytest.raises(UnknownNameError, match=message) as error:
        registry.get(name)
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, ValueError)


def test_a_missing_function_of_a_file_is_explained(registry, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    for attribute in ("f", "x"):
        with pytest.raises(
            UnknownNameError, match=rf"points to /.*mine\.py:{attribute}, where there is no such"
        ):
            registry.get(f"{tmp_path}/mine.py:{attribute}")


def test_the_rewards_of_the_package_are_there():
    assert {"choice", "format"} <= set(rewards.names())
    for name in rewards.names():
        assert callable(rewards.get(name))


def test_declarations_stay_with_the_function():
    @batched
    @in_range(0, 2)
    def lengths(completions, example):
        return [0.0 for _ in completions]

    assert lengths.is_batched
    assert lengths.declared_range == (0.0, 2.0)
    with pytest.raises(ValueError, match="'choice' is taken twice"):
        reward("choice")(lengths)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_must_be_finite_and_not_empty(low, high):
    with pytest.raises(ValueError, match="is not a range"):
        in_range(low, high)


def test_a_file_is_the_module_that_its_name_finds(registry, tmp_path, monkeypatch):
    """Other processes find its functions then; but a file never stands for an installed module of its name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder, name in (("a", "corner_rules"), ("b", "corner_rules"), ("a", "json")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(f"def f(): return {folder!r}\n")

    first = registry.get(f"{tmp_path}/a/corner_rules.py:f")
    second = registry.get(f"{tmp_path}/b/corner_rules.py:f")
    third = registry.get(f"{tmp_path}/a/json.py:f")

    assert (first(), second(), third()) == ("a", "b", "a")
    assert first.__module__ == "corner_rules"
    assert second.__module__.startswith("gpg_vl_user_")
    assert third.__module__.startswith("gpg_vl_user_")
    assert registry.get(f"{tmp_path}/a/corner_rules.py:f") is first
