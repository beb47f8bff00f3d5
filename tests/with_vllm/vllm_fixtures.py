"""Fixtures of the tests that run vLLM; `make test-vllm` runs them, in an environment of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, make_bench
from served import Served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM, not we, calls what torch has deprecated."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(scope="session")
def checkpoints(
    tiny_checkpoint: Path,
    newer_checkpoint: Path,
    deep_checkpoint: Path,
    text_checkpoint: Path,
    normed_checkpoint: Path,
) -> dict[str, Path]:
    return {
        "qwen2_vl": tiny_checkpoint,
        "qwen2_5_vl": newer_checkpoint,
        "qwen3_vl": deep_checkpoint,
        "qwen2": text_checkpoint,
        "qwen3": normed_checkpoint,
    }


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path) -> Bench:
    """A Qwen2-VL whose tower is trained."""
    return make_bench(tiny_checkpoint)


@pytest.fixture(scope="module")
def served(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the checkpoint whose vision tower is trained."""
    log = tmp_path_factory.mktemp("served") / "log.txt"
    server = Served(checkpoint=tiny_checkpoint, log=log)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
