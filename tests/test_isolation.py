"""Rewards in worker processes: what hangs, dies or raises costs its group, and everything else is scored."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpg_vl.errors import RunError, UserError
from gpg_vl.rewards import isolation, rewards
from gpg_vl.rewards.gold_proof import check_gold
from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item
from gpg_vl.types import Completion, Example, Group

MINE = '''
import atexit, ctypes, os, re, signal, sys, threading, time
from gpg_vl.rewards import batched, in_range

def obey(completion, example):
    """Does what the text of the completion says, and keeps a log."""
    text = completion.text
    with open(__file__ + ".log", "a") as log: log.write(f"{example.id} {text}\\n")
    if text == "hang": time.sleep(600)
    if text == "spin": re.fullmatch("(a*)*b", "a" * 40)  # never lets go of the interpreter lock
    if text == "exit": os._exit(3)
    if text == "sys.exit": sys.exit(4)
    if text == "segfault": ctypes.string_at(0)
    if text == "raise": raise KeyError("colour of " + example.id)
    if text == "recurse": return obey_again(completion, example)
    if text == "thread": threading.Thread(target=time.sleep, args=(600,)).start()
    if text == "print": print("printed by a reward"); os.write(1, b"written by a reward\\n")
    if text == "interrupt": os.kill(os.getpid(), signal.SIGINT)
    if text == "orphan": os.kill(os.getppid(), signal.SIGKILL); re.fullmatch("(a*)*b", "a" * 40)
    values = {"none": None, "nan": float("nan"), "string": "1", "two": 2, "half": 0.5, "pid": os.getpid() / 2**24}
    return values.get(text, 1.0)

def obey_again(completion, example): return obey_again(completion, example)

def is_light(completion, example): return "torch" not in sys.modules and "pytest" not in sys.modules

def count(completion, example): return len(completion.token_ids) / 10

@in_range(0, 100)
@batched
def rank(completions, example): return [i * 10 for i, _ in enumerate(completions)]

@batched
def short(completions, example): return [1.0]

@batched
def stuck(completions, example):
    if example.id == "2": time.sleep(600)
    return [1.0] * len(completions)

def swapped(example, completion): return 1.0
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(MINE)
    return str(file)


@pytest.fixture(autouse=True)
def no_zombies():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and "resource_tracker" not in " ".join(child.cmdline())
    ]
    assert left == []


def group(identity, *texts, draw=-1):
    completions = tuple(
        Completion(
            token_ids=(1,) * 3,
            logprobs=(-0.5,) * 3,
            text=text,
            finish_reason="stop",
            prefill="<think>",
        )
        for text in texts
    )
    example = Example(id=str(identity), prompt="Which?", answer="(B)", choices=("ball", "cube"))
    return Group(example=example, prompt=None, completions=completions, draw=draw)


RIGHT, WRONG, BARE = (
    "x</think><answer>(B)</answer>",
    "x</think><answer>(A)</answer>",
    "the answer is (B)",
)


def test_groups_are_scored_in_order_and_otherwise_unchanged():
    groups = [group(i, RIGHT, WRONG if i % 2 else RIGHT, BARE, draw=i) for i in range(21)]
    with RewardPool({"choice": 1.0, "format": 0.2}) as pool:
        scored = pool.score(groups)
    assert scored.failures == []
    assert [g.example for g in scored.groups] == [g.example for g in groups]
    for before, after in zip(groups, scored.groups, strict=True):
        odd = before.draw % 2
        assert after.reward_parts == {
            "choice": (1.0, 0.0 if odd else 1.0, 0.0),
            "format": (1.0, 1.0, 0.0),
        }
        assert after.rewards == (1.2, 0.2 if odd else 1.2, 0.0)
        assert (after.completions, after.draw, after.prompt) == (
            before.completions,
            before.draw,
            None,
        )


def test_nothing_to_score_starts_nothing():
    with RewardPool({"choice": 1.0}) as pool:
        assert pool.score([]).groups == []
        assert pool._workers == []
        assert pool.score([group(1)]).groups[0].rewards == ()


def test_every_kind_of_failure_costs_its_group_only(mine):
    bad = {
        "hang": "timeout",
        "spin": "timeout",
        "exit": "crash",
        "sys.exit": "crash",
        "segfault": "crash",
        "raise": "exception",
        "recurse": "exception",
        "none": "value",
        "nan": "value",
        "string": "value",
        "two": "value",
    }
    groups = []
    for i, text in enumerate(bad):
        groups += [group(f"good-{i}", "half", "fine"), group(f"bad-{i}", "fine", text, "fine")]
    with RewardPool({"choice": 0.0, f"{mine}:obey": 1.0}, time_limit=2.0) as pool:
        scored = pool.score(groups)
        again = pool.score(groups[:1])
    assert [g.example.id for g in scored.groups] == [f"good-{i}" for i in range(len(bad))]
    assert all(g.rewards == (0.5, 1.0) for g in scored.groups)
    assert [(f.kind, f.reward, f.example_id, f.member) for f in scored.failures] == [
        (kind, f"{mine}:obey", f"bad-{i}", 1) for i, kind in enumerate(bad.values())
    ]
    assert again.groups[0].rewards == (0.5, 1.0)
    told = dict(zip(bad, (f.message for f in scored.failures), strict=True))
    for text, message in told.items():
        assert f"{mine}:obey" in message
        assert "completion 1 of example 'bad-" in message
        assert f"<think>{text}" in message
    assert "within 2 s" in told["hang"]
    assert "exit code 3" in told["exit"]
    assert "exit code 4" in told["sys.exit"]
    assert "SIGSEGV" in told["segfault"]
    assert "KeyError: 'colour of bad-5'" in told["raise"]
    assert f'File "{mine}", line' in told["raise"]
    assert "worker.py" not in told["raise"].partition("scoring.py")[0]
    assert "RecursionError" in told["recurse"]
    assert "returned None" in told["none"]
    assert "returned nan" in told["nan"]
    assert "returned '1'" in told["string"]
    assert "returned 2" in told["two"]


def test_a_group_that_hangs_in_every_completion_costs_one_time_limit(mine):
    log = Path(mine + ".log")
    log.unlink(missing_ok=True)
    with RewardPool({f"{mine}:obey": 1.0}, time_limit=2.0, workers=1) as pool:
        scored = pool.score([group(1, *["hang"] * 8), group(2, "fine")])
    assert [g.example.id for g in scored.groups] == ["2"]
    assert [(f.kind, f.member) for f in scored.failures] == [("timeout", 0)]
    assert sorted(log.read_text().splitlines()) == ["1 hang", "2 fine"]


def test_a_call_that_begins_after_the_parent_went_to_wait_has_its_limit_too(mine):
    hanging = group(1, "hang")
    heavy = replace(
        hanging, example=replace(hanging.example, images=(bytes(40_000_000),))
    )  # takes long to receive
    with RewardPool({f"{mine}:obey": 1.0}, time_limit=0.5, workers=1) as pool:
        assert [f.kind for f in pool.score([heavy]).failures] == ["timeout"]


def test_a_batched_reward_gets_all_completions_at_once(mine):
    with RewardPool({f"{mine}:rank": 0.1, f"{mine}:count": 1.0}) as pool:
        assert pool.ranges() == {f"{mine}:rank": (0.0, 100.0), f"{mine}:count": (0.0, 1.0)}
        scored = pool.score([group(1, "a", "b", "c")])
    assert scored.groups[0].reward_parts == {
        f"{mine}:rank": (0.0, 10.0, 20.0),
        f"{mine}:count": (0.3, 0.3, 0.3),
    }
    assert scored.groups[0].rewards == (0.3, 1.3, 2.3)


def test_a_batched_reward_fails_as_a_whole(mine):
    with RewardPool({f"{mine}:stuck": 1.0}, time_limit=2.0) as pool:
        scored = pool.score([group(i, "a", "b") for i in range(4)])
    assert [g.example.id for g in scored.groups] == ["0", "1", "3"]
    assert [(f.kind, f.example_id, f.member) for f in scored.failures] == [("timeout", "2", None)]
    with RewardPool({f"{mine}:short": 1.0}) as pool:
        (failure,) = pool.score([group(1, "a", "b")]).failures
    assert (failure.kind, failure.member) == ("value", None)
    assert "must return a list of 2 numbers" in failure.message


def test_workers_are_light(mine):
    with RewardPool({f"{mine}:is_light": 1.0}) as pool:
        assert pool.score([group(1, "a")]).groups[0].rewards == (1.0,)


def test_the_work_is_shared(mine):
    with RewardPool({f"{mine}:obey": 1.0}, workers=2) as pool:
        groups = [group(i, "pid") for i in range(16)]
        pids = set()
        deadline = time.monotonic() + 60.0  # the second worker may start late
        while len(pids) < 2:
            assert time.monotonic() < deadline
            pids |= {scored.rewards for scored in pool.score(groups).groups}


def test_threads_prints_and_signals_do_no_harm(mine, capfd):
    with RewardPool({f"{mine}:obey": 1.0}) as pool:
        scored = pool.score(
            [group(1, "thread"), group(2, "print"), group(3, "interrupt"), group(4, "fine")]
        )
        assert [g.rewards for g in scored.groups] == [(1.0,)] * 4
    out, err = capfd.readouterr()
    assert out == ""
    assert "printed by a reward" in err
    assert "written by a reward" in err


def test_a_relative_file_is_found_from_where_the_pool_was_made(mine, monkeypatch, tmp_path):
    monkeypatch.chdir(Path(mine).parent)
    pool = RewardPool({"mine.py:obey": 1.0})
    monkeypatch.chdir(tmp_path)
    with pool:
        assert pool.score([group(1, "half")]).groups[0].rewards == (0.5,)


def test_a_worker_that_dies_idle_is_replaced(mine):
    with RewardPool({f"{mine}:obey": 1.0}, workers=1) as pool:
        for _ in range(5):
            assert pool.score([group(1, "half")]).groups[0].rewards == (0.5,)
            os.kill(pool._workers[0].process.pid, signal.SIGKILL)


def test_a_pool_can_be_used_again_after_an_interrupted_call(mine, monkeypatch):
    with RewardPool({f"{mine}:obey": 1.0}) as pool:
        pool.start()

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(isolation.RewardPool, "_advance", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.score([group(1, "fine"), group(2, "hang")])
        assert [g.rewards for g in pool.score([group(3, "half", "half")]).groups] == [(0.5, 0.5)]


def test_closing_does_not_wait_for_a_reward_that_hangs(mine):
    pool = RewardPool({f"{mine}:obey": 1.0}, workers=1)
    pool.start()
    hanging = group(1, "hang")
    worker = pool._workers[0]
    worker.give(
        isolation.Chunk((f"{mine}:obey",), [(0, Item(hanging.example, hanging.completions))])
    )
    pool.close(patience=0.2)
    assert worker.process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swapped", "the completion comes first"),
        ("nothing", "where there is no such function"),
    ],
)
def test_an_unsuitable_reward_is_refused_at_the_start(mine, name, message):
    with RewardPool({f"{mine}:{name}": 1.0}) as pool, pytest.raises(UserError, match=message):
        pool.start()


def test_a_missing_file_and_a_broken_module_are_explained(tmp_path):
    with (
        RewardPool({f"{tmp_path}/no.py:f": 1.0}) as pool,
        pytest.raises(UserError, match="which does not exist"),
    ):
        pool.start()
    (tmp_path / "sick.py").write_text("import no_such_module\n")
    with (
        RewardPool({f"{tmp_path}/sick.py:f": 1.0}) as pool,
        pytest.raises(UserError, match="cannot be imported") as error,
    ):
        pool.score([group(1, "a")])
    assert "No module named 'no_such_module'" in str(error.value)
    assert 'sick.py", line 1' in str(error.value)


def test_a_module_that_ends_the_process_ends_the_run(tmp_path):
    (tmp_path / "deadly.py").write_text("import os\nos._exit(9)\n")
    with (
        RewardPool({f"{tmp_path}/deadly.py:f": 1.0}) as pool,
        pytest.raises(RunError, match=r"exit code 9.*3 times in a row"),
    ):
        pool.score([group(1, "a")])


def test_a_reward_of_this_process_only_is_explained(monkeypatch):
    def local(completion, example):
        return 1.0

    monkeypatch.setattr(rewards, "_registered", dict(rewards._registered))
    rewards.register("only_here")(local)
    with pytest.raises(
        UserError,
        match=r"'only_here' is defined inside another function.*my_rewards\.py.*rewards\.weights",
    ):
        RewardPool({"only_here": 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"chioce": 1.0}}, r"no reward called 'chioce'\. Did you mean 'choice'\?"),
        ({"weights": {}}, "No reward is named"),
        ({"weights": {"choice": 1.0}, "time_limit": 0.0}, "time limit of the rewards is 0.0"),
        (
            {"weights": {"choice": 1.0}, "time_limit": float("inf")},
            "time limit of the rewards is inf",
        ),
        ({"weights": {"choice": 1.0}, "workers": 0}, "number of reward workers is 0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(arguments, message):
    with pytest.raises(UserError, match=message):
        RewardPool(**arguments)


def test_gold_is_checked_through_the_pool(mine):
    examples = [group(i).example for i in range(3)]
    weights = {"choice": 1.0, f"{mine}:count": 1.0}
    with RewardPool(weights) as pool:
        problems = check_gold(weights, examples, pool=pool)
    assert [(p.reward, p.example_id, p.score) for p in problems] == [
        (f"{mine}:count", str(i), 0.0) for i in range(3)
    ]


def test_many_items_are_cut_into_chunks():
    items = [Item(group(i).example, group(i, RIGHT).completions) for i in range(1000)]
    with RewardPool({"choice": 1.0}) as pool:
        assert pool.evaluate(items, ["choice"]) == [{"choice": (1.0,)}] * 1000


def is_running(pid):
    try:
        return (
            psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        )  # an orphan's zombie is not ours to reap
    except psutil.NoSuchProcess:
        return False


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_isolation import RewardPool, group
pool = RewardPool({{{reward!r}: 1.0}}, time_limit=1.0, workers=2)
pool.score([group(1, "fine"), group(2, "fine")])
print(*(worker.process.pid for worker in pool._workers), flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os._exit(0)",
        "pass",  # no main guard, not closed
        "pool.score([group(3, 'thread')]); import os; os._exit(0)",
        "pool.score([group(3, 'orphan')])",  # killed while a worker never lets go of the interpreter lock
    ],
)
def test_workers_do_not_outlive_their_parent(mine, tmp_path, then):
    script = tmp_path / "train.py"
    script.write_text(
        PARENT.format(tests=str(Path(__file__).parent), reward=f"{mine}:obey", then=then)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 60.0
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
