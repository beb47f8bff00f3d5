"""The copy of a sharded policy that samples answers; it gets new weights after every step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gpg_vl.models.policy import Policy


def cast_matrices(policy: Policy, dtype: torch.dtype) -> None:
    """Cast linear layers, except the head, to the dtype to which autocast would cast them for each product.

    The results are the same, with half the memory. Norms and embeddings, which autocast does not cast, are not changed.
    """
    head = policy.model.get_output_embeddings()
    for module in policy.model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to(dtype)


def round_gathered(policy: Policy, dtype: torch.dtype, *, but_vision: bool) -> None:
    """Round all weights, including norms and embeddings, to the dtype in which processes gather and train with them.

    but_vision: True to leave out a vision tower that is not sharded, and so never gathered.
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
