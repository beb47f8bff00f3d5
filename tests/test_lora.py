"""Adapters: which layers get them, what they change, and what is written of them for peft and for everybody else."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scene_example
from oracle import naive_logp
from runs import gpg_vl, metrics, write_config
from safetensors.torch import load_file, save_file
from test_learner import make_learner, observed
from test_phases import adapters_everywhere, adapters_on, checkpointed, fill_adapters
from test_policy import COMPLETIONS, PROMPTS, gradients, relative, score, train, weights_of
from torch import Tensor, nn

from gpg_vl.algorithms.grpo import grpo
from gpg_vl.config import Config, load_config
from gpg_vl.config.model_section import ModelConfig
from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.adapter_folder import load_adapters, save_adapters
from gpg_vl.models.adapter_layers import choose_layers
from gpg_vl.models.adapters import (
    adapter_parameters,
    adapters_off,
    add_adapters,
    merged_weights,
)
from gpg_vl.models.families import families
from gpg_vl.models.layout import pack
from gpg_vl.models.load import load_model
from gpg_vl.models.reference import make_reference
from gpg_vl.models.requests import Score
from gpg_vl.training.folder import open_folder
from gpg_vl.training.optimizer import make_adamw
from gpg_vl.training.plan import count_parameters, vision_mode
from gpg_vl.types import Group

EVERYWHERE = ("language", "merger", "vision")
TEXT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MERGER = ["mlp.0", "mlp.2"]
LAYERS = {
    "tiny_checkpoint": {
        "language": TEXT,
        "merger": MERGER,
        "vision": ["qkv", "proj", "fc1", "fc2"],
    },
    "newer_checkpoint": {
        "language": TEXT,
        "merger": MERGER,
        "vision": ["qkv", "proj", "gate_proj", "up_proj", "down_proj"],
    },
    "deep_checkpoint": {
        "language": TEXT,
        "merger": ["linear_fc1", "linear_fc2"],
        "vision": ["qkv", "proj", "linear_fc1", "linear_fc2"],
    },
    "tiled_checkpoint": {
        "language": TEXT,
        "merger": ["linear_1", "linear_2"],
        "vision": ["q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"],
    },
    "marked_checkpoint": {
        "language": TEXT,
        "merger": ["proj"],
        "vision": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    },
    "text_checkpoint": {"language": TEXT},
}
"""The linear layers of each part; those of the two towers are in each of two layers."""
PLACES = {
    "tiled_checkpoint": (
        ("vision", ".vision_tower.encoder."),
        ("merger", ".multi_modal_projector."),
    ),
    "marked_checkpoint": (("vision", ".vision_model.encoder."), ("merger", ".connector.")),
}
"""Words in the names of the modules of each part, where they are not those of Qwen."""
MERGERS = {"deep_checkpoint": 3}
"""Of a family that reads several layers of its vision tower; the others have one."""
FAMILY = {
    "tiny_checkpoint": "qwen2_vl",
    "newer_checkpoint": "qwen2_5_vl",
    "deep_checkpoint": "qwen3_vl",
    "tiled_checkpoint": "internvl",
    "marked_checkpoint": "smolvlm",
    "text_checkpoint": "qwen2",
}


def chosen(
    checkpoint: Path, family: str, parts: tuple[str, ...], targets: list[str] | None
) -> list[str]:
    model = load_model(str(checkpoint))
    return choose_layers(model, families.get(family), parts=parts, targets=targets)


def ends(names: list[str]) -> list[str]:
    """`mlp.0`, `q_proj`: what a layer is called, once for each time that it occurs."""
    found = []
    for name in names:
        *_, owner, last = name.split(".")
        found.append(f"{owner}.{last}" if last.isdecimal() else last)
    return found


# ---- which layers


@pytest.mark.parametrize("family", list(LAYERS))
def test_without_names_every_linear_layer_of_a_part_but_the_head(
    family: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(family)
    for part, names in LAYERS[family].items():
        found = chosen(checkpoint, FAMILY[family], (part,), None)
        times = MERGERS.get(family, 1) if part == "merger" else 2
        assert sorted(ends(found)) == sorted(names * times)
        for name in found:
            assert families.get(FAMILY[family]).part_of(f"{name}.weight") == part
    everything = chosen(checkpoint, FAMILY[family], tuple(LAYERS[family]), None)
    of_mergers = MERGERS.get(family, 1) * len(LAYERS[family].get("merger", []))
    of_tower = 2 * len(LAYERS[family].get("vision", []))
    assert len(everything) == len(set(everything)) == 14 + of_mergers + of_tower


@pytest.mark.parametrize(
    ("parts", "targets", "expected"),
    [
        (("language",), ["q_proj", "down_proj"], ["down_proj"] * 2 + ["q_proj"] * 2),
        (("vision",), ["qkv", "fc2"], ["fc2"] * 2 + ["qkv"] * 2),
        (("merger",), ["mlp.2"], ["mlp.2"]),
        (("vision", "merger"), ["attn.proj", "mlp.0"], ["mlp.0"] + ["proj"] * 2),
        (("language", "vision"), ["v_proj", "layers.0.mlp.up_proj", "qkv"], None),
    ],
)
def test_names_are_those_of_layers_or_their_ends(
    tiny_checkpoint: Path, parts: tuple[str, ...], targets: list[str], expected: list[str] | None
) -> None:
    found = ends(chosen(tiny_checkpoint, "qwen2_vl", parts, targets))
    assert sorted(found) == (expected or ["qkv"] * 2 + ["up_proj"] + ["v_proj"] * 2)


def test_a_name_of_two_parts_stands_for_the_chosen_ones(newer_checkpoint: Path) -> None:
    for parts, number in ((("language",), 2), (("vision",), 2), (("vision", "language"), 4)):
        assert len(chosen(newer_checkpoint, "qwen2_5_vl", parts, ["gate_proj"])) == number


@pytest.mark.parametrize(
    ("parts", "targets", "told"),
    [
        (
            ("language",),
            ["q_proj", "v_porj"],
            r"names 'v_porj', but no linear layer of the language model has such a name\. Did you mean 'v_proj'\? Known: d",
        ),
        (
            ("language",),
            ["proj"],
            r"'proj', a layer of the vision tower.*\['language'\].*Add vision",
        ),
        (
            ("vision",),
            ["_proj"],
            r"no linear layer of the vision tower.*Known: fc1, fc2, proj, qkv",
        ),
        (
            ("language", "merger"),
            ["q_proj"],
            r"no linear layer of the merger.*Known: mlp\.0, mlp\.2\. Name one of them.*take merger out of model\.lora_on",
        ),
    ],
)
def test_names_that_stand_for_nothing(
    tiny_checkpoint: Path, parts: tuple[str, ...], targets: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        chosen(tiny_checkpoint, "qwen2_vl", parts, targets)


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("lm_head", "Linear lm_head"),
        ("embed_tokens", "Embedding model.language_model.embed_tokens"),
        ("norm", "model.language_model.norm"),
        ("input_layernorm", "model.language_model.layers.0.input_layernorm"),
        ("patch_embed.proj", "Conv3d model.visual.patch_embed.proj"),
        ("self_attn", "model.language_model.layers.0.self_attn"),
        ("layers.0.mlp", "model.language_model.layers.0.mlp"),
        ("visual", "model.visual"),
    ],
)
@pytest.mark.parametrize("parts", [("language",), EVERYWHERE])
def test_names_of_what_no_adapter_is_put_on(
    tiny_checkpoint: Path, parts: tuple[str, ...], target: str, module: str
) -> None:
    told = rf"names '{re.escape(target)}', the .*{re.escape(module)}, on which gpg_vl puts no adapters.*Known: "
    with pytest.raises(UserError, match=told):
        chosen(tiny_checkpoint, "qwen2_vl", parts, ["q_proj", target])


def test_a_text_model_has_no_vision_to_adapt(text_checkpoint: Path) -> None:
    told = r"lora_on names vision, merger, but qwen2 has no vision\. Set model\.lora_on to \[language\]"
    with pytest.raises(UserError, match=told):
        chosen(text_checkpoint, "qwen2", ("language", "vision", "merger"), None)


def test_the_adapters_of_a_config_that_says_nothing_are_what_they_were(
    tiny_checkpoint: Path,
) -> None:
    """Those that peft itself makes from the same seed on the seven projections of the language model, bit for bit."""
    from peft import LoraConfig, inject_adapter_in_model

    ours, theirs = load_model(str(tiny_checkpoint)), load_model(str(tiny_checkpoint))
    add_adapters(ours, families.get("qwen2_vl"), rank=4, alpha=32.0, seed=7)
    torch.manual_seed(7)
    settings = LoraConfig(
        r=4, lora_alpha=32, target_modules=rf".*language_model.*\.({'|'.join(TEXT)})"
    )
    inject_adapter_in_model(settings, theirs)
    a, b = adapter_parameters(ours), adapter_parameters(theirs)
    assert list(a) == list(b)
    assert len(a) == 2 * 14
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- what a config may say


def tree(**model: Any) -> dict[str, Any]:
    return {"path": "m", "lora_rank": 4, **model}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"lora_on": ["vision"], "lora_rank": 0}, "but lora_rank is 0.*Set lora_rank"),
        (
            {"lora_on": ["language", "vision"], "freeze": ["vision", "merger"]},
            "freeze names vision, on which lora_on puts adapters.*remove vision from freeze",
        ),
        ({"freeze": ["language"]}, "freeze names language, on which lora_on"),
        ({"lora_on": []}, "at least 1"),
        ({"lora_targets": []}, "at least 1"),
        ({"lora_on": ["head"]}, "lora_on"),
    ],
)
def test_what_cannot_be_meant_is_refused(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelConfig.model_validate(tree(**model))


def test_frozen_parts_without_adapters_may_be_named() -> None:
    model = tree(freeze=["vision", "merger"])
    assert ModelConfig.model_validate(model).lora_on == ("language",)


def config_of(tmp_path: Path, checkpoint: Path, **model: Any) -> Config:
    return load_config(write_config(tmp_path, checkpoint, model={"lora_rank": 2, **model}))


@pytest.mark.parametrize(
    ("parts", "cached", "uncached"),
    [
        (["language"], "kept", "frozen"),
        (["merger"], "frozen", "frozen"),
        (["language", "vision"], "trained", "trained"),
        (["vision"], "trained", "trained"),
    ],
)
def test_the_plan_knows_what_becomes_of_the_vision_tower(
    tiny_checkpoint: Path, tmp_path: Path, parts: list[str], cached: str, uncached: str
) -> None:
    family = families.get("qwen2_vl")
    for megabytes, expected in ((100, cached), (0, uncached)):
        config = config_of(tmp_path, tiny_checkpoint, lora_on=parts, vision_cache_mb=megabytes)
        assert vision_mode(config, family) == expected


def test_the_plan_counts_the_adapters_of_all_parts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """rank x (inputs + outputs) of each layer: hidden 64, MLP 96, one of two heads for keys; vision 96 wide, 288 inside."""
    family, rank = families.get("qwen2_vl"), 2
    text = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96)
    vision = (96 + 288) + (96 + 96) + 2 * (96 + 288)
    merger = (384 + 384) + (384 + 64)
    sizes = count_parameters(config_of(tmp_path, tiny_checkpoint, lora_on=[*EVERYWHERE]), family)
    assert sizes.trained == rank * (2 * text + 2 * vision + merger)
    assert sizes.trained_vision == rank * (2 * vision + merger)
    assert len(sizes.layers) == 4, "the blocks of a trained tower are units of their own"

    language = count_parameters(config_of(tmp_path, tiny_checkpoint), family)
    assert (language.trained, language.trained_vision) == (rank * 2 * text, 0)


def test_a_dry_run_says_where_the_adapters_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = {"lora_rank": 2, "lora_on": ["language", "vision"]}
    result = gpg_vl(
        "train", write_config(tmp_path, tiny_checkpoint, model=model), "--dry-run", "--device-gb=80"
    )
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.replace("│", " ").split())
    assert re.search(
        r"trained \([\d.]+ %, adapters of rank 2 on language and vision\), float32", said
    )
    assert said.count(" rank 2 yes ") == 2, "the table tries the same parts"


def test_parts_with_adapters_have_learning_rates(tiny_checkpoint: Path) -> None:
    policy = Model.load(tiny_checkpoint, device="cpu", prepare=adapters_everywhere).policy
    make = partial(make_adamw, betas=(0.9, 0.99), weight_decay=0.0)
    counts = {
        group["part"]: len(group["params"])
        for group in make(policy, parts=("vision", "merger")).param_groups
    }
    assert counts == {"": 2 * 14, "merger": 2 * 2, "vision": 2 * 8}

    policy = Model.load(tiny_checkpoint, device="cpu", prepare=adapters_on("language")).policy
    with pytest.raises(UserError, match=r"names vision, of which nothing is trained"):
        make(policy, parts=("vision",))


# ---- what they change


@pytest.mark.proves("LoRA")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "family",
    [
        "tiny_checkpoint",
        "newer_checkpoint",
        "deep_checkpoint",
        "tiled_checkpoint",
        "marked_checkpoint",
    ],
)
def test_once_per_group_has_the_gradient_of_rows_through_the_stock_model(
    family: str, checkpointing: bool, request: pytest.FixtureRequest
) -> None:
    """Adapters on all three parts, in float64: joined, and in chunks. The stock model has the same adapters."""
    checkpoint = request.getfixturevalue(family)
    prompts = PROMPTS[family](checkpoint)

    def prepare(model: Any, family: Any) -> None:
        adapters_everywhere(model, family)
        if checkpointing:
            checkpointed(model, family)

    stock = Model.load(checkpoint, device="cpu", prepare=adapters_everywhere)
    model = stock.policy.model.double()
    weight_K = weights_of(pack(prompts, COMPLETIONS)).double()
    rows = [
        naive_logp(model, stock.processing.tokens, prompt, completion)
        for prompt, members in zip(prompts, COMPLETIONS, strict=True)
        for completion in members
    ]
    loss = -(weight_K * torch.cat(rows)).sum()
    loss.backward()
    expected = gradients(stock.policy)
    for part, word in PLACES.get(
        family, (("vision", ".visual.blocks."), ("merger", ".visual.merger."))
    ):
        names = [n for n in adapter_parameters(model) if word in n]
        assert all(dict(model.named_parameters())[n].grad.norm() > 1e-6 for n in names), part

    for limit in (None, 1):
        policy = Model.load(checkpoint, device="cpu", prepare=prepare).policy.double().train()
        output = train(policy, pack(prompts, COMPLETIONS, tokens_per_pass=limit))
        assert float(output.loss) == pytest.approx(float(loss.detach()), rel=1e-9)
        assert relative(gradients(policy), expected) < 1e-6


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    from test_learner import make_groups

    return make_groups(tiny_checkpoint)


@pytest.mark.parametrize("parts", [("language", "merger", "vision"), ("vision",), ("merger",)])
def test_the_reference_sees_images_without_adapters(
    tiny_checkpoint: Path, groups: list[Group], parts: tuple[str, ...]
) -> None:
    """Before training and between its steps, with room to keep features, of which none may be."""
    packed = pack([groups[0].prompt], [[c.token_ids for c in groups[0].completions]])
    base = Model.load(tiny_checkpoint, device="cpu").policy
    expected = score(base, packed).logp_K
    load = partial(Model.load, tiny_checkpoint, device="cpu", vision_cache_mb=16)
    policy = load(prepare=adapters_on(*parts)).policy
    reference = make_reference(policy, torch.float32)
    algorithm, seen = observed(grpo(kl_beta=0.1))
    learner = make_learner(policy, algorithm, rate=2.0)

    moved = [score(policy, packed).logp_K]
    for step in range(2):
        learner.update(groups[:1], step=step)
        given = seen.batches[-1].reference_logp_K
        assert given is not None
        assert torch.allclose(given.float(), expected, atol=1e-5, rtol=0)
        assert torch.allclose(reference(Score(packed=packed)).logp_K, expected, atol=1e-5, rtol=0)
        moved.append(score(policy, packed).logp_K)
    for before, after in zip([expected, *moved], moved, strict=False):
        assert (before - after).abs().max() > 1e-4
    assert policy.images.kept is not None
    assert policy.images.kept.held_bytes == 0


def test_features_are_kept_while_only_the_language_model_has_adapters(
    tiny_checkpoint: Path, groups: list[Group]
) -> None:
    packed = pack([groups[0].prompt], [[c.token_ids for c in groups[0].completions]])
    load = partial(Model.load, tiny_checkpoint, device="cpu", vision_cache_mb=16)
    policy = load(prepare=adapters_on("language")).policy
    score(policy, packed)
    assert policy.images.kept is not None
    assert policy.images.kept.held_bytes > 0


def test_switched_off_is_not_frozen(tiny_checkpoint: Path) -> None:
    """What is trained tells processes which calls they have in common, also while the reference scores."""
    policy = Model.load(tiny_checkpoint, device="cpu", prepare=adapters_everywhere).policy
    flags = [p.requires_grad for p in policy.parameters()]
    with adapters_off(policy.model):
        assert [p.requires_grad for p in policy.parameters()] == flags
        assert policy.images.is_trained
    assert [p.requires_grad for p in policy.parameters()] == flags


@pytest.mark.parametrize("family", ["tiny_checkpoint", "newer_checkpoint"])
def test_the_merged_model_is_exact(family: str, request: pytest.FixtureRequest) -> None:
    """Adapters on all parts, of the size of the weights: float32 against the unmerged model in float64."""
    checkpoint = request.getfixturevalue(family)
    prompt = PROMPTS[family](checkpoint)[1]
    adapted = Model.load(checkpoint, device="cpu", prepare=adapters_everywhere)
    tokens = adapted.processing.tokens
    merged, base = load_model(str(checkpoint)), load_model(str(checkpoint))
    merged.load_state_dict(dict(merged_weights(adapted.policy.model)), strict=True)
    before, after = base.state_dict(), merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = chosen(checkpoint, FAMILY[family], EVERYWHERE, None)
    assert changed == {f"{name}.weight" for name in layers}

    with torch.no_grad():
        logp = partial(naive_logp, tokens=tokens, prompt=prompt, completion=(5, 9, 300, 7))
        of_base, of_merged = logp(base), logp(merged)
        unmerged = logp(adapted.policy.model)
        exact = logp(adapted.policy.model.double())
    assert (exact - of_base).abs().max() > 1e-2
    assert (exact - of_merged).abs().max() < 2e-6
    assert (exact - unmerged).abs().max() < 2e-6


# ---- what is written


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with adapters everywhere, and a divergence from the model without them."""
    folder = tmp_path_factory.mktemp("lora")
    result = gpg_vl("train", settings(folder, tiny_checkpoint))
    assert result.returncode == 0, result.stderr
    return folder


def settings(folder: Path, checkpoint: Path, **train: Any) -> Path:
    return write_config(
        folder,
        checkpoint,
        model={"lora_rank": 4, "lora_on": [*EVERYWHERE], "gradient_checkpointing": True},
        train={
            "steps": 3,
            "learning_rate": 1e-2,
            "learning_rates": {"vision": 2e-2, "merger": 2e-2},
            **train,
        },
        algorithm={"name": "grpo", "kl_beta": 0.1},
    )


def load_with_peft(checkpoint: Path, adapter: Path) -> tuple[nn.Module, Any]:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, adapter)
    return wrapped.get_base_model(), wrapped


def look(model: nn.Module, checkpoint: Path) -> Tensor:
    """Log-probs of an answer about a picture, by the stock forward of whatever model it is."""
    processing = Model.load(checkpoint, device="cpu").processing
    prompt = PROMPTS["tiny_checkpoint"](checkpoint)[0]
    with torch.no_grad():
        return naive_logp(model.eval(), processing.tokens, prompt, (5, 9, 300, 7))


def assert_three_ways_are_one(checkpoint: Path, base: Path) -> None:
    """peft on the base model, our policy with the adapters put back, the merged model: the same numbers on a picture."""
    by_peft, _ = load_with_peft(base, checkpoint / "adapter")
    add = partial(add_adapters, rank=4, alpha=32.0, parts=EVERYWHERE, seed=99)
    policy = Model.load(base, device="cpu", prepare=add).policy
    load_adapters(policy.model, checkpoint)
    prompt = PROMPTS["tiny_checkpoint"](base)[0]
    ours = score(policy, pack([prompt], [[(5, 9, 300, 7)]])).logp_K
    merged = look(load_model(str(checkpoint / "model")), base)

    assert (ours - look(load_model(str(base)), base)).abs().max() > 1e-3, "nothing was learnt"
    assert (ours - look(by_peft, base)).abs().max() < 1e-6
    assert (ours - merged).abs().max() < 1e-6


def test_peft_loads_the_adapters_of_a_checkpoint(run: Path, tiny_checkpoint: Path) -> None:
    assert_three_ways_are_one(last_checkpoint(run / "run"), tiny_checkpoint)
    assert all(row["logp_gap_max"] < 1e-4 for row in metrics(run / "run"))
    learnt = load_file(last_checkpoint(run / "run") / "adapter" / "adapter_model.safetensors")
    for word in (".visual.blocks.", ".visual.merger.", ".language_model."):
        ups = [t for name, t in learnt.items() if word in name and ".lora_B." in name]
        assert ups
        assert all(up.abs().max() > 1e-3 for up in ups), word


def test_the_folder_is_what_peft_itself_writes(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = last_checkpoint(run / "run") / "adapter"
    _, wrapped = load_with_peft(tiny_checkpoint, adapter)
    wrapped.save_pretrained(tmp_path)
    theirs = load_file(tmp_path / "adapter_model.safetensors")
    ours = load_file(adapter / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    written = json.loads((adapter / "adapter_config.json").read_text())
    by_peft = json.loads((tmp_path / "adapter_config.json").read_text())
    for config in (written, by_peft):
        config["target_modules"] = sorted(config["target_modules"])
    assert written == by_peft
    assert written["base_model_name_or_path"] == str(tiny_checkpoint)
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (4, 32, 0.0)


def test_peft_finds_the_base_model_alone(run: Path, tiny_checkpoint: Path) -> None:
    from peft import AutoPeftModel

    adapter = last_checkpoint(run / "run") / "adapter"
    alone = AutoPeftModel.from_pretrained(adapter, dtype=torch.float32).get_base_model()
    by_peft, _ = load_with_peft(tiny_checkpoint, adapter)
    assert type(alone) is type(by_peft)
    assert torch.equal(look(alone, tiny_checkpoint), look(by_peft, tiny_checkpoint))


def test_the_python_of_the_page_runs(run: Path, tiny_checkpoint: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "adapters.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    adapter = last_checkpoint(run / "run") / "adapter"
    for words, path in (
        ("runs/base", tiny_checkpoint),
        ("runs/mine/checkpoints/step-000300/adapter", adapter),
    ):
        assert f'"{words}"' in code
        code = code.replace(words, str(path))
    names: dict[str, Any] = {}
    exec(code, names)
    by_peft, _ = load_with_peft(tiny_checkpoint, adapter)
    found = look(names["model"].get_base_model(), tiny_checkpoint)
    assert torch.equal(found, look(by_peft, tiny_checkpoint))


def test_the_page_names_the_layers_that_there_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    for part in EVERYWHERE:
        ((_, older, *others),) = [row for row in rows if row[0].strip() == part]
        families_of_cells = (
            "tiny_checkpoint",
            "newer_checkpoint",
            "deep_checkpoint",
            "tiled_checkpoint",
            "marked_checkpoint",
        )
        for family, cell in zip(families_of_cells, (older, *others), strict=True):
            named = re.findall(r"`(.*?)`", older if cell.strip() == "the same" else cell)
            assert named == LAYERS[family][part], (family, part)


def test_processes_that_share_the_weights_write_the_same(
    run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Under fsdp2, where each holds parts of the adapters too; a resumed run writes what one that was never stopped does."""
    config = settings(tmp_path, tiny_checkpoint, sharding="fsdp2")
    for words in (["train.steps=2"], ["train.steps=3", "--resume"]):
        result = gpg_vl("train", config, *words, processes=2)
        assert result.returncode == 0, result.stderr
    checkpoint = last_checkpoint(tmp_path / "run")
    assert_three_ways_are_one(checkpoint, tiny_checkpoint)
    ours, theirs = metrics(tmp_path / "run")[0], metrics(run / "run")[0]
    for key in ("loss", "grad_norm", "kl"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    (ours_config, theirs_config) = (
        (last / "adapter" / "adapter_config.json").read_text()
        for last in (checkpoint, last_checkpoint(run / "run"))
    )
    assert ours_config == theirs_config


def test_what_was_saved_comes_back_bit_for_bit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def make(rank: int = 2, seed: int = 0) -> nn.Module:
        model = load_model(str(tiny_checkpoint))
        add = partial(add_adapters, model, families.get("qwen2_vl"), alpha=3.5, parts=EVERYWHERE)
        add(rank=rank, seed=seed)
        return model

    first = make()
    fill_adapters(first)
    weights = {name: p.detach() for name, p in adapter_parameters(first).items()}
    save_adapters(first, weights, tmp_path / "adapter", base="org/name", revision="v1")
    (tmp_path / "earlier").mkdir()
    save_file(weights, tmp_path / "earlier" / "adapters.safetensors")
    for folder in (tmp_path, tmp_path / "earlier"):
        second = make(seed=9)
        load_adapters(second, folder)
        here = adapter_parameters(second)
        assert all(torch.equal(here[name], tensor) for name, tensor in weights.items())

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["revision"]) == (3.5, "v1")
    assert config["base_model_name_or_path"] == "org/name"
    with pytest.raises(UserError, match="are not those of this config"):
        load_adapters(make(rank=3), tmp_path)
    third = load_model(str(tiny_checkpoint))
    add_adapters(third, families.get("qwen2_vl"), rank=2, alpha=3.5, seed=0)
    with pytest.raises(UserError, match="48 tensors are saved, 28 expected"):
        load_adapters(third, tmp_path)


def test_a_run_without_adapters_may_say_otherwise_what_they_would_be(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A run folder of an earlier version names the layers, where a config of today leaves them out."""
    config = load_config(write_config(tmp_path, tiny_checkpoint))
    file = open_folder(config, resume=False) / "config.yaml"
    written = file.read_text()
    assert "lora_targets: null" in written
    file.write_text(written.replace("lora_targets: null", "lora_targets: [q_proj, v_proj]"))
    open_folder(config, resume=True)

    file.write_text(file.read_text().replace("lora_rank: 0", "lora_rank: 2"))
    with pytest.raises(UserError, match=r"model\.lora_rank was 2, is 0"):
        open_folder(config, resume=True)


# ---- what is refused


def told(result: Any) -> str:
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_a_layer_that_is_not_there_is_refused_before_the_data_is_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = {"lora_rank": 4, "lora_targets": ["q_proj", "v_porj"]}
    config = write_config(tmp_path, tiny_checkpoint, model=model, data={"train": "nowhere.jsonl"})
    assert "Did you mean 'v_proj'? Known: down_proj" in told(gpg_vl("train", config))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_adapters_is_no_model(run: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """In a checkpoint the whole model stands beside it; of another folder it is said what to do with it."""
    adapter = last_checkpoint(run / "run") / "adapter"
    training = told(gpg_vl("train", write_config(tmp_path, adapter), "--dry-run"))
    assert f"The folder {adapter} has adapters (peft), not a model" in training
    assert (
        f"Give {adapter.parent / 'model'}, the same model with its adapters merged in" in training
    )

    data = str(run / "train.parquet")
    elsewhere = shutil.copytree(adapter, tmp_path / "elsewhere")
    evaluated = told(gpg_vl("eval", "cvbench", "--model", str(elsewhere), "--data", data))
    assert "has adapters (peft), not a model" in evaluated
    assert f"their base model, {tiny_checkpoint} (PeftModel.from_pretrained, merge" in evaluated


def test_a_scene_is_answered_by_the_merged_model(run: Path) -> None:
    """What the message says to give."""
    model = Model.load(last_checkpoint(run / "run") / "model", device="cpu")
    prompt = model.encoder().encode(scene_example(2))
    assert score(model.policy, pack([prompt], [[(5, 6)]])).logp_K.isfinite().all()
