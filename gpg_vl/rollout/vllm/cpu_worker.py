"""vLLM's worker on a CPU, for processes that share an engine. Imported by vLLM, by its name.

Such workers talk through files in /dev/shm. vLLM names them after the way the processes were launched, which is the same
for every launch with torchrun: two runs on a machine would write into each other's, and of a run that is killed while it
starts some stay behind, which the next would take for its own.
"""

import os

from vllm.v1.worker.cpu_worker import CPUWorker


class NamedCPUWorker(CPUWorker):  # type: ignore[misc]  # vllm has no types here
    """Names the files after `VLLM_DIST_IDENT`, which `EngineGroup` draws for each launch."""

    def init_device(self) -> None:
        # the processes are connected already, so that vLLM reads nothing of it but the name, behind the last colon
        self.distributed_init_method += ":" + os.environ["VLLM_DIST_IDENT"]
        super().init_device()
