"""The native engine: it samples from the policy itself, in this process, or from a copy if the policy is sharded.

Image and prompt are computed once per prompt. The members of all groups then wait for slots. When an answer ends, its slot
takes the next member, so a long answer does not delay the others.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from gpg_vl.clock import timed
from gpg_vl.errors import UserError
from gpg_vl.models.families import Family
from gpg_vl.models.key_sharing import shares_prompts
from gpg_vl.models.layout import pack
from gpg_vl.models.policy import Policy
from gpg_vl.models.policy_copy import copy_weights
from gpg_vl.models.requests import Prefill, Prefix
from gpg_vl.rollout.decode import GraphDecoder, Head, PlainDecoder
from gpg_vl.rollout.engine import (
    EngineOptions,
    EngineSetup,
    RolloutRequest,
    SyncReport,
    Weights,
)
from gpg_vl.rollout.sampling import Sampling, draw_tokens, uniforms
from gpg_vl.rollout.slots import SharedSlots, Slots
from gpg_vl.types import Completion, Prompt


@dataclass(slots=True, kw_only=True)
class _Counters:
    """Counts of what the engine has computed so far."""

    vision_patches: int = 0
    prefilled_tokens: int = 0
    """Tokens of prompts."""
    decoded_tokens: int = 0
    """Tokens of answers."""
    decode_calls: int = 0
    slot_steps: int = 0
    """Slots times decoding calls, including idle slots."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


class NativeEngine:
    """Samples with a `Policy` on its own device. See `Engine` for its methods.

    It uses the options `prompts_per_batch` (prompts prefilled together) and `slots` (answers decoded together), and `prefixes`
    of its setup, where it stores prompts with their graph for a learner that reuses them.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._policy = setup.policy()
        self._version = 0
        self._counters = _Counters()

    @staticmethod
    def check(family: Family, options: EngineOptions, processes: int) -> None:
        """Raises UserError for options that this engine does not support."""
        if options.images != "pixels":
            raise UserError(
                f"rollout.images is {options.images}, but rollout.engine is native, which samples from the policy itself "
                f"and encodes images with its vision tower (cached by model.vision_cache_mb). Set rollout.images to "
                f"pixels, or rollout.engine to vllm."
            )

    def sync(self, weights: Weights, version: int) -> SyncReport:
        """Take over new weights. If the engine reads the trained weights directly, only the version changes."""
        self._version = version
        if not self._setup.fills_policy:
            return SyncReport(version=version)
        tensors, size = copy_weights(self._policy.model, weights())
        return SyncReport(version=version, tensors=tensors, bytes=size)

    def rest(self) -> None:
        """Frees nothing: its memory belongs to the trainer, or is needed at the next sync."""

    def counters(self) -> Mapping[str, float]:
        return asdict(self._counters)

    def step(self) -> AbstractContextManager[None]:
        prefixes = self._setup.prefixes
        return nullcontext() if prefixes is None else prefixes.open()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        if not requests:
            return []
        policy, autocast = self._policy, self._setup.autocast
        was_training = policy.training
        policy.eval()
        try:
            with (
                torch.no_grad(),
                torch.autocast(policy.device.type, autocast, enabled=autocast is not None),
                policy.images.remembering(_shown_more_than_once(requests)),
            ):
                run = _Run(self._setup, policy, self._counters, self._version, requests, sampling)
                return run.answer(done)
        finally:
            policy.train(was_training)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A prefilled prompt whose answers wait to be decoded."""

    keys_L_2_H_P_D: Tensor
    hidden_H: Tensor


@dataclass(slots=True, kw_only=True)
class _Answer:
    """A completion that is being decoded."""

    request: int
    member: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class _Run:
    """One call of `generate`: the waiting answers, the answer in each slot, and the tokens so far."""

    def __init__(
        self,
        setup: EngineSetup,
        policy: Policy,
        counters: _Counters,
        version: int,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
    ) -> None:
        self._setup, self._counters, self._version = setup, counters, version
        self._policy, self._device = policy, policy.device
        self._requests, self._sampling = requests, sampling
        self._ends = frozenset(setup.processing.tokens.ends)

        # answers wait in the order of the requests, so that a prompt can be freed once its last member is admitted
        self._waiting = deque(
            _Answer(request=number, member=member)
            for number in range(len(requests))
            for member in range(sampling.answers)
        )
        self._finished: dict[tuple[int, int], _Answer] = {}
        self._starts: dict[int, _Start] = {}
        self._computed = 0

        count = min(setup.options.slots, len(self._waiting))
        # no slot decodes more often than that
        self._calls = -(-len(self._waiting) // count) * sampling.max_new_tokens
        self._head = Head(
            policy, rows=count, calls=self._calls, temperature=sampling.temperature or 1.0
        )
        self._answers: list[_Answer | None] = [None] * count
        self._random_S_T = torch.zeros(
            count, sampling.max_new_tokens, dtype=torch.float64, device=self._device
        )
        self._slots: Slots | SharedSlots | None = None
        self._decoder: GraphDecoder | PlainDecoder | None = None

    def answer(self, done: Callable[[int], None] | None) -> list[tuple[Completion, ...]]:
        self._admit(done)
        while any(self._answers):
            self._decode(done)
            self._admit(done)

        answered = []
        for number in range(len(self._requests)):
            members = [self._finished[number, m] for m in range(self._sampling.answers)]
            answered.append(tuple(self._complete(answer) for answer in members))
        return answered

    # ---- prompts and slots

    def _admit(self, done: Callable[[int], None] | None) -> None:
        """Fill free slots with waiting answers. Their first tokens come from the prompts' last hidden states."""
        free = self._find_free()
        while free and self._waiting:
            admitted: list[tuple[int, _Answer]] = []
            while free and self._waiting:
                self._compute_prompts_up_to(self._waiting[0].request)
                admitted.append((free.pop(0), self._waiting.popleft()))

            self._take_places(admitted)
            hidden = torch.stack([self._starts[a.request].hidden_H for _, a in admitted])
            self._sample(hidden, [slot for slot, _ in admitted], done)

            following = self._waiting[0].request if self._waiting else len(self._requests)
            for number in [number for number in self._starts if number < following]:
                del self._starts[number]
            free = self._find_free()
        if not self._waiting:
            self._shrink()

    def _find_free(self) -> list[int]:
        return [slot for slot, answer in enumerate(self._answers) if answer is None]

    def _find_busy(self) -> list[int]:
        return [slot for slot, answer in enumerate(self._answers) if answer is not None]

    def _take_places(self, admitted: Sequence[tuple[int, _Answer]]) -> None:
        with self._timed("decode_seconds"):
            slots_of: dict[int, list[int]] = {}
            for slot, answer in admitted:
                self._answers[slot] = answer
                slots_of.setdefault(answer.request, []).append(slot)

            assert self._slots is not None
            for number, slots in slots_of.items():
                self._slots.admit(self._starts[number].keys_L_2_H_P_D, slots)

            rows = []
            for _, answer in admitted:
                draw = self._requests[answer.request].draw
                rows.append(torch.from_numpy(uniforms(self._sampling, draw, answer.member)))
            index = torch.tensor([slot for slot, _ in admitted], device=self._device)
            self._random_S_T[index] = torch.stack(rows).to(self._device)

    def _open_slots(self, like_L_2_H_P_D: Tensor) -> Slots | SharedSlots:
        """Make slots for the longest possible sequence. The first keys give shape and dtype."""
        lengths = [request.prompt.length for request in self._requests]
        count, own = len(self._answers), self._sampling.max_new_tokens
        layers, _, _, tokens, _ = like_L_2_H_P_D.shape
        if shares_prompts(
            self._device,
            key_bytes=like_L_2_H_P_D.nbytes / (layers * tokens),
            prompt=sum(lengths) / len(lengths),
            answers=min(self._sampling.group_size, count),
        ):
            return SharedSlots(like_L_2_H_P_D, slots=count, width=own)
        return Slots(like_L_2_H_P_D, slots=count, width=max(lengths) + own)

    def _make_decoder(self, slots: Slots | SharedSlots) -> GraphDecoder | PlainDecoder:
        if self._device.type == "cuda" and isinstance(slots, Slots):
            return GraphDecoder(self._policy, slots, self._setup.autocast)
        return PlainDecoder(self._policy, slots, self._calls)

    def _compute_prompts_up_to(self, last: int) -> None:
        while self._computed <= last:
            end = min(self._computed + self._prompts_per_batch, len(self._requests))
            self._prefill(range(self._computed, end))
            self._computed = end

    @property
    def _prompts_per_batch(self) -> int:
        # prompts kept for training are computed one by one, so that each can be freed by the micro-batch that trains on it
        return 1 if self._keeps_prefixes else self._setup.options.prompts_per_batch

    @property
    def _keeps_prefixes(self) -> bool:
        return self._setup.prefixes is not None and self._setup.prefixes.is_open

    def _prefill(self, numbers: range) -> None:
        prompts = [self._requests[number].prompt for number in numbers]
        patches_before = self._policy.work.vision_patches

        with self._timed("prefill_seconds"):
            prefix = self._compute_prefix(prompts)
            keys_L_2_H_S_D = torch.stack([torch.cat(pair) for pair in prefix.keys])
            if self._slots is None:
                self._slots = self._open_slots(keys_L_2_H_S_D)
                self._decoder = self._make_decoder(self._slots)
            is_shared = isinstance(self._slots, SharedSlots)
            at = 0
            for number, prompt in zip(numbers, prompts, strict=True):
                end = at + prompt.length
                keys = keys_L_2_H_S_D[:, :, :, at:end]
                self._starts[number] = _Start(
                    # copy: a view would keep the whole batch of prompts in memory while answers are decoded
                    keys_L_2_H_P_D=keys.contiguous() if is_shared else keys,
                    hidden_H=prefix.states_S_H[end - 1],
                )
                at = end

        self._counters.prefilled_tokens += at
        self._counters.vision_patches += self._policy.work.vision_patches - patches_before

    def _compute_prefix(self, prompts: Sequence[Prompt]) -> Prefix:
        packed = pack(prompts, [[] for _ in prompts]).to(self._device)
        prefixes = self._setup.prefixes
        if prefixes is None or not prefixes.is_open:
            prefix: Prefix = self._policy(Prefill(packed=packed))
            return prefix

        # compute every prompt with gradient, kept or not: autocast caches its weight casts, with or without a graph
        with torch.enable_grad():
            prefix = self._policy(Prefill(packed=packed))
        prefixes.put(packed, prefix)
        return Prefix.of([tensor.detach() for tensor in prefix.tensors])

    # ---- tokens

    def _decode(self, done: Callable[[int], None] | None) -> None:
        """Decode one more token in every slot in use."""
        assert self._decoder is not None
        busy = self._find_busy()
        with self._timed("decode_seconds"):
            lengths, tokens, positions = [], [], []
            is_shared = isinstance(self._slots, SharedSlots)
            for answer in self._answers:
                if answer is None:
                    tokens.append(self._setup.processing.tokens.pad)
                    positions.append(0)
                    continue
                prompt = self._requests[answer.request].prompt
                lengths.append(len(answer.tokens) + (0 if is_shared else prompt.length))
                tokens.append(answer.tokens[-1])
                positions.append(prompt.next_position + len(answer.tokens) - 1)
            token_S, position_S = torch.tensor([tokens, positions], device=self._device)

            hidden_S_H = self._decoder(token_S, position_S, max(lengths))

        self._counters.decode_calls += 1
        self._counters.slot_steps += len(self._answers)
        self._sample(hidden_S_H[torch.tensor(busy, device=self._device)], busy, done)

    def _sample(
        self, hidden_B_H: Tensor, slots: Sequence[int], done: Callable[[int], None] | None
    ) -> None:
        """Append a token to the answer in each of these slots; free those whose answer has ended."""
        answers = [answer for slot in slots if (answer := self._answers[slot]) is not None]
        with self._timed("decode_seconds"):
            turn_B = torch.tensor([len(answer.tokens) for answer in answers], device=self._device)
            random_B = self._random_S_T[torch.tensor(slots, device=self._device), turn_B]
            logits_B_V = self._head(hidden_B_H)
            greedy_B = self._find_greedy(answers) if self._sampling.with_greedy else None
            token_B, logp_B = draw_tokens(logits_B_V, self._sampling, random_B, greedy_B)
            tokens, logps = token_B.tolist(), logp_B.tolist()

        ended = 0
        for slot, answer, token, logp in zip(slots, answers, tokens, logps, strict=True):
            answer.tokens.append(token)
            answer.logps.append(logp)
            if token in self._ends or len(answer.tokens) == self._sampling.max_new_tokens:
                self._finished[answer.request, answer.member] = answer
                self._answers[slot] = None
                ended += 1

        self._counters.decoded_tokens += len(tokens)
        if ended and done:
            done(ended)

    def _find_greedy(self, answers: Sequence[_Answer]) -> Tensor:
        """True for the last member of each group."""
        last = self._sampling.group_size
        return torch.tensor([answer.member == last for answer in answers], device=self._device)

    def _shrink(self) -> None:
        """Drop free slots when no answer is waiting, if shapes may change."""
        busy = self._find_busy()
        has_many_free = 0 < len(busy) <= len(self._answers) // 2
        if self._slots is None or self._decoder is None or not has_many_free:
            return
        if self._decoder.needs_constant_shapes:
            return

        index = torch.tensor(busy, device=self._device)
        self._slots.keep(busy)
        self._random_S_T = self._random_S_T[index]
        self._answers = [self._answers[slot] for slot in busy]

    def _complete(self, answer: _Answer) -> Completion:
        tokenizer = self._setup.processing.tokenizer
        return Completion(
            token_ids=tuple(answer.tokens),
            logprobs=tuple(answer.logps),
            finish_reason="stop" if answer.tokens[-1] in self._ends else "length",
            prefill=self._requests[answer.request].prompt.prefill,
            text=tokenizer.decode(answer.tokens, skip_special_tokens=True),
            version=self._version,
        )

    def _timed(self, name: str) -> AbstractContextManager[None]:
        def add(seconds: float) -> None:
            setattr(self._counters, name, getattr(self._counters, name) + seconds)

        return timed(add, self._device)


def _shown_more_than_once(requests: Sequence[RolloutRequest]) -> set[str]:
    shown = Counter(key for request in requests for key in request.prompt.image_keys)
    return {key for key in shown if shown[key] > 1}
