"""The rules of the house that a machine can check: who may import whom, and that prose names what exists."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gpg_vl.algorithms import algorithms
from gpg_vl.cli.program import make_parser as cli_parser
from gpg_vl.config import Config, load_config
from gpg_vl.eval.arguments import make_parser as eval_parser
from gpg_vl.models.families import families, known_for_boxes
from gpg_vl.registry import Registry, UnknownNameError
from gpg_vl.rollout import engines
from gpg_vl.training.sharding import shardings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gpg_vl"
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/adapters.md",
    "docs/algorithms.md",
    "docs/answers.md",
    "docs/checkpoints.md",
    "docs/digits.md",
    "docs/evaluation.md",
    "docs/data.md",
    "docs/families.md",
    "docs/install.md",
    "docs/memory.md",
    "docs/numbers.md",
    "docs/published.md",
    "docs/quickstart.md",
    "docs/rewards.md",
    "docs/report.md",
    "docs/scaling.md",
    "docs/troubleshooting.md",
    "docs/training.md",
    "docs/vllm.md",
    "eval/README.md",
)
"""docs/new_task.md is held by tests/test_new_task_docs.py, which runs it: its files are those that a reader writes."""
ROOMS = (
    (
        "types",
        "prompting",
        "errors",
        "hub",
        "registry",
        "shipped",
        "version",
        "clock",
        "peak_memory",
        "activity",
        "pipes",
        "console",
        "parent_process",
        "exit_codes",
        "spawning",
    ),
    ("algorithms",),
    ("config",),
    ("answers",),
    ("data",),
    ("models",),
    ("rollout",),
    ("model",),
    ("rewards",),
    ("eval",),
    ("report",),
    ("training",),
    ("quickstart", "doctor", "scaffold"),
    ("cli",),
    ("__main__", ""),
)
"""From left to right. A module imports from its own room and from rooms to its left. "" is the package's __init__."""
FORBIDDEN = {
    "rewards": ("models", "rollout", "model"),
    "eval": ("training",),
    "report": ("models", "rollout", "model", "algorithms"),
}
"""On top of that: rewards must start in a blink, a benchmark must not know how a model was trained, and a report reads files."""
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, inside functions and under TYPE_CHECKING too.

    `from gpg_vl import cli` counts as gpg_vl.cli. Relative imports are made absolute.
    """
    package = ".".join(("gpg_vl", *file.relative_to(PACKAGE).parts[:-1]))
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield node.lineno, submodule if is_module_of_ours(submodule) else module


def is_module_of_ours(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("gpg_vl.") and (path.with_suffix(".py").is_file() or path.is_dir())


def room(file: Path) -> str:
    """The name in ROOMS that a file of the package belongs to."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def room_of_module(name: str) -> str | None:
    """The room of an imported module of ours, None for another package."""
    parts = name.split(".")
    return None if parts[0] != "gpg_vl" else parts[1] if len(parts) > 1 else ""


def at(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


# ---- imports


def test_every_module_has_a_room() -> None:
    assert {room(file) for file in FILES} <= RANK.keys(), "a new room needs its place in ROOMS"


def test_imports_go_one_way() -> None:
    wrong = [
        f"{at(file, line)} is in {room(file) or '__init__'} and imports {name}, which stands to its right"
        for file in FILES
        for line, name in imports(file)
        if (other := room_of_module(name)) is not None
        and other != room(file)
        and not may_import(room(file), other)
    ]
    assert not wrong, "\n".join(wrong)


def may_import(room: str, other: str) -> bool:
    return other in RANK and RANK[other] <= RANK[room] and other not in FORBIDDEN.get(room, ())


@pytest.mark.parametrize(
    "source,expected",
    [
        ("from gpg_vl.training.loop import train", ["gpg_vl.training.loop"]),
        ("def f():\n    from gpg_vl import cli", ["gpg_vl.cli"]),
        ("from ..models import load, policy", ["gpg_vl.models.load", "gpg_vl.models.policy"]),
        ("from . import sources", ["gpg_vl.data.sources"]),
        ("from .rows import Row", ["gpg_vl.data.rows"]),
        ("import gpg_vl.models.load as l, torch", ["gpg_vl.models.load", "torch"]),
        ("if TYPE_CHECKING:\n    from torch import Tensor", ["torch"]),
    ],
)
def test_no_way_of_importing_is_overlooked(
    monkeypatch: pytest.MonkeyPatch, source: str, expected: list[str]
) -> None:
    """That the test above sees what it should: written as if in gpg_vl/data/new.py."""
    monkeypatch.setattr(Path, "read_text", lambda self: source)
    assert [name for _, name in imports(PACKAGE / "data" / "new.py")] == expected


def test_the_order_of_the_rooms_is_meant() -> None:
    assert may_import("models", "data")
    assert may_import("training", "eval")
    assert may_import("eval", "model")
    assert may_import("model", "rollout")
    assert not may_import("rollout", "model")
    assert not may_import("rewards", "model")
    assert not may_import("data", "models")
    assert not may_import("eval", "training")
    assert not may_import("rewards", "models")
    assert not may_import("rewards", "rollout")
    assert not may_import("models", "nowhere")


def test_rewards_do_not_import_torch() -> None:
    """Workers that compute rewards are started for every run; torch would cost each of them seconds."""
    heavy = ("torch", "transformers", "accelerate")
    wrong = [
        f"{at(file, line)} imports {name}"
        for file in FILES
        if room(file) in {"answers", "rewards"}
        for line, name in imports(file)
        if name.split(".")[0] in heavy
    ]
    assert not wrong, "\n".join(wrong)


PURE = ("torch", "jaxtyping", "typing", "collections", "dataclasses", "math")
"""What an algorithm may know besides its own room."""
ENTRANCE = PACKAGE / "algorithms" / "__init__.py"
"""Where algorithms are found by name; the one file of the room that knows the registry."""


def test_the_mathematics_is_pure() -> None:
    """Algorithms know tensors, and no config, registry, logger, process group, optimizer or tokenizer."""
    impure = ("torch.distributed", "torch.nn", "torch.optim")
    wrong = []
    for file in FILES:
        if room(file) != "algorithms":
            continue
        ours = ("gpg_vl.algorithms", "gpg_vl.registry") if file == ENTRANCE else "gpg_vl.algorithms"
        for line, name in imports(file):
            known = name.split(".")[0] in PURE or name.startswith(ours)
            if not known or name.startswith(impure):
                wrong.append(f"{at(file, line)} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["gpg_vl.algorithms", "gpg_vl.algorithms.option_types"])
def test_what_the_config_needs_of_algorithms_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


EXTRAS = {
    "eval/masks.py": "masks",
    "rollout/vllm": "vllm",
    "training/eight_bit.py": "torchao",
    "training/sharding/zero.py": "deepspeed",
    "training/sharding/zero_internals.py": "deepspeed",
    "training/trackers/trackio.py": "trackio",
    "training/trackers/wandb.py": "wandb",
}
"""Who may import what an extra brings. Only inside functions, or in a module that nobody imports but that package."""


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {
        extra: {
            extra,
            *(Requirement(line).name for line in project["optional-dependencies"][extra]),
        }
        for extra in EXTRAS.values()
    }
    declared = {Requirement(line).name.lower() for line in project["dependencies"]} | {
        "gpg-vl",
        "gpg_vl",
    }
    comes_with = {
        "tokenizers": "transformers",
        "pydantic_core": "pydantic",
        "pandas": "datasets",
    }
    distributions = packages_distributions()
    missing = {}
    for file in FILES:
        for line, name in imports(file):
            top = comes_with.get(name.split(".")[0], name.split(".")[0])
            owners = {d.lower() for d in distributions.get(top, [top])}
            of_extra = {
                name
                for folder, extra in EXTRAS.items()
                if file.is_relative_to(PACKAGE / folder)
                for name in brought[extra]
            }
            if top not in sys.stdlib_module_names and not owners & (declared | of_extra):
                missing.setdefault(top, at(file, line))
    assert not missing, f"declare in pyproject.toml what is imported: {missing}"


# ---- families


def words_of_code(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier, imported name and string, without docstrings and comments."""
    tree = ast.parse(source)
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    prose = {id(value) for value in statements if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose:
                yield node.lineno, text
            case ast.Name(id=text) | ast.Attribute(attr=text):
                yield node.lineno, text
            case ast.arg(arg=text) | ast.keyword(arg=str(text)):
                yield node.lineno, text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text):
                yield node.lineno, text
            case ast.ImportFrom(module=module, names=names):
                yield from ((node.lineno, text) for text in (module or "", *told(names)))
            case ast.Import(names=names):
                yield from ((node.lineno, text) for text in told(names))


def told(names: list[ast.alias]) -> list[str]:
    return [text for alias in names for text in (alias.name, alias.asname or "")]


def family_words() -> re.Pattern[str]:
    """Model types and classes of transformers, of the registered families and of their sisters, and control tokens.

    A name in a sentence that a person reads, such as Qwen2-VL, is none of these.
    """
    known = [families.get(name) for name in families.names()]
    whole = {*known_for_boxes(), *(family.model_class for family in known)}
    tokens = {token for family in known for token in family.control_tokens}
    sisters = [r"\bqwen\d\w*", r"\bQwen\d\w*[A-Za-z]{2}"]
    words = [rf"\b{re.escape(word)}\b" for word in whole]
    return re.compile("|".join([*words, *sisters, *map(re.escape, tokens)]))


def test_only_its_own_file_names_a_family() -> None:
    """What has to know a family asks its record, so that a new one is one new file."""
    pattern = family_words()
    wrong = [
        f"{at(file, line)} names a family: {found.group()}"
        for file in FILES
        if not file.is_relative_to(PACKAGE / "models" / "families")
        for line, text in words_of_code(file.read_text())
        if (found := pattern.search(text))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source,names_one",
    [
        ("if kind == 'qwen2_vl': pass", True),
        ("from transformers import Qwen2_5_VLConfig", True),
        ("from transformers import Qwen2ForCausalLM as Model", True),
        ("from gpg_vl.models.families.qwen2_vl import mrope_positions", True),
        ("import gpg_vl.models.families.qwen2 as text", True),
        ("def f(model_type='qwen2'): pass", True),
        ("def f(qwen2_vl): pass", True),
        ("class Qwen2VLThing: pass", True),
        ("f(qwen3_vl=1)", True),
        ("message = f'{user}<|im_end|>'", True),
        ("ids = vocabulary['<|image_pad|>']", True),
        ("x = transformers.Qwen2VLProcessor", True),
        ("'''Qwen2VLProcessor and qwen2_vl.'''\n# qwen2_vl", False),
        ("class A:\n    b: int\n    '''As in qwen2_vl.'''", False),
        ("print('writing a tiny Qwen2-VL or Qwen2.5-VL')", False),
        ("import qwen_vl_utils", False),
    ],
)
def test_what_counts_as_naming_a_family(source: str, names_one: bool) -> None:
    pattern = family_words()
    assert any(pattern.search(text) for _, text in words_of_code(source)) is names_one


# ---- engines and shardings


OF_ALL_ENGINES = ("gpg_vl.rollout", "gpg_vl.rollout.engine", "gpg_vl.rollout.sampling")
"""What is known of engines outside of their room; the other modules belong to one of them."""
ENGINE_DEFAULTS = ("config/sections.py", "eval/settings.py", "model.py", "doctor/packages.py")
"""Where an engine is named, because it is what a user gets who names none, or because a package is called so."""
COMMANDS_OF_ENGINES = {"cli/program.py": "gpg_vl.rollout.vllm.command"}
"""Commands that exist for one engine alone."""


def names_one_engine(source: str) -> list[tuple[int, str]]:
    """Classes, functions and names of single engines in the code of a module."""
    builtin = engines._lazy
    classes = {target.partition(":")[2] for target in builtin.values()}
    return [
        (line, text) for line, text in words_of_code(source) if text in classes or text in builtin
    ]


def test_only_the_rollout_knows_one_engine() -> None:
    """Who wants answers asks for an engine by the name in the config, and by its protocol."""
    wrong = []
    for file in FILES:
        if room(file) == "rollout":
            continue
        for line, name in imports(file):
            is_command = COMMANDS_OF_ENGINES.get(str(file.relative_to(PACKAGE))) == name
            is_own = name.startswith("gpg_vl.rollout") and name not in OF_ALL_ENGINES
            if is_own and not is_command:
                wrong.append(f"{at(file, line)} imports {name}, which is of one engine")
        for line, text in names_one_engine(file.read_text()):
            is_default = str(file.relative_to(PACKAGE)) in ENGINE_DEFAULTS and text in engines._lazy
            if not is_default:
                wrong.append(f"{at(file, line)} names one engine: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source,found",
    [
        ("engine: str = 'native'", ["native"]),
        ("x = NativeEngine(setup)", ["NativeEngine"]),
        ("isinstance(engine, native.NativeEngine)", ["NativeEngine", "native"]),
        ("raise UserError('look for native code')", []),
        ("'''The native engine.'''", []),
    ],
)
def test_what_counts_as_naming_an_engine(source: str, found: list[str]) -> None:
    assert sorted(text for _, text in names_one_engine(source)) == sorted(found)


WRAPPERS = re.compile(
    r"\b(DistributedDataParallel|DDP|FullyShardedDataParallel|FSDP|fully_shard|deepspeed|no_sync)\b"
    r"|\baccelerator\.prepare\b|\b_accelerator\.prepare\b"
)
"""What spreads weights over processes."""
MAY_NAME_WRAPPERS = ("training/sharding/", "training/launcher.py", "doctor/")
"""Who knows them, who refuses a launcher that asks for one, and who looks whether they are installed."""


def wrappers_named(source: str) -> list[tuple[int, str]]:
    tree = ast.parse(source)
    dotted = [(n.lineno, ast.unparse(n)) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    words = [*words_of_code(source), *dotted]
    return [(line, found.group()) for line, text in words if (found := WRAPPERS.search(text))]


def test_only_shardings_know_wrappers() -> None:
    wrong = [
        f"{at(file, line)} names {text}"
        for file in FILES
        if not str(file.relative_to(PACKAGE)).startswith(MAY_NAME_WRAPPERS)
        for line, text in wrappers_named(file.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_a_sharding_is_found_by_its_name_alone() -> None:
    """No module outside of their folder imports one; what is known of all is the registry and the protocol."""
    known = ("gpg_vl.training.sharding", "gpg_vl.training.sharding.protocol")
    wrong = [
        f"{at(file, line)} imports {name}"
        for file in FILES
        if not str(file.relative_to(PACKAGE)).startswith("training/sharding/")
        for line, name in imports(file)
        if name.startswith("gpg_vl.training.sharding") and name not in known
    ]
    assert not wrong, "\n".join(wrong)
    assert "none" in shardings.names()


@pytest.mark.parametrize(
    "source,names_one",
    [
        ("from torch.nn.parallel import DistributedDataParallel as D", True),
        ("model = fully_shard(model)", True),
        ("import deepspeed", True),
        ("policy = accelerator.prepare(policy)", True),
        ("self._accelerator.prepare(policy)", True),
        ("with model.no_sync(): pass", True),
        ("prepared = prepare(config)", False),
        ("'''As DistributedDataParallel does.'''", False),
        ("accelerator.wait_for_everyone()", False),
    ],
)
def test_what_counts_as_naming_a_wrapper(source: str, names_one: bool) -> None:
    assert bool(wrappers_named(source)) is names_one


@pytest.mark.parametrize(
    "registry,wrong,told",
    [
        (engines, "nativ", "Did you mean 'native'? Known: native, vllm, vllm_server."),
        (shardings, "nome", "Did you mean 'none'? Known: "),
        (algorithms, "grp", "Did you mean 'grpo'? Known: cispo, dapo, dr_grpo,"),
        (families, "qwen2_v", "Did you mean 'qwen2_vl'? Known: "),
    ],
    ids=lambda x: getattr(x, "kind", None),
)
def test_an_unknown_name_is_told_the_nearest_and_the_known_ones(
    registry: Registry, wrong: str, told: str
) -> None:
    with pytest.raises(UnknownNameError) as error:
        registry.get(wrong)
    assert f"There is no {registry.kind} called {wrong!r}. {told}" in str(error.value)
    for name in registry.names():
        assert name in str(error.value)


# ---- files


def test_no_file_is_longer_than_can_be_read() -> None:
    long = {
        str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400
    }
    assert not long, f"more than 400 lines; split them by noun: {long}"


def test_no_checkpoint_or_data_set_can_run_code() -> None:
    """No remote code, no unpickling."""
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names) if {a.name for a in names} & {
                    "pickle",
                    "dill",
                    "cloudpickle",
                    "shelve",
                    "marshal",
                }:
                    wrong.append(
                        f"{at(file, node.lineno)} imports a module that runs what it reads"
                    )
                case ast.ImportFrom(
                    module="pickle" | "dill" | "cloudpickle" | "shelve" | "marshal"
                ):
                    wrong.append(
                        f"{at(file, node.lineno)} imports from a module that runs what it reads"
                    )
                case ast.keyword(arg="trust_remote_code", value=value):
                    if not (isinstance(value, ast.Constant) and value.value is False):
                        wrong.append(f"{at(file, value.lineno)} may run code of a checkpoint")
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords
                ):
                    if not any(
                        k.arg == "weights_only" and getattr(k.value, "value", None) is True
                        for k in keywords
                    ):
                        wrong.append(
                            f"{at(file, node.lineno)} calls torch.load without weights_only=True"
                        )
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="yaml"), attr="unsafe_load" | "full_load")
                ):
                    wrong.append(
                        f"{at(file, node.lineno)} reads YAML that can make objects; use yaml.safe_load"
                    )
                case ast.Attribute(
                    value=ast.Name(id="yaml"), attr="Loader" | "UnsafeLoader" | "FullLoader"
                ):
                    wrong.append(
                        f"{at(file, node.lineno)} reads YAML that can make objects; use yaml.SafeLoader"
                    )
    assert not wrong, "\n".join(wrong)


def test_checkpoints_are_only_read_with_remote_code_off() -> None:
    """Every from_pretrained says so itself, because the library's default may change."""
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                keywords = {k.arg for k in node.keywords}
                if "trust_remote_code" not in keywords:
                    wrong.append(at(file, node.lineno))
    assert not wrong, f"from_pretrained without trust_remote_code=False: {wrong}"


# ---- the terminal


def past_the_console(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of everything that would reach a terminal other than through gpg_vl.console."""
    makers = {
        "Console",
        "Text",
        "TextColumn",
        "from_markup",
        "rprint",
        "print_exc",
        "StreamHandler",
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("rich.markup", "rich"):
            yield node.lineno, f"imports from {node.module}: use console.plain"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name == "print" or name.startswith(("sys.stdout.write", "sys.stderr.write")):
            yield node.lineno, f"calls {name}: use console.say"
        elif name == "os.write" and ast.unparse(node.args[0]) in ("1", "2"):
            yield node.lineno, "writes to a stream of the terminal: use console.say"
        elif last in makers:
            yield node.lineno, f"calls {last}: use console.make_console, plain or text_column"
        elif last in ("Progress", "track") and not node.args:
            yield node.lineno, "has rich's own columns, which read markup: use console.text_column"
        elif last == "Panel":
            titles = [k.value for k in node.keywords if k.arg in ("title", "subtitle")]
            if not all(isinstance(t, ast.Constant) or "plain(" in ast.unparse(t) for t in titles):
                yield node.lineno, "has a title in which markup is read: use console.plain"


def test_only_the_console_prints() -> None:
    """What comes from outside is escaped in one place, and nothing gets to a terminal past it."""
    wrong = [
        f"{at(file, line)} {what}"
        for file in FILES
        if file != PACKAGE / "console.py"
        for line, what in past_the_console(file.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source, is_wrong",
    [
        ("print(row)", True),
        ("import sys\nsys.stderr.write(row)", True),
        ("import os\nos.write(2, row)", True),
        ("os.write(self._waker, row)", False),
        ("console = rich.console.Console()", True),
        ("from rich.text import Text\nText(row)", True),
        ("from rich import print", True),
        ("from rich.console import Console", False),  # to annotate with
        ("Panel(table, title=f'data: {source}')", True),
        ("Panel(table, title=title)", True),
        ("Panel(table, title='plan')", False),
        ("Panel(table, title=plain(source))", False),
        ("Progress(console=console)", True),
        ("Progress(text_column('{task.description}'), console=console)", False),
        ("traceback.print_exc()", True),
        ("console.print(table)", False),
    ],
)
def test_what_counts_as_printing_past_the_console(source: str, is_wrong: bool) -> None:
    assert bool(list(past_the_console(source))) == is_wrong


# ---- configs


def test_there_are_configs() -> None:
    assert {"quickstart.yaml", "cvbench_qwen2vl_2b.yaml"} <= {file.name for file in CONFIGS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_every_config_parses_and_its_names_resolve(file: Path) -> None:
    from gpg_vl.eval.tasks import tasks
    from gpg_vl.rewards import rewards

    config = load_config(file)
    for name in config.rewards.weights:
        assert callable(rewards.get(name))
    if config.eval.task is not None:
        task = tasks.get(config.eval.task)()
        assert config.eval.prompt is None or config.eval.prompt in task.prompts
    assert getattr(config.algorithm, "age", None) != "valid_fraction", (
        "the inverse of the paper's alpha is nobody's preset"
    )


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = Config.model_fields["algorithm"].default
    assert (algorithm.f_norm, algorithm.age, algorithm.aggregation) == (
        "one",
        "inverse_valid_fraction",
        "token",
    )


# ---- prose


def text_of(document: str) -> str:
    file = ROOT / document
    assert file.is_file(), f"{document} is part of the project and is not there"
    return file.read_text()


def code_of(text: str) -> Iterator[str]:
    """Lines of code of a Markdown text: inline, fenced or indented by four spaces."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def is_path(word: str) -> bool:
    """Whether a word claims that there is a file or folder of the project.

    Not meant: what a user makes (my..., anything under .venv/, runs/ or data/), what a run folder holds, placeholders,
    addresses, and names on the hub such as Qwen/Qwen2-VL-2B, whose first part is no folder here.
    """
    if (
        not re.fullmatch(r"[\w.*/-]+", word)
        or word.startswith(("-", "/", "http"))
        or not re.search(r"[a-z]", word)
    ):
        return False
    first = word.split("/")[0]
    if first in (
        ".venv",
        "runs",
        "data",
        "path",
        "samples",
        "checkpoints",
        "evaluations",
        "model",
        "adapter",
        "broken",
        "parts",
    ) or first.startswith("my"):
        return False
    if "/" in word:
        return (ROOT / first).exists() or word.endswith("/") or Path(word).suffix in SUFFIXES
    return Path(word).suffix in SUFFIXES and word not in RUN_FILES


SUFFIXES = (".py", ".md", ".yaml", ".toml", ".txt")
RUN_FILES = ("config.yaml", "log.txt")


def test_every_module_is_on_the_architecture_page() -> None:
    """In the table of its room. `__init__.py` is its folder's, and may say nothing."""
    page = text_of("docs/architecture.md")
    modules = [file.relative_to(ROOT).as_posix() for file in FILES if file.name != "__init__.py"]
    missing = [name for name in modules if f"| `{name}` |" not in page]
    assert not missing, (
        f"docs/architecture.md lacks {', '.join(missing)}: give each a docstring, a new room its block, and run "
        "python docs/write_pages.py"
    )


def test_the_rooms_of_the_architecture_page_are_in_order() -> None:
    page = text_of("docs/architecture.md")
    shown = re.findall(r"^<!-- files:gpg_vl/(\w+) -->", page, re.MULTILINE)
    assert [RANK[name] for name in shown] == sorted(RANK[name] for name in shown)
    folders = {room(file) for file in FILES if len(file.relative_to(PACKAGE).parts) > 1}
    assert folders <= set(shown), "a room that is a folder has a section of its own"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_prose_exists(document: str) -> None:
    words = {word.rstrip(".,;:") for code in code_of(text_of(document)) for word in code.split()}
    named = {word for word in words if is_path(word)}
    assert named, f"{document} names no file: is it still read rightly?"
    missing = sorted(word for word in named if not any(ROOT.glob(word.rstrip("/"))))
    assert not missing, f"{document} names what is not there: {missing}"


@pytest.mark.parametrize(
    "word,expected",
    [
        ("tests/test_age.py", True),
        ("gpg_vl/rewards/", True),
        ("configs/*.yaml", True),
        ("gpg_vl/nowhere", True),
        ("gone.md", True),
        ("Qwen/Qwen2-VL-2B", False),
        ("nyu-visionx/CV-Bench", False),
        ("runs/quickstart/run", False),
        ("my_rewards.py", False),
        ("my_rewards.py:in_order", False),
        ("section.key=value", False),
        ("config.yaml", False),
        ("1/2", False),
        ("https://x.org/a.md", False),
    ],
)
def test_what_counts_as_a_path(word: str, expected: bool) -> None:
    assert is_path(word) is expected


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a text as words, without prompt, comment, variables and what stands behind a pipe."""
    for code in code_of(text):
        for part in re.split(r"\s(?:&&|\|)\s", code.removeprefix("$ ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # an apostrophe in Python code: no command
                continue
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words


def refusal(words: list[str]) -> str | None:
    """Why a command cannot be run, or None. Only our own programs, `make` and `python` are looked at."""
    program, rest = Path(words[0]).name, words[1:]
    module = rest.index("-m") if "-m" in rest else None
    if program == "make":
        return next(
            (
                f"no target {w} in the Makefile"
                for w in rest
                if "=" not in w and w not in make_targets()
            ),
            None,
        )
    if program == "gpg-vl":
        return refused_by(cli_parser(), rest)
    if program in ("python", "python3", "torchrun", "accelerate") and module is not None:
        name, arguments = rest[module + 1], rest[module + 2 :]
        if name == "gpg_vl":
            return refused_by(cli_parser(), arguments)
        if name == "gpg_vl.eval":
            return refused_by(eval_parser("eval"), arguments)
        return None if importlib.util.find_spec(name) else f"no module {name}"
    if program in ("python", "python3") and rest and rest[0].endswith(".py") and is_path(rest[0]):
        return None if (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
    return None


def refused_by(parser: ArgumentParser, arguments: list[str]) -> str | None:
    """What argparse says to the arguments. Help and a bare program name are fine."""
    if not arguments or "--help" in arguments:
        return None
    if arguments[0] == "eval" and any(isinstance(a, _SubParsersAction) for a in parser._actions):
        return refused_by(eval_parser("eval"), arguments[1:])
    try:
        parser.parse_args(arguments)
    except SystemExit:
        return f"the parser refuses {' '.join(arguments)}"
    return None


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_prose_can_be_run(document: str) -> None:
    found = list(commands(text_of(document)))
    assert any(words[0] in ("make", "gpg-vl", "python") for words in found), (
        f"{document} names no command: is it still read rightly?"
    )
    refused = [f"{' '.join(words)}: {why}" for words in found if (why := refusal(words))]
    assert not refused, f"{document} names commands that do not exist:\n" + "\n".join(refused)


@pytest.mark.parametrize(
    "line,fine",
    [
        ("gpg-vl doctor", True),
        ("gpg-vl repair", False),
        ("gpg-vl train my.yaml train.learning_rate=1e-6 --dry-run", True),
        ("gpg-vl train my.yaml --dryrun", False),
        ("gpg-vl data check my.yaml   # rows and images", True),
        ("gpg-vl data mend my.yaml", False),
        ("gpg-vl eval cvbench --model DIR --data PATH", True),
        ("gpg-vl eval cvbench --modle DIR", False),
        ("python -m gpg_vl.eval --list", True),
        ("python -m gpg_vl.eval --lists", False),
        ("torchrun --nproc-per-node 2 -m gpg_vl train my.yaml", True),
        ("torchrun --nproc-per-node 2 -m gpg_vl tarin my.yaml", False),
        ("python -m gpg_vl.evaluate", False),
        ("python -m venv .venv", True),
        (".venv/bin/python -m pytset", False),
        ("OMP_NUM_THREADS=1 make test", True),
        ("make PYTHON=python3.12 quickstart", True),
        ("make coffee", False),
        ("python data_recipes/scenes.py --out data", True),
        ("python data_recipes/gone.py", False),
        ("git commit", True),
    ],
)
def test_what_counts_as_a_command_that_can_be_run(line: str, fine: bool) -> None:
    (words,) = commands(f"    {line}\n")
    assert (refusal(words) is None) is fine


def test_the_makefile_says_what_it_can_do() -> None:
    listed = set(re.findall(r"make (\w+) ", (ROOT / "Makefile").read_text()))
    assert {"quickstart", "test", "lint", "install"} <= make_targets() & listed


def test_no_group_is_repeated_possessively() -> None:
    """Python before 3.11.5 does not put back what such a group has read when it fails: "12." would match [0-9]++(?:\\.[0-9]++)?+
    as a whole. An atomic group around the repetition, (?>(?:...)?), says the same and is right everywhere."""
    quantified = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")
    for file in FILES:
        for pattern in re.findall(r"""\br?f?["'](?:[^"'\\\n]|\\.)*["']""", file.read_text()):
            outside = re.sub(
                r"\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern
            )  # escapes and classes are single characters
            assert not quantified.search(outside), f"{file}: {pattern}"
