"""Attention over shared prefixes: which tokens attend to which, and the kernels that compute it.

A prefix token sees the tokens before it in its prompt. A suffix token sees its whole prompt and the
tokens before it in its own completion, never a sibling. A kernel is a function from the lengths of
a call (`Segments`) to a function of queries, keys and values; all kernels compute the same numbers:

- `split`: prompts and completions as two padded batches, the keys of a prompt repeated for its
  completions. Any device.
- `varlen`: no padding, on CUDA with bfloat16 or float16 (`torch.nn.attention.varlen`).
- `dense`: one boolean mask over everything. Quadratic in the tokens of the call; the oracle of the
  tests.

They are reached through transformers' own registry of attention functions, by a keyword argument of
the text tower. A call without that argument, such as an ordinary forward or `generate`, takes the
library's sdpa path.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpg_vl.errors import UserError
from gpg_vl.models.padding import Padded

NAME = "gpg_shared_prefix"
"""The name of the attention function in transformers' registry."""

Kernel = Literal["split", "varlen", "dense"]

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""(queries [1, H, Q, D], keys [1, Hkv, S+U, D], values, scale) -> [1, H, Q, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The lengths of a call: concatenated prefixes, then suffixes, each of which continues a prefix."""

    prefix_lengths: tuple[int, ...]
    suffix_lengths: tuple[int, ...] = ()
    prefixes: tuple[int, ...] = ()
    """The prefix that each suffix continues."""
    prefix_queries: bool = True
    """False: only suffix tokens are queries; the keys of the prefixes come from an earlier call."""

    def without_empty(self) -> "Segments":
        prefixes = [p for n, p in zip(self.suffix_lengths, self.prefixes, strict=True) if n]
        return Segments(
            prefix_lengths=self.prefix_lengths,
            suffix_lengths=tuple(filter(None, self.suffix_lengths)),
            prefixes=tuple(prefixes),
            prefix_queries=self.prefix_queries,
        )


class LayerAttention(Protocol):
    """The attention that the text tower uses: called once per layer with the layer's queries, keys and values."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor: ...


class SharedPrefix:
    """The attention of one call of the text tower.

    It is not a dataclass: sharded modules rebuild dataclass arguments to track their tensors layer by layer,
    but these tensors are shared by all layers.

    attend: the kernel, made for the lengths of the call.
    given: keys and values [1, Hkv, S, D] of each layer's prefixes, if the call computes suffixes
        only.
    """

    def __init__(
        self, attend: Attend, given: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self.attend = attend
        self.given = given

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        if self.given is not None:
            prefix_key, prefix_value = self.given[layer]
            key = torch.cat([prefix_key, key], dim=2)
            value = torch.cat([prefix_value, value], dim=2)
        return self.attend(query, key, value, scale)


@contextmanager
def keep_keys(attentions: Sequence[Any]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block each attention module stores the keys and values it computes; at the end the yielded
    list has them by layer.

    They are stored on the modules and not in an argument, because a wrapper around a layer might copy the
    argument. Layers that are recomputed under gradient checkpointing run after the end and store nothing.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    for module in attentions:
        module.kept_keys = None
    try:
        yield kept
        kept += [module.kept_keys for module in attentions]
    finally:
        for module in attentions:
            del module.kept_keys


def install(model: Any, *, has_vision: bool) -> None:
    """Make the text tower of `model` accept a `LayerAttention` as the keyword argument `shared`.

    The vision tower is not changed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    # without a mask function an ordinary padded batch would be computed without its mask
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME} if has_vision else NAME)
    if model.config.get_text_config()._attn_implementation != NAME:
        raise UserError(
            "This version of transformers does not let the attention of the text tower be replaced. Install one from 5.17 on."
        )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    shared: LayerAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions: q, k, v [B, H, S, D] with positions
    applied -> [B, S, H, D].
    """
    if shared is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )

    # the rotation returns float32 under autocast; cast to the autocast dtype for storing and multiplying
    query, key = query.to(value.dtype), key.to(value.dtype)
    if hasattr(module, "kept_keys"):
        # copy the values: they are a view of the projection's output, and a wrapper cannot track a view that leaves it
        value = value.clone()
        module.kept_keys = (key, value)

    attended = shared(module.layer_idx, query, key, value, scaling)
    return attended.transpose(1, 2).contiguous(), None


def choose_kernel(
    wanted: Literal["auto"] | Kernel, device: torch.device, dtype: torch.dtype
) -> tuple[Kernel, str]:
    """The kernel to use, and why it is not the requested one ("" if it is)."""
    if wanted == "auto":
        return "split", ""
    if wanted != "varlen":
        return wanted, ""
    if missing := varlen_missing(device, dtype):
        return "split", f"varlen needs {missing}; split is used instead"
    return "varlen", ""


def varlen_missing(device: torch.device, dtype: torch.dtype) -> str:
    """What the varlen kernel lacks here, or ""."""
    if device.type != "cuda":
        return f"a CUDA device, this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"bfloat16 or float16, this is {str(dtype).removeprefix('torch.')}"

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"torch.nn.attention.varlen, which torch {torch.__version__} lacks"

    # not every version of the kernel supports grouped-query attention
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:
        return f"grouped-query attention in varlen_attn, which torch {torch.__version__} lacks"
    return ""


def make_attend(kernel: Kernel, segments: Segments, device: torch.device) -> Attend:
    """The attention of a call with these lengths."""
    segments = segments.without_empty()
    match kernel:
        case "dense":
            return dense(segments, device)
        case "split":
            return split(segments, device)
        case "varlen":
            return varlen(segments, device, _varlen_on_cuda)


def dense(segments: Segments, device: torch.device) -> Attend:
    mask_Q_K = visible(segments, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask_Q_K, scale=scale)

    return attend


def visible(segments: Segments, device: torch.device) -> Tensor:
    """bool [queries, keys], True where the query may see the key."""
    lengths = segments.prefix_lengths + segments.suffix_lengths
    counts = torch.tensor(lengths, device=device)
    run_K = torch.arange(len(lengths), device=device).repeat_interleave(counts)
    of_run = torch.tensor([*range(len(segments.prefix_lengths)), *segments.prefixes], device=device)
    prefix_K = of_run[run_K]
    is_prefix_K = run_K < len(segments.prefix_lengths)
    order = torch.arange(len(run_K), device=device)

    own = (run_K[:, None] == run_K[None, :]) & (order[:, None] >= order[None, :])
    prompt = ~is_prefix_K[:, None] & is_prefix_K[None, :] & (prefix_K[:, None] == prefix_K[None, :])
    first = 0 if segments.prefix_queries else sum(segments.prefix_lengths)
    return (own | prompt)[first:]


def split(segments: Segments, device: torch.device) -> Attend:
    """Two padded batches: the prefixes, causal; the suffixes, each over the keys of its prefix and
    its own.
    """
    prefix_tokens = sum(segments.prefix_lengths)
    first = prefix_tokens if segments.prefix_queries else 0
    prefixes = Padded.of(segments.prefix_lengths, 0, device)
    attend_suffixes = _split_suffixes(segments, device) if segments.suffix_lengths else None

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        outputs = []
        if segments.prefix_queries:
            q, k, v = (prefixes.pad(x[:, :, :prefix_tokens]) for x in (query, key, value))
            attended = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )
            outputs.append(prefixes.unpad(attended))
        if attend_suffixes:
            outputs.append(attend_suffixes(query[:, :, first:], key, value, scale))
        return torch.cat(outputs, dim=2)

    return attend


def _split_suffixes(segments: Segments, device: torch.device) -> Attend:
    """The second batch of `split`: queries only of the suffixes, keys of prefixes and suffixes."""
    prefix_tokens = sum(segments.prefix_lengths)
    suffixes = Padded.of(segments.suffix_lengths, 0, device)

    # leave out prefixes without a suffix, which would only add padding
    starts = [0, *accumulate(segments.prefix_lengths)]
    used = sorted(set(segments.prefixes))
    used_lengths = [segments.prefix_lengths[p] for p in used]
    keys_of_used = Padded.of(used_lengths, [starts[p] for p in used], device)
    row_R = torch.tensor([used.index(p) for p in segments.prefixes], device=device)

    size = suffixes.width
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    causal_R = causal.expand(len(row_R), -1, -1)
    prefix_R = keys_of_used.present_B_L[row_R][:, None, :].expand(-1, size, -1)
    mask_R_C_K = torch.cat([prefix_R, causal_R], dim=2)

    def pad_keys(x: Tensor) -> Tensor:
        return torch.cat([keys_of_used.pad(x)[row_R], suffixes.pad(x[:, :, prefix_tokens:])], dim=2)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        q, k, v = suffixes.pad(query), pad_keys(key), pad_keys(value)

        # query heads that share a key head become additional queries of it, so no key is repeated
        rows, heads, size, width = q.shape
        share = heads // k.shape[1]
        folded = q.reshape(rows, k.shape[1], share * size, width)
        mask = mask_R_C_K.repeat(1, share, 1)[:, None]
        attended = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
        return suffixes.unpad(attended.reshape(rows, heads, size, width))

    return attend


RaggedKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float | None], Tensor]
"""(q [Q, H, D], k [K, Hkv, D], v, where runs of queries start and end, likewise of keys, longest,
longest, scale) -> [Q, H, D]; causal, the last query of a run aligned with its last key."""


def varlen(segments: Segments, device: torch.device, kernel: RaggedKernel) -> Attend:
    """Without padding: each prefix is a run of queries over itself, each suffix one over its prefix and itself."""
    starts = [0, *accumulate(segments.prefix_lengths)]
    prefix_tokens = starts[-1]
    query_runs: list[int] = []
    key_index: list[Tensor] = []
    if segments.prefix_queries:
        query_runs += segments.prefix_lengths
        key_index += [torch.arange(a, b) for a, b in pairwise(starts)]

    at = prefix_tokens
    for length, prefix in zip(segments.suffix_lengths, segments.prefixes, strict=True):
        of_prefix = torch.arange(starts[prefix], starts[prefix + 1])
        query_runs.append(length)
        key_index.append(torch.cat([of_prefix, torch.arange(at, at + length)]))
        at += length

    key_runs = [len(index) for index in key_index]
    keys = torch.cat(key_index).to(device)
    ends_q = torch.tensor([0, *accumulate(query_runs)], dtype=torch.int32, device=device)
    ends_k = torch.tensor([0, *accumulate(key_runs)], dtype=torch.int32, device=device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        k, v = k.index_select(0, keys), v.index_select(0, keys)
        out = kernel(q.contiguous(), k, v, ends_q, ends_k, max(query_runs), max(key_runs), scale)
        return out.transpose(0, 1)[None]

    return attend


def _varlen_on_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends_q: Tensor,
    ends_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # the kernel returns the log-sum-exp only on request
    runs = (ends_q, ends_k, longest_q, longest_k)
    attended: Any = varlen_attn(q, k, v, *runs, scale=scale, window_size=(-1, 0), enable_gqa=True)
    output: Tensor = attended
    return output


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values [B, Hkv, L, D] repeated to the heads of the queries."""
    repeat = query.shape[1] // x.shape[1]
    return x if repeat == 1 else x.repeat_interleave(repeat, dim=1)
