"""What rewards do with processes, output and pictures: pools of their own, children, floods of text, paths."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item
from gpg_vl.rewards.worker_output import CALL_LIMIT, POOL_LIMIT
from gpg_vl.types import Completion, Example

ROOT = Path(__file__).parent.parent

MINE = """
import multiprocessing, os, pathlib, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor

def double(x): return 2 * x

def pooled(completion, example):
    with multiprocessing.get_context(completion.text).Pool(2) as pool:
        return sum(pool.map(double, [0.1, 0.2, 0.2]))

def executed(completion, example):
    context = multiprocessing.get_context(completion.text)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(double, 0.5).result()

def leaves_children(completion, example):
    words = [sys.executable, "-c", "import time; time.sleep(600)", example.id]
    subprocess.Popen(words)
    subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
    if os.fork() == 0:
        time.sleep(600)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, words)
        pathlib.Path(__file__).with_name("daemon").write_text(str(os.getpid()))
        time.sleep(600)
    while not pathlib.Path(__file__).with_name("daemon").exists(): time.sleep(0.01)
    if completion.text == "hang": time.sleep(600)
    if completion.text == "die": os._exit(3)
    return 1.0

def floods(completion, example):
    for _ in range(int(completion.text)):
        print("\\x1b[31mred\\x1b[0m", flush=True)
    os.write(2, b"\\xff\\xe7 written")
    return 1.0

def reads(completion, example):
    (path,) = example.images
    if isinstance(path, bytes): return float(path == b"encoded")
    return float(os.path.isabs(path) and open(path).read() == "a picture")
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def item(text: str = "", identity: str = "7", images: tuple[str | bytes, ...] = ()) -> Item:
    example = Example(id=identity, prompt="Which?", answer="B", images=images)
    completion = Completion(token_ids=(), logprobs=(), text=text, finish_reason="stop")
    return Item(example, (completion,))


PROGRAM = """
import sys

from gpg_vl.rewards.isolation import RewardPool
from gpg_vl.rewards.scoring import Item
from gpg_vl.types import Completion, Example

if __name__ == "__main__":
    reward, method = sys.argv[1:]
    example = Example(id="7", prompt="Which?", answer="B")
    completion = Completion(token_ids=(), logprobs=(), text=method, finish_reason="stop")
    with RewardPool({reward: 1.0}, workers=1, time_limit=100) as pool:
        print(pool.evaluate([Item(example, (completion,))])[0])
"""


@pytest.mark.parametrize("name", ["pooled", "executed"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_reward_can_have_a_process_pool(mine: str, name: str, method: str) -> None:
    """In a program of its own: `spawn` starts the main module again, which a worker of pytest does not have."""
    program = Path(mine).with_name("program.py")
    program.write_text(PROGRAM)
    words = [sys.executable, str(program), f"{mine}:{name}", method]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout == f"{ {f'{mine}:{name}': (1.0,)} }\n", done.stderr


def running(identity: str) -> list[int]:
    """Processes that a reward has started for an example."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if words[-1:] == [identity] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def lives(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("then", ["return", "hang", "die"])
def test_the_children_of_a_reward_end_with_it(mine: str, then: str) -> None:
    """Those too that have left it for a session of their own."""
    identity = f"child-of-{os.getpid()}-{then}"
    with RewardPool({f"{mine}:leaves_children": 1.0}, workers=1, time_limit=3.0) as pool:
        pool.evaluate([item(then, identity)])
        worker = pool._workers[0].process.pid if pool._workers else None
        assert bool(running(identity)) == (then == "return")

    deadline = time.monotonic() + 20
    while running(identity):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert worker is None or not psutil.pid_exists(worker)
    assert not lives(int(Path(mine).with_name("daemon").read_text()))


def test_what_rewards_print_is_escaped_and_limited(
    mine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with RewardPool({f"{mine}:floods": 1.0}, workers=1) as pool:
        pool.evaluate([item("2")])
        pool.close()
        few = capfd.readouterr()
        pool.evaluate([item("20000")])
        pool.close()
        flood = capfd.readouterr()
        for _ in range(POOL_LIMIT // CALL_LIMIT + 5):
            pool._printed.renew()
            pool._printed._show("x" * 2 * CALL_LIMIT)
        life = capfd.readouterr()

    assert few.out == ""
    assert few.err == "\\x1b[31mred\\x1b[0m\n" * 2 + "\\xff\\xe7 written"
    assert "\x1b" not in flood.err
    assert CALL_LIMIT < len(flood.err) < 3 * CALL_LIMIT  # escapes are longer than what they show
    assert flood.err.count("may print 10,000 characters") == 1
    assert POOL_LIMIT - 2 * CALL_LIMIT < life.err.count("x") < POOL_LIMIT


def test_the_import_does_not_count_against_the_time_limit(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ntime.sleep(2.5)\ndef f(completion, example): return 1.0\n"
    )
    with RewardPool({f"{tmp_path}/slow.py:f": 1.0}, workers=1, time_limit=0.5) as pool:
        assert pool.evaluate([item()]) == [{f"{tmp_path}/slow.py:f": (1.0,)}]


def test_a_reward_is_given_the_paths_of_pictures(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_text("a picture")
    monkeypatch.chdir(tmp_path)

    name = f"{mine}:reads"
    paths = [("deep/a.png",), (str(root / "deep" / "a.png"),), (b"encoded",)]
    for folder in (root, "pictures"):  # also one that is relative to where the pool is made
        with RewardPool({name: 1.0}, workers=1, root=folder) as pool:
            scored = pool.evaluate([item(images=images) for images in paths])
        assert scored == [{name: (1.0,)}] * 3


def test_rewards_test_tells_a_reward_where_the_pictures_are(mine: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a picture")
    row = {"prompt": "Which?", "answer": "B", "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ["rewards", "test", "mine.py:reads", "--data", "rows.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "gpg_vl", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
