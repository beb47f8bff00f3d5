"""Processes that train together: the gradient of one, however the groups are dealt, and as many calls as each other."""

import json
from pathlib import Path

import pytest
import torch
from runs import run_python
from test_learner import gradient_of, load, make_groups, weights
from test_policy import relative
from torch import Tensor

from gpg_vl.algorithms.grpo import grpo
from gpg_vl.registry import UnknownNameError
from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup
from gpg_vl.types import Group

WORKER = """
import json, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path

import torch
from accelerate import Accelerator
from test_learner import adamw, descent, load, make_groups, make_learner, weights
from test_sharding import ALGORITHMS, Counting

from gpg_vl.training.sharding import shardings
from gpg_vl.training.sharding.protocol import ShardingSetup

checkpoint, out, orders = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
groups = make_groups(checkpoint)
results = {{}}
for order in orders:
    policy = load(checkpoint)
    if order["perturbed"] and rank:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.1
    setup = ShardingSetup(
        device=torch.device("cpu"), processes=accelerator.num_processes, is_main=rank == 0
    )
    sharding = Counting(shardings.get("none")(setup), calls_must_match=order["must_match"])
    learner = make_learner(
        policy,
        ALGORITHMS[order["algorithm"]](),
        tokens_per_pass=order["tokens_per_pass"],
        sharding=sharding,
        optimizer=adamw if order["adamw"] else descent,
        rate=1e-3 if order["adamw"] else 1.0,
    )
    start = weights(policy)
    mine = [groups[number] for number in order["deal"][rank]]
    report = learner.update(mine, step=0)
    results[order["name"]] = {{
        "start": start,
        "gradient": start - weights(policy),
        "calls": sharding.calls,
        "backwards": sharding.backwards,
        "lasts": sharding.lasts,
        "loss": report.loss,
        "norm": report.grad_norm,
        "tokens": report.trained_tokens,
        "micro_batches": report.micro_batches,
        "metrics": dict(report.metrics),
    }}
torch.save(results, out / f"rank-{{rank}}.pt")
accelerator.wait_for_everyone()
accelerator.end_training()
"""


class Counting:
    """A sharding that counts what is asked of it, and may say that every call is a collective."""

    def __init__(self, inner: object, *, calls_must_match: bool) -> None:
        self._inner = inner
        self.calls_must_match = calls_must_match
        self.calls = 0
        self.backwards = 0
        self.lasts: list[bool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def wrap(self, policy, make_optimizer):
        module = self._inner.wrap(policy, make_optimizer)

        def count(*_: object) -> None:
            self.calls += torch.is_grad_enabled()

        module.register_forward_pre_hook(count)
        return module

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.backwards += 1
        self.lasts.append(last)
        self._inner.backward(loss, last=last)


def _gpg():
    from gpg_vl.algorithms.gpg import gpg

    return gpg()


ALGORITHMS = {"gpg": _gpg, "grpo": lambda: grpo(kl_beta=0.1)}

DEALS = {
    "half each": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "one without signal": [[0, 2, 4, 5, 7], [1, 3, 6]],
    "one without groups": [[], [0, 1, 2, 3, 4, 5, 6, 7]],
    "many and one": [[0, 1, 2, 4, 5, 6], [3, 7]],
}


def orders() -> list[dict[str, object]]:
    """Every deal, with both promises about calls; and a start from other weights than the main process's."""
    made = []
    for must_match in (False, True):
        for deal in DEALS:
            made.append(order(f"{deal}, {must_match}", deal, must_match=must_match))
    made.append(order("grpo", "many and one", algorithm="grpo", must_match=True))
    made.append(order("perturbed", "half each", perturbed=True))
    made.append(order("adamw", "one without signal", perturbed=True, adamw=True))
    return made


def order(
    name: str,
    deal: str,
    *,
    must_match: bool = False,
    algorithm: str = "gpg",
    perturbed: bool = False,
    adamw: bool = False,
) -> dict[str, object]:
    return {
        "name": name,
        "deal": DEALS[deal],
        "must_match": must_match,
        "algorithm": algorithm,
        "perturbed": perturbed,
        "adamw": adamw,
        "tokens_per_pass": 90,
    }


@pytest.fixture(scope="module")
def groups(tiny_checkpoint: Path) -> list[Group]:
    return make_groups(tiny_checkpoint)


@pytest.fixture(scope="module")
def ranks(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two processes over gloo found, by order."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    result = run_python(script, tiny_checkpoint, folder, json.dumps(orders()), processes=2)
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, groups: list[Group]) -> Tensor:
    return gradient_of(tiny_checkpoint, groups)


@pytest.mark.parametrize("must_match", [False, True])
@pytest.mark.parametrize("deal", DEALS)
def test_two_processes_have_the_gradient_of_one(
    ranks: list[dict], whole: Tensor, deal: str, must_match: bool
) -> None:
    """With unequal numbers of micro-batches, and without any: nobody hangs, and nothing is added or averaged away."""
    first, second = (rank[f"{deal}, {must_match}"] for rank in ranks)
    assert torch.equal(first["gradient"], second["gradient"])
    assert relative(first["gradient"], whole) < 1e-6
    for key in ("loss", "norm", "tokens", "micro_batches", "metrics"):
        assert first[key] == second[key], key


def test_a_divergence_is_shared_out_too(
    ranks: list[dict], tiny_checkpoint: Path, groups: list[Group]
) -> None:
    expected = gradient_of(tiny_checkpoint, groups, grpo(kl_beta=0.1))
    for rank in ranks:
        assert relative(rank["grpo"]["gradient"], expected) < 1e-6
    assert ranks[0]["grpo"]["metrics"] == ranks[1]["grpo"]["metrics"]


@pytest.mark.parametrize("deal", DEALS)
def test_where_calls_must_match_every_process_makes_as_many(ranks: list[dict], deal: str) -> None:
    """Calls and backward passes, also where one process has a micro-batch in chunks and the other has none."""
    first, second = (rank[f"{deal}, True"] for rank in ranks)
    assert first["calls"] == second["calls"] > 0
    assert first["backwards"] == second["backwards"] > 0
    free = [rank[f"{deal}, False"] for rank in ranks]
    assert max(one["calls"] for one in free) <= first["calls"]
    if deal != "half each":
        assert free[0]["calls"] != free[1]["calls"], "without the promise nobody waits"
    for rank in (first, second):
        assert rank["lasts"] == [False] * (len(rank["lasts"]) - 1) + [True]


def test_an_idle_micro_batch_adds_exactly_nothing(ranks: list[dict]) -> None:
    """Bit for bit: the idle calls of a process without groups leave the gradient of the other as it is."""
    for rank in ranks:
        waited, alone = rank["one without groups, True"], rank["one without groups, False"]
        assert torch.equal(waited["gradient"], alone["gradient"])
        assert waited["loss"] == alone["loss"]


def test_every_process_starts_with_the_weights_of_the_first(
    ranks: list[dict], tiny_checkpoint: Path, whole: Tensor
) -> None:
    start = weights(load(tiny_checkpoint))
    for rank in ranks:
        assert torch.equal(rank["perturbed"]["start"], start)
        assert relative(rank["perturbed"]["gradient"], whole) < 1e-6


def test_moments_are_equal_on_all_processes(ranks: list[dict]) -> None:
    """AdamW, with a process that has touched no weight at all."""
    assert torch.equal(ranks[0]["adamw"]["gradient"], ranks[1]["adamw"]["gradient"])
    assert ranks[0]["adamw"]["gradient"].abs().max() > 1e-4


@pytest.mark.parametrize(
    "name,told",
    [
        ("non", "There is no sharding called 'non'. Did you mean 'none'? Known: fsdp2, none"),
        ("fsdb", "There is no sharding called 'fsdb'. Did you mean 'fsdp2'? "),
    ],
)
def test_an_unknown_sharding_is_told_the_known_ones(name: str, told: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        shardings.get(name)
    assert told in str(error.value)
    assert "Known: fsdp2, none" in str(error.value)


def test_one_process_needs_no_process_group(tiny_checkpoint: Path) -> None:
    setup = ShardingSetup(device=torch.device("cpu"), processes=1, is_main=True)
    policy = load(tiny_checkpoint, torch.float32)
    assert not torch.distributed.is_initialized()
    names = {name for name, _ in policy.model.state_dict().items()}
    sharding = shardings.get("none")(setup)
    sharding.wrap(policy, lambda policy: torch.optim.SGD(policy.parameters(), lr=1.0))
    assert {name for name, _ in sharding.full_weights()} == names
