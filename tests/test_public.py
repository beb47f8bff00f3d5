"""The public names: there, lazy, and each does what its docstring says."""

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import scene_example
from PIL import Image
from runs import environment, write_config, write_scenes

import gpg_vl
from gpg_vl.cli import main
from gpg_vl.config import load_config, make_config
from gpg_vl.data.images import load_image
from gpg_vl.data.question import make_question
from gpg_vl.errors import UserError


def test_every_public_name_is_there() -> None:
    for name in gpg_vl.__all__:
        assert getattr(gpg_vl, name).__name__ == name
    assert dir(gpg_vl) == sorted([*gpg_vl.__all__, "__version__"])
    with pytest.raises(AttributeError, match=r"no attribute 'Modell'; public are .*Model"):
        _ = gpg_vl.Modell


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, gpg_vl; gpg_vl.reward, gpg_vl.Example, gpg_vl.Completion;"
        "print(*{'torch', 'transformers', 'pydantic', 'rich', 'yaml', 'PIL'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_types_come_with_the_package() -> None:
    assert (Path(gpg_vl.__file__).parent / "py.typed").is_file()


def test_the_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert gpg_vl.__version__ == version("gpg_vl")
    assert capsys.readouterr().out == f"gpg-vl {gpg_vl.__version__}\n"


# ---- pictures and answers


def test_a_picture_may_be_given_in_any_form(tmp_path: Path) -> None:
    (encoded,) = scene_example(1).images
    assert isinstance(encoded, bytes)
    (tmp_path / "scene.png").write_bytes(encoded)
    opened = Image.open(io.BytesIO(encoded))
    forms = (encoded, tmp_path / "scene.png", str(tmp_path / "scene.png"), opened, [encoded])
    for form in forms:
        (image,) = make_question(form, "What?").images
        shown = load_image(image, root=None, max_pixels=10**6)
        assert shown.tobytes() == opened.convert("RGB").tobytes(), form
    assert make_question(None, "What?").images == ()
    assert len(make_question([encoded, opened], "What?").images) == 2


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"given as int\. .* a Pillow image are allowed"):
        make_question(3, "What?")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nowhere\.png"):
        make_question(tmp_path / "nowhere.png", "What?")


def test_a_score_is_the_log_probability_of_the_stock_model(tiny_checkpoint: Path) -> None:
    """Token by token, the end of the turn included, under a forward pass of transformers alone."""
    from transformers import Qwen2VLForConditionalGeneration

    model = gpg_vl.Model.load(tiny_checkpoint, device="cpu")
    scored = model.score(None, "Which is closer?", ["A", "B 12"])

    prompt = model.encoder().encode(make_question(None, "Which is closer?"))
    stock = Qwen2VLForConditionalGeneration.from_pretrained(tiny_checkpoint)
    tokenizer, tokens = model.processing.tokenizer, model.processing.tokens
    for answer, text in zip(scored, ["A", "B 12"], strict=True):
        said = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert answer.token_ids == tuple(said)
        ids = torch.cat([prompt.input_ids_T, torch.tensor(said)])
        with torch.no_grad():
            logits_T_V = stock(input_ids=ids[None]).logits[0, prompt.length - 1 : -1].float()
        logits_T_V[:, list(tokens.never_sampled)] = -torch.inf
        expected_T = logits_T_V.log_softmax(1)[torch.arange(len(said)), torch.tensor(said)]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected_T, atol=1e-5, rtol=0)
        assert answer.logprob == pytest.approx(expected_T.sum().item(), abs=1e-5)


def test_answers_are_drawn_by_seed_and_score_as_they_were_drawn(tiny_checkpoint: Path) -> None:
    model, scene = gpg_vl.Model.load(tiny_checkpoint, device="cpu"), scene_example(2)
    ask = (scene.images[0], scene.prompt)
    answers = model.generate(*ask, n=3, max_new_tokens=4)
    again = model.generate(*ask, n=3, max_new_tokens=4)
    other = model.generate(*ask, n=3, max_new_tokens=4, seed=1)
    assert [one.token_ids for one in answers] == [one.token_ids for one in again]
    assert [one.token_ids for one in answers] != [one.token_ids for one in other]
    assert len({one.token_ids for one in answers}) > 1

    for drawn, scored in zip(answers, model.score(*ask, answers), strict=True):
        assert drawn.token_ids == scored.token_ids
        assert drawn.logprobs == pytest.approx(scored.logprobs, abs=1e-5)
    assert model.score(*ask, []) == ()


# ---- rewards


def test_a_reward_can_be_tried_on_a_text() -> None:
    def exact(completion: gpg_vl.Completion, example: gpg_vl.Example) -> float:
        return float(completion.response == example.answer)

    example = gpg_vl.Example(id="1", prompt="Which?", answer="(B)")
    assert exact(gpg_vl.Completion(text="(B)"), example) == 1.0
    assert exact(gpg_vl.Completion(text="(A)"), example) == 0.0


USE = """
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item

def value():
    item = Item(gpg_vl.Example(id="1", prompt="?", answer="B"), (gpg_vl.Completion(text="B"),))
    with RewardPool({"exact": 1.0}, workers=1) as pool:
        return pool.evaluate([item])[0]["exact"]
"""
REGISTERED = """
import gpg_vl

@gpg_vl.reward("exact")
def exact(completion, example):
    return float(completion.response == example.answer)
"""


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reward_that_a_module_registers_is_found_by_its_worker(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REGISTERED)
    result = run_script(tmp_path, f"import gpg_vl, mine\n{USE}\nprint(value())")
    assert result.stdout == "(1.0,)\n", result.stderr


@pytest.mark.parametrize(
    "text,where",
    [
        (f"{REGISTERED}{USE}\nvalue()", "in a notebook or in the main script"),
        (
            "def make():"
            + REGISTERED.replace("\n", "\n    ")
            + "\nmake()\nimport gpg_vl\n__name__ = 'x'"
            + USE
            + "\nvalue()",
            "inside another function, as make.<locals>.exact",
        ),
    ],
    ids=["script", "function"],
)
def test_a_reward_that_no_worker_can_import_is_refused(
    tmp_path: Path, text: str, where: str
) -> None:
    """Before a worker is started, whose own message would be that there is no such reward."""
    if where.startswith("inside"):
        (tmp_path / "mine.py").write_text(text)
        text = "import mine"
    result = run_script(tmp_path, text)
    assert f"The reward 'exact' is defined {where}." in result.stderr
    assert "name it in rewards.weights as my_rewards.py:exact" in result.stderr


# ---- runs


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> gpg_vl.train:
    config = write_config(tmp_path_factory.mktemp("public"), tiny_checkpoint)
    return gpg_vl.train(config, train={"steps": 2}, **{"output.samples_every": 0})


def test_a_run_says_what_it_left(run: gpg_vl.train) -> None:
    assert run.finished
    assert [(row["step"], row["kind"]) for row in run.metrics] == [(1, "train"), (2, "train")]
    assert run.model == run.folder / "checkpoints" / "step-000002" / "model"
    assert (run.model / "config.json").is_file()


def test_a_model_is_measured_alike_by_its_folder_by_its_run_and_in_memory(
    run: gpg_vl.train, tmp_path: Path
) -> None:
    data = write_scenes(tmp_path / "test.parquet", 12, seed=12)
    settings = {"prompt": "plain", "scorers": ["strict"], "max_new_tokens": 3}
    results = [
        gpg_vl.evaluate("cvbench", model=model, data=data, **settings).flat()
        for model in (run.model, run.folder, gpg_vl.Model.load(run.folder, device="cpu"))
    ]
    assert results[0] == results[1] == results[2]
    assert results[0]["n"] == 12
    with pytest.raises(UserError, match=r"no setting called 'max_tokens'. Known: .*max_new_tokens"):
        gpg_vl.evaluate("cvbench", model=run.model, data=data, max_tokens=3)


def test_a_config_may_be_a_file_or_sections_with_overrides(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = write_config(tmp_path, tiny_checkpoint)
    loaded = load_config(file)
    expected = load_config(file, ["train.steps=7", "output.folder=there"])
    overrides = {"train": {"steps": 7}, "output.folder": Path("there")}
    for given in (file, str(file), loaded, loaded.model_dump(mode="json")):
        assert make_config(given, overrides) == expected
        assert make_config(given, {}) == loaded
    with pytest.raises(UserError, match=r"The override steps=7 has no key\. Give a section"):
        make_config(file, {"steps": 7})
    with pytest.raises(UserError, match="step"):
        make_config(file, {"train": {"stepz": 7}})
