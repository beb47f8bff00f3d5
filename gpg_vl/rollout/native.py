"""The native engine: the policy itself answers, in this process.

Image and prompt are computed once per prompt. The members of all groups then wait for slots: a slot whose answer has ended
takes the next one, so a long answer does not hold up the others.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpg_vl.clock import timed
from gpg_vl.models.layout import pack
from gpg_vl.models.load import Processing
from gpg_vl.models.policy import Policy
from gpg_vl.rollout.decode import BUCKET, GraphDecoder, Slots, decode
from gpg_vl.rollout.engine import EngineWork, Sampling, choose, truncate, uniforms
from gpg_vl.types import Completion, FinishReason, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A prompt that is computed and waits for its answers to be decoded."""

    keys_L_2_H_P_D: Tensor
    hidden_H: Tensor
    next_position: int


@dataclass(slots=True, kw_only=True)
class _Answer:
    """A completion while it is decoded."""

    prompt: int
    member: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machinery:
    """What an engine answers with, the same for all its calls."""

    policy: Policy
    processing: Processing
    prompts_per_batch: int
    slots: int
    autocast: torch.dtype | None
    work: EngineWork


class NativeEngine:
    """Samples with a `Policy` on its own device.

    prompts_per_batch: prompts computed together before decoding.
    slots: answers decoded together.
    autocast: dtype of the forward pass, the same as in training; None computes in the weights' own.
    """

    def __init__(
        self,
        policy: Policy,
        processing: Processing,
        *,
        prompts_per_batch: int,
        slots: int = 128,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.work = EngineWork()
        self._policy = policy
        self._machinery = _Machinery(
            policy=policy,
            processing=processing,
            prompts_per_batch=prompts_per_batch,
            slots=slots,
            autocast=autocast,
            work=self.work,
        )

    def sync(self, version: int) -> None:
        """Nothing to do: the engine reads the weights that are trained."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        draws: Sequence[int],
        done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        if not prompts:
            return []
        device, autocast = self._policy.never_sampled_V.device, self._machinery.autocast
        training = self._policy.training
        self._policy.eval()
        try:
            with (
                torch.no_grad(),
                torch.autocast(device.type, autocast, enabled=autocast is not None),
                self._policy.remembering_images(_shown_more_than_once(prompts)),
            ):
                return _Run(self._machinery, prompts, sampling, draws, done).answers()
        finally:
            self._policy.train(training)


class _Run:
    """One call of `generate`: who waits, who is in which slot, what is said so far."""

    def __init__(
        self,
        machinery: _Machinery,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        draws: Sequence[int],
        done: Callable[[int], None] | None,
    ) -> None:
        self._machinery, self._policy, self._work = machinery, machinery.policy, machinery.work
        self._prompts, self._sampling, self._draws, self._done = prompts, sampling, draws, done
        self._device = self._policy.never_sampled_V.device
        self._waiting = deque(
            _Answer(prompt=p, member=m)
            for p in range(len(prompts))
            for m in range(sampling.group_size)
        )
        self._ends = frozenset(machinery.processing.tokens.ends)
        self._finished: dict[tuple[int, int], _Answer] = {}
        self._starts: dict[int, _Start] = {}
        self._computed = 0
        count = min(machinery.slots, len(self._waiting))
        self._random_S_T = torch.zeros(
            count, sampling.max_new_tokens, dtype=torch.float64, device=self._device
        )
        self._offset_S = torch.zeros(count, dtype=torch.long, device=self._device)
        self._answers: list[_Answer | None] = [None] * count
        self._slots: Slots | None = None
        self._decoder: GraphDecoder | None = None

    def answers(self) -> list[tuple[Completion, ...]]:
        self._admit()
        while any(self._answers):
            self._decode()
            self._admit()
        size = self._sampling.group_size
        return [
            tuple(self._completion(self._finished[p, m]) for m in range(size))
            for p in range(len(self._prompts))
        ]

    def _admit(self) -> None:
        """Fill free slots with waiting answers. Their first tokens come from the prompts' last hidden states."""
        free = [s for s, answer in enumerate(self._answers) if answer is None]
        while free and self._waiting:
            admitted: list[tuple[int, _Answer]] = []
            while free and self._waiting:
                self._compute_prompts_up_to(self._waiting[0].prompt)
                admitted.append((free.pop(0), self._waiting.popleft()))
            self._take_places(admitted)
            hidden = torch.stack([self._starts[a.prompt].hidden_H for _, a in admitted])
            self._sample(hidden, [s for s, _ in admitted])
            self._forget_prompts_before(
                self._waiting[0].prompt if self._waiting else len(self._prompts)
            )
            free = [s for s, answer in enumerate(self._answers) if answer is None]
        if not self._waiting:
            self._shrink()

    def _take_places(self, admitted: Sequence[tuple[int, _Answer]]) -> None:
        with self._timed("decode_seconds"):
            slots_of: dict[int, list[int]] = {}
            for slot, answer in admitted:
                self._answers[slot] = answer
                slots_of.setdefault(answer.prompt, []).append(slot)
            for prompt, slots in slots_of.items():
                start = self._starts[prompt]
                if self._slots is None:
                    longest = max(p.length for p in self._prompts)
                    width = longest + self._sampling.max_new_tokens
                    self._slots = Slots(start.keys_L_2_H_P_D, slots=len(self._answers), width=width)
                    if self._device.type == "cuda":
                        self._decoder = GraphDecoder(
                            self._policy, self._slots, self._machinery.autocast
                        )
                self._slots.admit(start.keys_L_2_H_P_D, slots)
                self._offset_S[torch.tensor(slots, device=self._device)] = (
                    start.next_position - self._prompts[prompt].length
                )
            rows = [
                torch.from_numpy(uniforms(self._sampling, self._draws[a.prompt], a.member))
                for _, a in admitted
            ]
            index = torch.tensor([s for s, _ in admitted], device=self._device)
            self._random_S_T[index] = torch.stack(rows).to(self._device)

    def _compute_prompts_up_to(self, last: int) -> None:
        while self._computed <= last:
            part = range(
                self._computed,
                min(self._computed + self._machinery.prompts_per_batch, len(self._prompts)),
            )
            self._prefill(part)
            self._computed = part.stop

    def _prefill(self, part: range) -> None:
        prompts = [self._prompts[p] for p in part]
        before = self._policy.work.vision_patches
        with self._timed("prefill_seconds"):
            packed = pack(prompts, [[] for _ in prompts]).to(self._device)
            states_S_H, keys = self._policy.prefixes(packed)
            keys_L_2_H_S_D = torch.stack([torch.cat(pair) for pair in keys])
            at = 0
            for p, prompt in zip(part, prompts, strict=True):
                end = at + prompt.length
                self._starts[p] = _Start(
                    keys_L_2_H_P_D=keys_L_2_H_S_D[:, :, :, at:end],
                    hidden_H=states_S_H[end - 1],
                    next_position=prompt.next_position,
                )
                at = end
        self._work.prefilled_tokens += at
        self._work.vision_patches += self._policy.work.vision_patches - before

    def _forget_prompts_before(self, first: int) -> None:
        for p in [p for p in self._starts if p < first]:
            del self._starts[p]

    def _decode(self) -> None:
        """One more token for every slot in use."""
        assert self._slots is not None
        busy = [s for s, answer in enumerate(self._answers) if answer is not None]
        with self._timed("decode_seconds"):
            lengths = [
                self._prompts[a.prompt].length + len(a.tokens)
                for a in self._answers
                if a is not None
            ]
            tokens = [
                a.tokens[-1] if a is not None else self._machinery.processing.tokens.pad
                for a in self._answers
            ]
            token_S = torch.tensor(tokens, device=self._device)
            position_S = self._slots.length_S + self._offset_S
            width = self._slots.cache.shape[4]
            if self._decoder is None:
                self._slots.attended = max(lengths)
                hidden_S_H = decode(self._policy, self._slots, token_S, position_S)
            else:
                self._slots.attended = min(width, -(-max(lengths) // BUCKET) * BUCKET)
                hidden_S_H = self._decoder(token_S, position_S)
        self._work.decode_calls += 1
        self._work.slot_steps += len(self._answers)
        self._sample(hidden_S_H[torch.tensor(busy, device=self._device)], busy)

    def _sample(self, hidden_B_H: Tensor, slots: Sequence[int]) -> None:
        """Append a token to the answer in each of these slots; free those whose answer has ended."""
        answers = [answer for s in slots if (answer := self._answers[s]) is not None]
        with self._timed("decode_seconds"):
            turn_B = torch.tensor([len(a.tokens) for a in answers], device=self._device)
            random_B = self._random_S_T[torch.tensor(slots, device=self._device), turn_B]
            token_B, logp_B = draw(self._policy, hidden_B_H, self._sampling, random_B)
            tokens, logps = token_B.tolist(), logp_B.tolist()
        ended = 0
        for slot, answer, token, logp in zip(slots, answers, tokens, logps, strict=True):
            answer.tokens.append(token)
            answer.logps.append(logp)
            if token in self._ends or len(answer.tokens) == self._sampling.max_new_tokens:
                self._finished[answer.prompt, answer.member] = answer
                self._answers[slot] = None
                ended += 1
        self._work.decoded_tokens += len(tokens)
        if ended and self._done:
            self._done(ended)

    def _shrink(self) -> None:
        """Nobody waits: where shapes may change, half-empty slots are given up."""
        busy = [s for s, answer in enumerate(self._answers) if answer is not None]
        if (
            self._slots is None
            or self._decoder is not None
            or not 0 < len(busy) <= len(self._answers) // 2
        ):
            return
        index = torch.tensor(busy, device=self._device)
        self._slots.keep(busy)
        self._random_S_T, self._offset_S = self._random_S_T[index], self._offset_S[index]
        self._answers = [self._answers[s] for s in busy]

    def _completion(self, answer: _Answer) -> Completion:
        reason: FinishReason = "stop" if answer.tokens[-1] in self._ends else "length"
        return Completion(
            token_ids=tuple(answer.tokens),
            logprobs=tuple(answer.logps),
            finish_reason=reason,
            prefill=self._prompts[answer.prompt].prefill,
            text=self._machinery.processing.tokenizer.decode(
                answer.tokens, skip_special_tokens=True
            ),
        )

    def _timed(self, what: str) -> AbstractContextManager[None]:
        return timed(
            lambda seconds: setattr(self._work, what, getattr(self._work, what) + seconds),
            self._device,
        )


def _shown_more_than_once(prompts: Sequence[Prompt]) -> set[str]:
    seen = Counter(key for prompt in prompts for key in prompt.image_keys)
    return {key for key, times in seen.items() if times > 1}


def draw(
    policy: Policy, hidden_B_H: Tensor, sampling: Sampling, random_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens, and their log-probs under the distribution that they were drawn from (under the model if greedy)."""
    logits_B_V = policy.logits(hidden_B_H, temperature=sampling.temperature or 1.0)
    logp_B_V = torch.log_softmax(logits_B_V, dim=-1)
    if sampling.temperature == 0:
        token_B = logp_B_V.argmax(dim=-1)
    else:
        if sampling.top_k > 0 or sampling.top_p < 1.0:
            logp_B_V = torch.log_softmax(
                truncate(logp_B_V, top_k=sampling.top_k, top_p=sampling.top_p), dim=-1
            )
        token_B = choose(logp_B_V, random_B)
    return token_B, logp_B_V.gather(1, token_B[:, None])[:, 0]
