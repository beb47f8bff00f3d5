"""vLLM's worker on a CPU, for processes that share an engine. vLLM imports it by name.

Such workers communicate through files in /dev/shm. vLLM's names for these files are the same for every launch with torchrun. So
two runs on a machine would use each other's files, and a run could use files left by a run that was killed.
"""

import os

from vllm.v1.worker.cpu_worker import CPUWorker


class NamedCPUWorker(CPUWorker):  # type: ignore[misc]  # vllm has no types here
    """Names the files by `VLLM_DIST_IDENT`, which `EngineGroup` chooses at random for each launch."""

    def init_device(self) -> None:
        # the processes are connected already, so vLLM uses only the name after the last colon
        self.distributed_init_method += ":" + os.environ["VLLM_DIST_IDENT"]
        super().init_device()
