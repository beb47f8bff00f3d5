"""The comparison with peers, without the peers: what both sides are given, what is measured, and what is printed.

TRL itself runs in an environment of its own (`make bench-peers`), whose first act is to compare the gradients.
"""

import json
import mmap
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from benchmarks import anchor, measure, meter, ours, parity_trl, peers, table
from gpg_vl.models import tiny
from gpg_vl.models.layout import pack
from gpg_vl.models.requests import Score

SMALL = anchor.Row(
    name="small", side=112, vocabulary=384, completion_tokens=3, group_size=4, prompts_per_step=2
)


# ---- what both sides are given


def test_the_model_has_the_size_it_is_said_to_have() -> None:
    """Counted by hand from the widths; a linear layer has in * out + out weights."""

    def linear(inputs: int, outputs: int, bias: bool = True) -> int:
        return inputs * outputs + outputs * bias

    text_layer = (
        linear(512, 512)
        + 2 * linear(512, 128)
        + linear(512, 512, False)
        + 3 * linear(512, 1536, False)
        + 2 * 512
    )
    vision_layer = (
        linear(320, 960) + linear(320, 320) + linear(320, 1280) + linear(1280, 320) + 4 * 320
    )
    merger = 2 * 320 + linear(1280, 1280) + linear(1280, 512)
    expected = (
        6 * text_layer
        + 512
        + 32_000 * 512
        + linear(3 * 2 * 14 * 14, 320, False)
        + 6 * vision_layer
        + merger
    )
    tokenizer = tiny.tiny_tokenizer([anchor.SHORT], anchor.TOKENIZER_SIZE)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(anchor.configuration(tokenizer, 32_000))
    assert sum(p.numel() for p in model.parameters()) == expected == 44_553_472


@pytest.mark.parametrize("name,tokens", [("a", 256), ("b", 256), ("c", 100), ("z", 256)])
def test_a_picture_keeps_its_tokens(tiny_checkpoint: Path, name: str, tokens: int) -> None:
    """448 pixels are 16 tokens of 28, 280 are 10; a processor that shrank them would change what is compared."""
    side = ours.Ours(tiny_checkpoint, anchor.ROWS[name], "shared")
    first, second = anchor.questions(anchor.ROWS[name], 2)
    prompts = [prompt for _, prompt in side.encode([first, second])]
    assert [int(p.image_mask_T.sum()) for p in prompts] == [tokens, tokens]
    assert prompts[0].input_ids_T.equal(prompts[1].input_ids_T), "equal texts, so that no side pads"
    assert not prompts[0].pixel_values_N.equal(prompts[1].pixel_values_N)


def test_rewards_are_one_on_even_members_and_flat_in_silent_groups() -> None:
    assert anchor.ROWS["a"].rewards(0) == anchor.ROWS["a"].rewards(1) == (1.0, 0.0) * 4
    silent = anchor.ROWS["z"]
    assert [silent.rewards(p) for p in range(4)] == [(1.0, 0.0) * 4, (0.0,) * 8] * 2


@given(
    group_size=st.integers(2, 9),
    length=st.integers(2, 40),
    silent=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_ragged_completions_hold_both_extremes(
    group_size: int, length: int, silent: int, seed: int
) -> None:
    row = anchor.Row(
        name="x",
        side=112,
        vocabulary=600,
        completion_tokens=length,
        group_size=group_size,
        silent_groups=silent,
    )
    given = anchor.ragged(row, seed)
    assert len(given.tokens_P_G_T) == len(given.rewards_P_G) == 2
    for group in given.tokens_P_G_T:
        lengths = [len(c) for c in group]
        assert len(group) == group_size
        assert (min(lengths), max(lengths)) == (1, length)
        assert all(anchor.TOKENIZER_SIZE <= t < 600 for c in group for t in c)
    assert sum(max(r) > min(r) for r in given.rewards_P_G) == 2 - silent
    assert given == anchor.ragged(row, seed)


# ---- our side


@pytest.fixture(scope="module")
def works(tiny_checkpoint: Path) -> dict[str, meter.Work]:
    """What one step of each layout did on a tiny model."""
    found = {}
    for layout in ours.LAYOUTS:
        measured = ours.run(
            ours.Ours(tiny_checkpoint, SMALL, layout), anchor.questions(SMALL, 4), steps=1, warmup=1
        )
        (step,) = measured.steps
        assert 0 < step.rollout_seconds < step.seconds
        assert step.cpu_seconds > 0
        found[layout] = step.work
    return found


def test_a_group_computes_its_picture_once(works: dict[str, meter.Work]) -> None:
    """Two pictures of 8 x 8 patches; one row per completion computes each of them for every member."""
    shared, naive = works["shared"], works["naive"]
    assert (shared.rollout_patches, shared.training_patches) == (128, 128)
    assert (naive.rollout_patches, naive.training_patches) == (4 * 128, 4 * 128)
    assert naive.prefilled_tokens == 4 * shared.prefilled_tokens
    reused = works["reused"]
    assert (reused.rollout_patches, reused.training_patches) == (0, 128), (
        "once in the whole step, with gradient"
    )


def test_a_group_computes_its_prompt_once(
    works: dict[str, meter.Work], tiny_checkpoint: Path
) -> None:
    ((_, prompt),) = ours.Ours(tiny_checkpoint, SMALL, "shared").encode(anchor.questions(SMALL, 1))
    shared, naive = works["shared"], works["naive"]
    assert shared.prefilled_tokens == 2 * prompt.length
    # the last token of a completion predicts nothing: whether it goes through the model is the model's affair
    assert 2 * (prompt.length + 4 * 2) <= shared.training_tokens <= 2 * (prompt.length + 4 * 3)
    assert 2 * 4 * (prompt.length + 2) <= naive.training_tokens <= 2 * 4 * (prompt.length + 3)
    assert naive.decoded_tokens == shared.decoded_tokens == 2 * 4 * 2, (
        "three tokens, the first from the prompt"
    )


def test_completions_have_the_forced_length_and_no_forbidden_id(tiny_checkpoint: Path) -> None:
    """Over many tokens of a small vocabulary an end would come up, if it could."""
    row = replace(SMALL, completion_tokens=200)
    for layout in ours.LAYOUTS:
        side = ours.Ours(tiny_checkpoint, row, layout)
        answers = side.sample(
            [prompt for _, prompt in side.encode(anchor.questions(row, 2))], draw=0
        )
        tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
        names = (
            "<|im_end|>",
            "<|endoftext|>",
            "<|image_pad|>",
            "<|video_pad|>",
            "<|vision_start|>",
            "<|vision_end|>",
        )
        barred = {tokenizer.convert_tokens_to_ids(name) for name in names}
        assert len(barred) == 6
        assert [[len(c.token_ids) for c in group] for group in answers] == [[200] * 4] * 2
        assert not barred & {t for group in answers for c in group for t in c.token_ids}
        assert len({c.token_ids for group in answers for c in group}) == 8, (
            "every completion is drawn by itself"
        )


GIVEN = anchor.GivenStep(
    tokens_P_G_T=[[[5, 9, 300], [11], [12, 13], [7]], [[40, 41], [50], [60, 61, 62], [70, 71]]],
    rewards_P_G=[[1.0, 0.0, 0.2, 0.4], [0.0, 0.0, 1.0, 0.3]],
)


@pytest.mark.parametrize("name", ["gpg", "gpg by sequence", "grpo"])
def test_all_layouts_have_one_gradient(tiny_checkpoint: Path, name: str) -> None:
    asked = anchor.questions(SMALL, 2)
    loss, given, reference = parity_trl.LOSSES[name], GIVEN, None
    if loss.ours.needs:
        old = parity_trl.old_logps(tiny_checkpoint, SMALL, asked, given)
        given = replace(given, old_logps_P_G_T=old)
        reference = parity_trl.noisy_reference(tiny_checkpoint)

    def gradient(layout: str, given: anchor.GivenStep) -> dict[str, torch.Tensor]:
        side = ours.Ours(tiny_checkpoint, SMALL, layout, masked=False)
        return side.gradient(asked, given, loss.ours, reference)

    found = {layout: gradient(layout, given) for layout in ours.LAYOUTS}
    assert parity_trl.relative_error(found["shared"], found["naive"]) < 1e-5
    assert parity_trl.relative_error(found["one_group"], found["naive"]) < 1e-5
    assert 0 < parity_trl.relative_error(found["reused"], found["naive"]) < 1e-5

    other_rewards = gradient("shared", replace(given, rewards_P_G=GIVEN.rewards_P_G[::-1]))
    assert parity_trl.relative_error(other_rewards, found["naive"]) > 1e-2, (
        "another step has another gradient"
    )


def test_a_gradient_leaves_the_weights_as_they_are(tiny_checkpoint: Path) -> None:
    side = ours.Ours(tiny_checkpoint, SMALL, "shared")
    before = {name: p.clone() for name, p in side.policy.named_parameters()}
    side.gradient(anchor.questions(SMALL, 2), GIVEN, parity_trl.LOSSES["gpg"].ours)
    assert all(before[name].equal(p) for name, p in side.policy.named_parameters())
    assert all(p.grad is None for p in side.policy.parameters())


def test_a_step_moves_the_weights(tiny_checkpoint: Path) -> None:
    """By the rate of both sides, in the first step of AdamW, where there is a gradient."""
    side = ours.Ours(tiny_checkpoint, SMALL, "shared")
    before = {name: p.clone() for name, p in side.policy.named_parameters()}
    ours.run(side, anchor.questions(SMALL, 2), steps=1, warmup=0)
    moved = [(before[name] - p).abs().max().item() for name, p in side.policy.named_parameters()]
    assert all(0 < distance < 1.5e-6 for distance in moved)


@pytest.mark.parametrize(
    "layout,passes", [("shared", 1), ("reused", 1), ("one_group", 2), ("naive", 2)]
)
def test_a_layout_says_how_many_passes_a_step_has(
    tiny_checkpoint: Path, layout: str, passes: int
) -> None:
    side = ours.Ours(tiny_checkpoint, SMALL, layout)
    asked: list[object] = []
    side.policy.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    ours.run(side, anchor.questions(SMALL, 2), steps=1, warmup=0)
    assert sum(isinstance(request, Score) for request in asked) == passes


def test_a_silent_group_is_not_trained_on(tiny_checkpoint: Path) -> None:
    row = replace(SMALL, silent_groups=1)
    (step,) = ours.run(
        ours.Ours(tiny_checkpoint, row, "shared"), anchor.questions(row, 2), steps=1, warmup=0
    ).steps
    assert (step.work.rollout_patches, step.work.training_patches) == (128, 64)


# ---- what is measured


class Doubling(nn.Module):
    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return 2 * inputs_embeds


def test_the_meter_tells_rollout_from_training_and_prefill_from_decoding() -> None:
    vision, text = Doubling(), Doubling()
    watch = meter.Meter(vision, text, warmup=1)
    watch.start()
    for _ in range(3):
        with torch.no_grad():
            vision(torch.zeros(12, 5))
            text(inputs_embeds=torch.zeros(2, 7, 5))
            text(inputs_embeds=torch.zeros(6, 1, 5))
            text(inputs_embeds=torch.zeros(6, 1, 5))
        watch.rollout_took(0.25)
        time.sleep(0.01)
        vision(torch.zeros(3, 5))
        text(torch.zeros(4, 5, 5))
        watch.step_ended()
    expected = meter.Work(
        rollout_patches=12,
        prefilled_tokens=14,
        decoded_tokens=12,
        training_patches=3,
        training_tokens=20,
    )
    assert [step.work for step in watch.steps] == [expected, expected], (
        "the warm-up is not among them"
    )
    assert all(step.rollout_seconds == 0.25 for step in watch.steps)
    assert all(0.01 <= step.seconds < 5 for step in watch.steps)
    assert json.loads(json.dumps(watch.report()))["steps"][0]["work"]["decoded_tokens"] == 12


def test_peak_memory_is_that_since_the_reset() -> None:
    """64 MB are touched and given back before the reset, 32 MB after it."""

    def touch(megabytes: int) -> None:
        with mmap.mmap(
            -1, megabytes * 2**20
        ) as pages:  # an allocator may give out again what was given back
            for page in range(0, len(pages), mmap.PAGESIZE):
                pages[page] = 1

    touch(64)
    before = meter.reset_peak()
    touch(32)
    rise = meter.read_status("VmHWM") - before
    assert 24 * 2**20 < rise < 60 * 2**20


@pytest.mark.parametrize(
    "numbers,low,middle,high",
    [
        ([1.0, 2.0, 3.0, 4.0], 1.75, 2.5, 3.25),
        ([3.0, 1.0, 2.0], 1.5, 2.0, 2.5),
        ([7.0], 7.0, 7.0, 7.0),
    ],
)
def test_quartiles_by_hand(numbers: list[float], low: float, middle: float, high: float) -> None:
    assert meter.spread(numbers) == meter.Spread(
        median=middle, low=low, high=high, number=len(numbers)
    )


def test_no_step_has_no_median() -> None:
    with pytest.raises(ValueError, match="measure at least one"):
        meter.spread([])


# ---- equality first


def test_the_error_of_a_gradient_by_hand() -> None:
    """|(3, 0) - (0, 4)| = 5 over |(0, 4)| = 4, wherever the cut between two weights is."""
    assert (
        parity_trl.relative_error({"a": torch.tensor([3.0, 0.0])}, {"a": torch.tensor([0.0, 4.0])})
        == 1.25
    )
    mine, theirs = (
        {"a": torch.tensor([x]), "b": torch.tensor([y])} for x, y in ((3.0, 0.0), (0.0, 4.0))
    )
    assert parity_trl.relative_error(mine, theirs) == 1.25
    with pytest.raises(ValueError, match="Only one side has a gradient of b"):
        parity_trl.relative_error({"a": torch.ones(1)}, theirs)
    with pytest.raises(ValueError, match="zero everywhere"):
        parity_trl.relative_error({"a": torch.ones(1)}, {"a": torch.zeros(1)})


@pytest.mark.parametrize("error,code", [(9e-6, 0), (2e-5, 1), (float("nan"), 1)])
def test_a_gradient_beyond_the_gate_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float, code: int
) -> None:
    def compare(
        row: anchor.Row, folder: Path, loss: parity_trl.Loss, systems: list[str]
    ) -> list[dict[str, Any]]:
        return [parity(row.name, s, loss) | {"error": error} for s in systems]

    monkeypatch.setattr(parity_trl, "compare", compare)
    monkeypatch.setattr(
        "sys.argv", ["parity", "--rows", "a,c", "--out", str(tmp_path / "out.json")]
    )
    assert parity_trl.main() == code
    written = [
        (p["row"], p["system"], p["algorithm"], p["aggregation"])
        for p in json.loads((tmp_path / "out.json").read_text())
    ]
    mine = ["shared", "reused", "one_group", "naive"]
    assert written == [
        *(("a", system, "gpg", "token") for system in [*mine, "prefix_grouper"]),
        ("a", "shared", "gpg", "sequence"),
        *(("a", system, "grpo", "sequence") for system in mine),
        ("c", "shared", "gpg", "token"),
    ]


def test_a_silent_group_is_compared_under_grpo_too() -> None:
    """Its divergence has a gradient, which GPG's loss has not."""
    assert parity_trl.plan(["b", "z"], ["shared", "prefix_grouper"]) == [
        ("b", "gpg", ["shared", "prefix_grouper"]),
        ("b", "gpg by sequence", ["shared"]),
        ("b", "grpo", ["shared"]),
        ("z", "gpg", ["shared"]),
        ("z", "grpo", ["shared"]),
    ]


def test_old_log_probs_lie_on_both_sides_of_the_clip(tiny_checkpoint: Path) -> None:
    """Against the log-probs of the naive layout, token after token."""
    asked = anchor.questions(SMALL, 2)
    old = parity_trl.old_logps(tiny_checkpoint, SMALL, asked, GIVEN)
    side = ours.Ours(tiny_checkpoint, SMALL, "naive", masked=False)
    prompts = [prompt for _, prompt in side.encode(asked)]
    with torch.no_grad():
        packed = pack(prompts, GIVEN.tokens_P_G_T, shared_prefix=False)
        logp_K = side.policy(Score(packed=packed)).logp_K
    lengths = [[len(tokens) for tokens in group] for group in old]
    assert lengths == [[len(tokens) for tokens in group] for group in GIVEN.tokens_P_G_T]
    ratios_K = logp_K - torch.tensor([logp for group in old for row in group for logp in row])
    expected = torch.tensor([-0.5, -0.1, 0.1, 0.5] * 4)[: len(ratios_K)]
    assert torch.allclose(ratios_K, expected, atol=1e-4)


def test_the_noise_is_the_same_on_both_sides(tiny_checkpoint: Path) -> None:
    first, second = (ours.load(tiny_checkpoint, masked=False).policy.model for _ in range(2))
    others = dict(second.named_parameters())
    parity_trl.add_noise(first)
    assert not any(p.equal(others[name]) for name, p in first.named_parameters())
    parity_trl.add_noise(second)
    assert all(p.equal(others[name]) for name, p in first.named_parameters())


def test_a_step_that_no_clip_cuts_proves_nothing() -> None:
    enough = {"clip_ratio/low_mean": 0.2, "clip_ratio/high_mean": 0.1, "kl": 0.07}
    parity_trl._require_every_branch(enough)
    for changed in ({"clip_ratio/low_mean": 0.0}, {"clip_ratio/high_mean": 0.0}, {"kl": 0.0}):
        with pytest.raises(ValueError, match="does not say enough"):
            parity_trl._require_every_branch({**enough, **changed})


def test_without_equality_nothing_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def failing(module: str, *options: object, threads: int) -> object:
        asked.append(module)
        raise peers.BenchmarkError("the gradients differ")

    monkeypatch.setattr(peers, "run_module", failing)
    with pytest.raises(peers.BenchmarkError, match="the gradients differ"):
        peers.compare(settled("--out", str(tmp_path / "results")))
    assert asked == ["benchmarks.parity_trl"]
    assert not (tmp_path / "results").exists()


def test_a_file_cannot_be_the_folder_of_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("")
    monkeypatch.setattr(
        peers,
        "compare",
        lambda _: pytest.fail("nothing may be measured for a place that cannot be written"),
    )
    monkeypatch.setattr("sys.argv", ["peers", "--out", str(tmp_path / "x")])
    assert peers.main() == 2
    assert "is a file. Name a folder" in capsys.readouterr().err


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "SCRATCH", tmp_path)
    with pytest.raises(
        peers.BenchmarkError, match=r"(?s)json.tool --nonsense.* ended with 2:.*argument infile"
    ):
        peers.run_module("json.tool", "--nonsense", threads=1)


# ---- arguments and order


def settled(*words: str) -> Namespace:
    return peers.settle(peers.parser().parse_args(words))


def test_what_is_given_wins_over_what_is_quick() -> None:
    full, quick = settled(), settled("--quick")
    assert (full.rows, full.rounds, full.steps, full.warmup, full.micro_batch) == (
        ["a", "b", "c"],
        2,
        None,
        1,
        None,
    )
    assert (quick.rows, quick.rounds, quick.steps, quick.warmup, quick.micro_batch) == (
        ["b"],
        1,
        1,
        0,
        8,
    )
    assert full.out == Path("benchmarks/results")
    assert quick.out != full.out, "a quick run must not replace published numbers"
    mixed = settled("--quick", "--rows", "a,z", "--steps", "4", "--systems", "trl,shared")
    assert (mixed.rows, mixed.steps, mixed.rounds, mixed.systems) == (
        ["a", "z"],
        4,
        1,
        ["trl", "shared"],
    )


@pytest.mark.parametrize(
    "words,said",
    [
        (["--rows", "a,q"], "'q' is none of a, b, c, z"),
        (["--systems", "verl"], "'verl' is none of trl, shared"),
        (["--micro-batch", "3"], "invalid choice: 3"),
    ],
)
def test_an_unknown_name_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        settled(*words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_sides_take_turns() -> None:
    order = peers.turns(["trl", "shared", "naive", "prefix_grouper"], 2)
    assert order == [
        (0, "trl"),
        (0, "shared"),
        (0, "naive"),
        (0, "prefix_grouper"),
        (1, "trl"),
        (1, "shared"),
    ]


def test_every_micro_batch_divides_the_step_and_the_fastest_wins() -> None:
    assert all(
        row.completions % size == 0 for row in anchor.ROWS.values() for size in peers.MICRO_BATCHES
    )
    runs = [
        {"steps": [{"seconds": s}], "settings": {"micro_batch": n}}
        for n, s in ((1, 9.0), (4, 7.0), (16, 8.0))
    ]
    assert peers.best(runs) == 4


# ---- from sampling to the table, with made-up times


def parity(row: str, system: str, loss: parity_trl.Loss) -> dict[str, Any]:
    return {
        "row": row,
        "system": system,
        "algorithm": loss.algorithm,
        "aggregation": loss.aggregation,
        "trl": loss.trl["loss_type"],
        "error": 7e-7,
        "error_vision": 9e-7,
    }


def steps(*pairs: tuple[float, float], patches: int, tokens: int) -> list[dict[str, Any]]:
    """Steps of (seconds, rollout seconds)."""
    work = meter.Work(
        rollout_patches=patches,
        training_patches=patches,
        prefilled_tokens=tokens,
        decoded_tokens=1008,
        training_tokens=tokens,
    )
    counted = {name: getattr(work, name) for name in table.WORK}
    return [
        {
            "seconds": s,
            "rollout_seconds": r,
            "training_seconds": s - r,
            "cpu_seconds": 2 * s,
            "work": counted,
        }
        for s, r in pairs
    ]


def result(**changes: Any) -> dict[str, Any]:
    def run(system: str, peak: float, made: list[dict[str, Any]]) -> dict[str, Any]:
        return {"row": "a", "system": system, "rss_peak": int(peak * 1e9), "steps": made}

    fields = {k: getattr(anchor.ROWS["a"], k) for k in anchor.Row.__slots__ if k != "text"}
    return {
        "date": "2026-11-01",
        "complete": True,
        "machine": {"processor": "A Processor", "threads": 2, "memory_gb": 16.0},
        "versions": {"trl": "1.16.0", "prefix_grouper": "0.0.1.post1", "torch": "2.13.0"},
        "settings": {"warmup": 1, "checkpointing": False, "threads": 2},
        "rows": [fields | {"prompt_tokens": 305, "image_tokens": 256}],
        "parity": [
            parity(row, "shared", parity_trl.LOSSES[loss])
            for row, loss in (("a", "gpg"), ("a", "grpo"), ("b", "gpg"))
        ],
        "sweep": [
            run("trl", 4, steps((30.0, 1.0), patches=1, tokens=1))
            | {"settings": {"micro_batch": 2}}
        ],
        "micro_batch": 2,
        "runs": [
            run("trl", 11, steps((39.0, 10.0), (41.0, 10.0), patches=16384, tokens=5904)),
            run("shared", 2, steps((9.0, 4.0), (10.0, 5.0), patches=2048, tokens=1634)),
            run("trl", 12, steps((40.0, 10.0), patches=16384, tokens=5904)),
            run("shared", 2.5, steps((11.0, 6.0), patches=2048, tokens=1634)),
            run("prefix_grouper", 3, steps((6.0, 1.0), patches=2048, tokens=1634)),
        ],
        **changes,
    }


def test_the_table_pools_rounds_and_states_the_factors() -> None:
    text = table.render(result())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = {
        row[0].removeprefix("| "): [cell.removesuffix(" |") for cell in row[1:]] for row in rows
    }
    assert cells["TRL 1.16.0 `GRPOTrainer`"] == (
        [
            "40.00 [39.50, 40.50]",
            "10.00",
            "30.00",
            "80.0",
            "12.00",
            "16,384",
            "16,384",
            "5,904",
            "1,008",
            "5,904",
        ]
    )
    assert cells["gpg_vl"] == (
        [
            "10.00 [9.50, 10.50]",
            "5.00",
            "5.00",
            "20.0",
            "2.50",
            "2,048",
            "2,048",
            "1,634",
            "1,008",
            "1,634",
        ]
    )
    peer = cells["PrefixGrouper 0.0.1.post1, training only"]
    assert peer == ["-", "-", "5.00 [5.00, 5.00]", "12.0", "3.00", "-", "2,048", "-", "-", "1,634"]
    assert (
        "TRL 1.16.0 `GRPOTrainer` takes 4.00x the seconds per step (rollout 2.00x, training 6.00x), 4.00x the CPU seconds "
        "and 4.80x the peak memory of gpg_vl." in text
    )
    assert (
        "PrefixGrouper 0.0.1.post1, training only takes 1.00x the training seconds of gpg_vl."
        in text
    )
    equal = [line for line in text.splitlines() if line.startswith("- Gradient of")]
    assert equal == [
        f"- Gradient of gpg_vl ({what}): relative error 7.0e-07, vision tower 9.0e-07."
        for what in (
            "gpg, token mean) against TRL's (`dapo`",
            "grpo, sequence mean) against TRL's (`grpo`",
        )
    ], "the equality of this case, beside its seconds"
    assert "| 2 | 30.0 | 60.0 | 4.00 |" in text
    assert "Measured steps: TRL 1.16.0 `GRPOTrainer` 3, gpg_vl 3, PrefixGrouper" in text
    assert "Unfinished" not in text
    assert "tok/s" not in text


def test_the_table_says_what_it_lacks() -> None:
    assert "**Unfinished: not every run has been made.**" in table.render(result(complete=False))
    assert "was given, not searched for: 8 completions" in table.render(
        result(sweep=[], micro_batch=8)
    )
    alone = table.render(result(sweep=[], micro_batch=None, runs=result()["runs"][1:2]))
    assert "searched for" not in alone
    assert "best micro-batch" not in alone
    assert "takes" not in alone
    silent = result()
    silent["rows"][0]["silent_groups"] = 1
    assert "2 prompts per step, 1 of them without signal" in table.render(silent)


def test_results_are_written_as_json_and_as_the_table_of_it(tmp_path: Path) -> None:
    peers.write(result(), tmp_path / "results")
    stored = json.loads((tmp_path / "results" / "peers_cpu.json").read_text())
    assert stored == result()
    assert (tmp_path / "results" / "peers_cpu.md").read_text() == table.render(stored)


def test_one_process_measures_one_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """The command that the comparison starts, on a tiny model: its JSON is what the table reads."""
    monkeypatch.setitem(anchor.ROWS, "a", replace(SMALL, name="a"))
    monkeypatch.setattr(anchor, "checkpoint", lambda folder, vocabulary: tiny_checkpoint)
    out = tmp_path / "out.json"
    command = [
        "measure",
        "--system",
        "shared",
        "--row",
        "a",
        "--steps",
        "2",
        "--warmup",
        "0",
        "--out",
        str(out),
    ]
    monkeypatch.setattr("sys.argv", command)
    assert measure.main() == 0
    found = json.loads(out.read_text())
    assert (found["system"], found["row"], len(found["steps"])) == ("shared", "a", 2)
    assert found["rss_peak"] >= found["rss_before"] > 0
    assert "Measured steps: gpg_vl 2." in table.render(result(runs=[found]))
