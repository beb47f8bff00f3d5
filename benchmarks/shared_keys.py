"""Keys of a prompt once for its answers, or a copy for each: CPU seconds of a decoding call, and bytes of keys.

    python -m benchmarks.shared_keys                 (about a minute of CPU time)
    python -m benchmarks.shared_keys --quick         to see that it runs

The text tower of the anchor (`benchmarks/anchor.py`: 6 layers, 8 heads and 2 for keys, hidden 512) with random weights decodes
one token for every slot, after half of an answer of 64 tokens. Both ways take turns in one process; a ratio is the median over
turns, so that a busy machine slows both alike. Writes benchmarks/results/shared_keys_cpu.json and .md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import anchor
from benchmarks.step import folder_of_results
from gpg_vl.models import tiny
from gpg_vl.models.families import families
from gpg_vl.models.key_sharing import shares_prompts
from gpg_vl.models.load import Tokens
from gpg_vl.models.policy import Policy
from gpg_vl.rollout.decode import decode
from gpg_vl.rollout.slots import SharedSlots, Slots

LONGEST, DONE = 64, 32
KINDS = {"copied": Slots, "shared": SharedSlots}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Groups of answers that are decoded together.

    Example: `Case(groups=2, group_size=8, prompt=1300, dtype="float32")`
    """

    groups: int
    group_size: int
    prompt: int
    dtype: str = "float32"


CASES = (
    Case(groups=2, group_size=4, prompt=100),
    Case(groups=2, group_size=8, prompt=100),
    Case(groups=2, group_size=4, prompt=305),
    Case(groups=2, group_size=8, prompt=305),
    Case(groups=8, group_size=8, prompt=305),
    Case(groups=2, group_size=4, prompt=1300),
    Case(groups=2, group_size=8, prompt=1300),
    Case(groups=2, group_size=8, prompt=305, dtype="bfloat16"),
    Case(groups=2, group_size=8, prompt=1300, dtype="bfloat16"),
)


def make_policy() -> Policy:
    tokenizer = tiny.tiny_tokenizer([anchor.SHORT], anchor.TOKENIZER_SIZE)
    model = tiny.tiny_model(anchor.configuration(tokenizer, anchor.TOKENIZER_SIZE), 0)
    tokens = Tokens(ends=(), pad=0, image=None, never_sampled=())
    return Policy(model, families.get("qwen2_vl"), tokens).eval()


def fill(kind: str, case: Case) -> Slots | SharedSlots:
    """Slots of random prompts in the middle of their answers."""
    chance = torch.Generator().manual_seed(0)
    shape = (6, 2, 2, case.prompt, 64)
    dtype = getattr(torch, case.dtype)
    prompts = [torch.randn(shape, generator=chance).to(dtype) for _ in range(case.groups)]
    count = case.groups * case.group_size
    slots: Slots | SharedSlots
    if kind == "shared":
        slots, held = SharedSlots(prompts[0], slots=count, width=LONGEST), DONE
    else:
        slots = Slots(prompts[0], slots=count, width=case.prompt + LONGEST)
        held = case.prompt + DONE
    for number, prompt in enumerate(prompts):
        first = number * case.group_size
        slots.admit(prompt, range(first, first + case.group_size))
    slots.length_S.fill_(held - 1)
    slots.attended = held
    return slots


def take_turn(policy: Policy, slots: Slots | SharedSlots, case: Case, calls: int) -> float:
    """CPU milliseconds of a call."""
    count = len(slots.length_S)
    token_S, position_S = torch.arange(count), torch.full((count,), case.prompt + DONE)
    lengths = slots.length_S.clone()
    is_narrow = case.dtype == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
        start = time.process_time()
        for _ in range(calls):
            decode(policy, slots, token_S, position_S)
            slots.length_S.copy_(lengths)
        return 1000 * (time.process_time() - start) / calls


def measure(policy: Policy, case: Case, turns: int, calls: int) -> dict[str, Any]:
    slots = {kind: fill(kind, case) for kind in KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(turns + 1):
        for kind in KINDS:
            spent = take_turn(policy, slots[kind], case, calls)
            # the first turn allocates
            if number:
                taken[kind].append(spent)
    ratios = [a / b for a, b in zip(taken["copied"], taken["shared"], strict=True)]
    itemsize = 2 if case.dtype == "bfloat16" else 4
    return {
        "case": asdict(case),
        "copied_ms": median(taken["copied"]),
        "shared_ms": median(taken["shared"]),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "copied_bytes": slots["copied"].key_bytes,
        "shared_bytes": slots["shared"].key_bytes,
        "is_shared": shares_prompts(
            torch.device("cpu"),
            key_bytes=2 * 2 * 64 * itemsize,
            prompt=case.prompt,
            answers=case.group_size,
        ),
        "turns": turns,
    }


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Pure: what is printed follows from the rows alone."""
    lines = [
        "# Keys of a prompt once for its answers",
        "",
        (
            "CPU milliseconds of a decoding call of a text tower of 6 layers (hidden 512, 2 heads for keys), half of an answer "
            f"of {LONGEST} tokens done; ratios are medians of {rows[0]['turns']} paired turns (lowest to highest). The machine "
            "was busy with other work. Made by `python -m benchmarks.shared_keys`."
        ),
        "",
        "| prompt | groups x answers | dtype | copied | shared | ratio | MiB of keys | what is taken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row["case"]
        copied, shared = row["copied_bytes"] / 2**20, row["shared_bytes"] / 2**20
        lines.append(
            f"| {case['prompt']} | {case['groups']} x {case['group_size']} | {case['dtype']} | {row['copied_ms']:.1f} | "
            f"{row['shared_ms']:.1f} | {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) | "
            f"{copied:.1f} -> {shared:.1f} | {'shared' if row['is_shared'] else 'copied'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each way")
    parser.add_argument("--calls", type=int, default=5, help="decoding calls of a turn")
    parser.add_argument("--quick", action="store_true", help="one small turn")
    parser.add_argument("--out", type=Path, default=folder_of_results(), metavar="DIR")
    arguments = parser.parse_args()

    cases: Sequence[Case] = CASES
    turns, calls = arguments.turns, arguments.calls
    if arguments.quick:
        cases, turns, calls = (Case(groups=1, group_size=2, prompt=8),), 1, 1
    policy = make_policy()
    rows = [measure(policy, case, turns, calls) for case in cases]

    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {"torch": torch.__version__, "rows": rows}
    (arguments.out / "shared_keys_cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "shared_keys_cpu.md").write_text(to_markdown(rows))
    print(to_markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
