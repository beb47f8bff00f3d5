"""What a trainer of the comparison holds before it computes anything: `python -m benchmarks.floor`, Linux.

Resident memory after the imports, and with weights, gradients and AdamW's two moments in float32. No trainer of this model in
one process holds less at its peak.
"""

import sys
from pathlib import Path

import torch

from benchmarks import anchor
from benchmarks.meter import read_status
from benchmarks.ours import Ours


def main() -> int:
    imports = read_status("VmRSS")
    row = anchor.ANCHOR
    side = Ours(anchor.checkpoint(Path("runs/peers"), row.vocabulary), row, "shared")
    parameters = list(side.policy.model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = sum(p.numel() for p in parameters)
    print(
        f"imports {imports / 1e9:.2f} GB; {weights:,} weights, gradients and moments {16 * weights / 1e9:.2f} GB on paper"
    )
    print(f"resident {read_status('VmRSS') / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
