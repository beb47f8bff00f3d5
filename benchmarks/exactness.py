"""Is the shared computation the naive one? A table of errors against the stock model, with the gates they must pass.

    python -m benchmarks.exactness            (make exactness)

For every family and precision: one forward and backward pass of the stock transformers model per completion, vision tower
trained, ragged completions, against each way of computing the group at once. The same for the losses of GRPO and of
supervised fine-tuning through a whole update of the learner, and, without a model, through the head alone. Also: sibling
isolation, and the rollout's log-probs against teacher forcing. Ends with 1 if a gate is missed. Writes
benchmarks/results/exactness.json and .md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest.mock import patch

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.findings import Finding, markdown, show
from benchmarks.learner import gradient
from benchmarks.losses import ALGORITHMS, LOSSES, GivenGroup, make_objective
from gpg_vl.algorithms import gpg, linear
from gpg_vl.model import Model
from gpg_vl.models import head, tiny
from gpg_vl.models.attention import Kernel
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing, load_model, load_processing, quiet
from gpg_vl.models.phases import forward_backward
from gpg_vl.models.reference import Reference
from gpg_vl.models.requests import Score, ScoreOutput
from gpg_vl.quickstart import scenes
from gpg_vl.rollout.engine import EngineOptions, RolloutRequest
from gpg_vl.rollout.sampling import Sampling
from gpg_vl.training.micro_batch import Layout
from gpg_vl.types import Completion, Example, Group, Prompt
from tests.oracle import naive_logp

if TYPE_CHECKING:  # at run time gpg_vl.models decides when transformers may be imported
    from transformers import PreTrainedModel

RESULTS = Path(__file__).parent / "results"
TITLE = "# Errors of the shared gradient against the stock model: `make exactness`"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a group is computed."""

    kernel: Kernel = "split"
    shared: bool = True
    chunks: bool = False
    checkpointing: bool = False

    def limit(self, prompt: Prompt) -> int:
        """Tokens of a pass: all there are, or so few that the group falls apart."""
        return prompt.length + 10 if self.chunks else 2**20


WAYS = {
    "naive layout": Way(shared=False),
    "dense": Way(kernel="dense"),
    "split": Way(),
    "split, two phases": Way(chunks=True),
    "split, two phases, checkpointing": Way(chunks=True, checkpointing=True),
}
LOSS_WAYS = {"naive layout": Way(shared=False), "joined": Way(), "in chunks": Way(chunks=True)}
GATES = {"float64": 1e-6, "float32": 1e-5}
"""Largest relative error of the whole gradient. bfloat16: twice the error of the naive layout, at most HALF_GATE."""
HALF_GATE = 0.05
LOGP_GATES = {"float64": 1e-12, "float32": 1e-4}
HEAD_GATE = 1e-12
HEAD_TILES = {"one tile": 1000, "tiles of 5 tokens": 5}
VOCABULARY = 384


# ---- what is computed


def checkpoint(folder: Path, model_type: str) -> Path:
    corpus = [row["prompt"] for row in scenes.rows(0, 40)]
    tokenizer = tiny.tiny_tokenizer(corpus, VOCABULARY)
    config = tiny.tiny_config(tokenizer, VOCABULARY, model_type=model_type)
    tiny.save_checkpoint(
        tiny.tiny_model(config, seed=0),
        tiny.tiny_processor(tokenizer, model_type=model_type),
        folder,
    )
    return folder


@cache
def _processing(folder: Path) -> Processing:
    return load_processing(str(folder))


def load(folder: Path, dtype: torch.dtype = torch.float32, way: Way = WAYS["split"]) -> Model:
    """The model of a checkpoint in a precision; bfloat16 is float32 under autocast, as in a run."""

    def prepare(model: "PreTrainedModel", family: object) -> None:
        if way.checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    half = dtype == torch.bfloat16
    model = Model.load(
        folder,
        dtype="bfloat16" if half else "float32",
        device="cpu",
        attention=way.kernel,
        processing=_processing(folder),
        prepare=prepare,
    )
    model.policy.to(torch.float32 if half else dtype).train()
    return model


def make_prompt(model: Model, images: int) -> Prompt:
    pictures = []
    for size in ((140, 84), (56, 112))[:images]:
        pictures.append(scenes.png(Image.effect_noise(size, 90).convert("RGB")))
    example = Example(
        id="noise",
        images=tuple(pictures),
        prompt="<image>" * images + "Which ball is nearer?",
        answer="left",
    )
    return model.encoder().encode(example)


def completions(group_size: int) -> list[tuple[int, ...]]:
    """Ragged, from one token to nineteen."""
    generator = torch.Generator().manual_seed(group_size)
    lengths = [1, 19, *torch.randint(2, 19, (group_size - 2,), generator=generator).tolist()]
    return [tuple(torch.randint(0, 370, (n,), generator=generator).tolist()) for n in lengths]


def stock_model(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model of transformers with its weights in a precision."""
    model = cast(torch.nn.Module, load_model(str(folder)))  # its own `to` is typed without self
    return model.to(dtype)


def stock_logps(
    model: torch.nn.Module, folder: Path, prompt: Prompt, group: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """log pi of each completion, with its graph, in a forward pass of its own over all logits."""
    tokens = _processing(folder).tokens
    return [naive_logp(model, tokens, prompt, completion) for completion in group]


def flat_gradient(module: torch.nn.Module) -> Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([p.flatten() for p in parts]).double()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def gradient_gate(precision: str, floor: float) -> float:
    """floor: the error of the naive layout, which is that of the precision."""
    return GATES.get(precision, min(2 * floor, HALF_GATE))


# ---- log-probs and gradients of a loss that is linear in them


def by_stock_model(
    folder: Path, prompt: Prompt, group: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-probs and gradient, every completion in a forward pass of its own."""
    model = stock_model(folder, dtype)
    logps = stock_logps(model, folder, prompt, group)
    weights = torch.linspace(-1.3, 0.9, len(group)).to(dtype)
    (-sum(w * logp.sum() for w, logp in zip(weights, logps, strict=True))).backward()
    return torch.cat(logps).detach(), flat_gradient(model)


def by_us(
    folder: Path, prompt: Prompt, group: Sequence[tuple[int, ...]], dtype: torch.dtype, way: Way
) -> tuple[Tensor, Tensor]:
    model = load(folder, dtype, way)
    packed = pack([prompt], [group], shared_prefix=way.shared, tokens_per_pass=way.limit(prompt))
    assert (len(packed.chunks) > 1) == way.chunks

    weights = torch.linspace(-1.3, 0.9, len(group)).repeat_interleave(torch.tensor(packed.counts))
    objective = head.Objective(linear.Inputs(weights), gpg.gpg().token_loss)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cpu", model.autocast, enabled=model.autocast is not None)

    output = forward_backward(
        model.policy,
        packed,
        objective,
        backward=lambda loss, is_last: loss.backward(),
        autocast=autocast,
    )
    return output.logp_K, flat_gradient(model.policy.model)


def gradients(
    folder: Path, family: str, dtype: torch.dtype, group_size: int, images: int
) -> list[Finding]:
    prompt, group = make_prompt(load(folder), images), completions(group_size)
    precision = str(dtype).removeprefix("torch.")
    finding = partial(
        Finding, family=family, precision=precision, group_size=group_size, images=images
    )
    exact = torch.float64 if dtype == torch.bfloat16 else dtype
    logp_K, theirs = by_stock_model(folder, prompt, group, exact)

    findings: list[Finding] = []
    floor = 0.0
    for name, way in WAYS.items():
        ours_K, ours = by_us(folder, prompt, group, dtype, way)
        error = relative(ours, theirs)
        if name == "naive layout":
            floor = error
        gate = gradient_gate(precision, floor)
        findings.append(finding(what=f"gradient, {name}", error=error, gate=gate))

        if precision in LOGP_GATES:
            gap = float((ours_K - logp_K).abs().max())
            gate = LOGP_GATES[precision]
            findings.append(finding(what=f"log-prob, {name}", error=gap, gate=gate))
    return findings


# ---- gradients of the losses of algorithms


def losses(
    folder: Path, family: str, dtype: torch.dtype, group_size: int, images: int
) -> list[Finding]:
    """An update of the learner, unclipped, against autograd over the logits of the stock model."""
    prompt, group = make_prompt(load(folder), images), completions(group_size)
    precision = str(dtype).removeprefix("torch.")
    finding = partial(
        Finding, family=family, precision=precision, group_size=group_size, images=images
    )
    stock = stock_model(folder, torch.float64 if dtype == torch.bfloat16 else dtype)

    findings: list[Finding] = []
    for algorithm in ALGORITHMS:
        stock.zero_grad(set_to_none=True)
        logps = stock_logps(stock, folder, prompt, group)
        given = GivenGroup.around(logps)
        LOSSES[algorithm](logps, given).backward()
        theirs = flat_gradient(stock)

        floor = 0.0
        for name, way in LOSS_WAYS.items():
            ours = by_learner(folder, prompt, group, given, algorithm, dtype, way)
            error = relative(ours, theirs)
            if name == "naive layout":
                floor = error
            gate = gradient_gate(precision, floor)
            what = f"gradient of {algorithm}, {name}"
            findings.append(finding(what=what, error=error, gate=gate))
    return findings


def by_learner(
    folder: Path,
    prompt: Prompt,
    group: Sequence[tuple[int, ...]],
    given: GivenGroup,
    algorithm: str,
    dtype: torch.dtype,
    way: Way,
) -> Tensor:
    model = load(folder, dtype, way)
    answers = []
    for tokens in group:
        answer = Completion(token_ids=tokens, logprobs=(), text="", finish_reason="length")
        answers.append(answer)
    scored = Group(
        example=Example(id="noise", prompt="", answer=""),
        prompt=prompt,
        completions=tuple(answers),
        rewards=given.rewards_G,
        old_logps=tuple(tuple(old_T.tolist()) for old_T in given.old_G_T),
    )

    found = gradient(
        model,
        ALGORITHMS[algorithm],
        [scored],
        layout=Layout(tokens_per_pass=way.limit(prompt), shared_prefix=way.shared),
        max_new_tokens=max(map(len, group)),
        reference=_given_reference(given, way),
    )
    zeros = {name: torch.zeros_like(p) for name, p in model.policy.model.named_parameters()}
    return torch.cat([x.flatten() for x in (zeros | found).values()]).double()


def _given_reference(given: GivenGroup, way: Way) -> Reference:
    """A reference that scores the one micro-batch of the group with the log-probs that are given."""
    reference_K = torch.cat(given.reference_G_T)

    def score(request: Score) -> ScoreOutput:
        chunks = request.packed.chunks
        assert (len(chunks) > 1) == way.chunks
        assert sum(len(chunk.targets_K) for chunk in chunks) == len(reference_K)
        return ScoreOutput(reference_K.new_zeros(()), reference_K, torch.zeros_like(reference_K))

    return score


def head_alone(group_size: int = 8) -> list[Finding]:
    """The head on random hidden states in float64: gradients of states and weights, whatever the tiles."""
    generator = torch.Generator().manual_seed(0)
    lengths = [len(completion) for completion in completions(group_size)]
    hidden = torch.randn(sum(lengths), 32, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, 32, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    targets = torch.randint(0, VOCABULARY - 3, (sum(lengths),), generator=generator)
    never = torch.arange(VOCABULARY) >= VOCABULARY - 3

    findings = []
    for name, loss in LOSSES.items():
        logits = (hidden @ weight.T / 0.7).masked_fill(never, -torch.inf)
        logp_K = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
        logps = logp_K.split(lengths)
        given = GivenGroup.around(logps, by_answer=name == "gspo")
        theirs = torch.autograd.grad(loss(logps, given), [hidden, weight])

        for tiles, tokens in HEAD_TILES.items():
            with patch.dict(head.TILE_ELEMENTS, cpu=tokens * VOCABULARY):
                output = head.fused_head(
                    hidden, weight, targets, make_objective(name, given), never, temperature=0.7
                )
            ours = torch.autograd.grad(output.loss, [hidden, weight])
            error = max(relative(a, b) for a, b in zip(ours, theirs, strict=True))
            finding = Finding(
                what=f"gradient of {name}, head alone, {tiles}",
                family="random states",
                precision="float64",
                group_size=group_size,
                images=0,
                error=error,
                gate=HEAD_GATE,
            )
            findings.append(finding)
    return findings


# ---- siblings and rollout


def isolation(folder: Path, family: str) -> list[Finding]:
    """How far the log-probs of the second completion move when the first is another one of the same length."""
    model = load(folder)
    prompt = make_prompt(model, 1)
    findings = []
    for limit in (None, 1):
        scores = []
        for first in ((5, 6, 7), (200, 201, 202)):
            packed = pack([prompt], [[first, (8, 9, 10)]], tokens_per_pass=limit)
            with torch.no_grad():
                output: ScoreOutput = model.policy(Score(packed=packed))
            scores.append(output.logp_K)
        before, after = scores
        assert not torch.equal(before[:3], after[:3]), "the first completion is another one"

        finding = Finding(
            what=f"sibling moves a log-prob, {'one piece' if limit is None else 'two phases'}",
            family=family,
            precision="float32",
            group_size=2,
            images=1,
            error=float((before[3:] - after[3:]).abs().max()),
            gate=0.0,
        )
        findings.append(finding)
    return findings


def rollout(folder: Path, family: str) -> Finding:
    """Log-probs that the engine recorded against teacher forcing in the stock model."""
    model = load(folder)
    prompts = [make_prompt(model, images) for images in (1, 2)]
    requests = [RolloutRequest(prompt=prompt, draw=draw) for draw, prompt in enumerate(prompts)]
    sampling = Sampling(group_size=8, temperature=1.0, max_new_tokens=32, seed=0)
    groups = model.engine(options=EngineOptions(prompts_per_batch=2, slots=5)).generate(
        requests, sampling
    )

    stock = load_model(str(folder))
    gaps = []
    for prompt, group in zip(prompts, groups, strict=True):
        with torch.no_grad():
            logps = stock_logps(stock, folder, prompt, [c.token_ids for c in group])
        for completion, logp_T in zip(group, logps, strict=True):
            gaps.append(float((logp_T - torch.tensor(completion.logprobs)).abs().max()))

    return Finding(
        what="rollout log-prob against teacher forcing",
        family=family,
        precision="float32",
        group_size=8,
        images=2,
        error=max(gaps),
        gate=1e-4,
    )


# ---- the program


def cases() -> list[tuple[torch.dtype, int, int]]:
    """(precision, group size, images)."""
    found = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        sizes = (2, 8, 32) if dtype == torch.bfloat16 else (2, 8)
        found += [(dtype, group_size, images) for group_size in sizes for images in (1, 2)]
    return found


def measure() -> list[Finding]:
    torch.manual_seed(0)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        for family in FAMILIES:
            path = checkpoint(Path(folder) / family, family)
            for case in track(cases(), description=family, transient=True):
                findings += gradients(path, family, *case)
                findings += losses(path, family, *case)
            findings += isolation(path, family)
            findings.append(rollout(path, family))
    return findings + head_alone()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON and the table go"
    )
    out: Path = parser.parse_args().out

    # models this small are computed by one thread in minutes; two that wait for each other on a busy machine take an hour
    torch.set_num_threads(1)
    findings = measure()
    Console().print(show(findings))

    out.mkdir(parents=True, exist_ok=True)
    versions = {
        "torch": torch.__version__.partition("+")[0],
        "findings": [asdict(f) for f in findings],
    }
    (out / "exactness.json").write_text(json.dumps(versions, indent=1) + "\n")
    (out / "exactness.md").write_text(f"{TITLE}\n\n{markdown(findings)}")
    missed = [f for f in findings if not f.passed]
    print(f"{len(findings) - len(missed)} of {len(findings)} comparisons pass their gate")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
