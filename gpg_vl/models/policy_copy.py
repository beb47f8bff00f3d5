"""A copy of a policy that answers while the policy itself is spread over processes, and is filled again after every step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gpg_vl.models.policy import Policy


def cast_matrices(policy: Policy, dtype: torch.dtype) -> None:
    """Linear layers, but not the head, in the dtype that autocast would cast them to for each product.

    The same numbers come out, from half the memory. What autocast leaves alone (norms, embeddings) is left alone.
    """
    head = policy.model.get_output_embeddings()
    for module in policy.model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(dtype)


def round_gathered(policy: Policy, dtype: torch.dtype, *, but_vision: bool) -> None:
    """All weights in the dtype that processes gather them in, norms and embeddings included: with those they train.

    but_vision: of a vision tower that is not spread, nothing is gathered.
    """
    vision = policy.family.vision_modules(policy.model) if but_vision else []
    kept = {parameter for module in vision for parameter in module.parameters()}
    for parameter in policy.model.parameters():
        if parameter not in kept:
            parameter.data = parameter.data.to(dtype)


def copy_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> tuple[int, int]:
    """Copy whole tensors into a plain model, each into its own dtype. Iterates to the end.

    Returns how many there were, and their bytes in the copy.
    """
    room = model.state_dict()
    unfilled = set(room)
    size = 0
    with torch.no_grad():
        for name, tensor in weights:
            room[name].copy_(tensor)
            unfilled.remove(name)
            size += room[name].nbytes
    assert not unfilled, f"no weights came for {sorted(unfilled)[:3]}, {len(unfilled)} in all"
    return len(room), size
