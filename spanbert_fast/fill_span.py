"""`FillSpan`: fills runs of mask tokens from the masked-LM or the span boundary head, or both."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypedDict, Unpack, overload

import torch
from torch.nn import functional as F
from transformers import BatchEncoding, PreTrainedTokenizerBase

from spanbert_fast.models import SpanBertForMaskedLM
from spanbert_fast.models.evaluation_mode import evaluation_mode
from spanbert_fast.models.span_objectives import SpanObjectives
from spanbert_fast.values import SPACES, FilledSpan, Filling

__all__ = ["FillSpan", "FilledSpan", "Filling"]

_HEADS = ("mlm", "sbo", "both")


class _Options(TypedDict, total=False):
    """Keyword arguments of `FillSpan.__call__`, for type checkers."""

    head: str
    top_k: int
    iterative: bool
    batch_size: int


class FillSpan:
    """Fill runs of mask tokens.

    A run is a row of neighbouring mask tokens. One pass predicts its tokens independently of each
    other, and the fillings are exactly the best by the product of these probabilities. With
    `iterative`, tokens are filled one by one, each given those before.

    The span boundary head (Joshi et al. 2020, section 3.2) predicts the token at place k of a run
    from the two tokens beside the run. It was not trained on, and does not predict, runs that touch
    the start or the end of the text, nor the places from `config.max_span_targets` on.

        >>> from transformers import AutoTokenizer
        >>> from spanbert_fast import SpanBertForPreTraining
        >>> model = SpanBertForPreTraining.from_pretrained("runs/first/model")
        >>> fill = FillSpan(model, AutoTokenizer.from_pretrained("runs/first/model"))
        >>> len(fill("The [MASK] [MASK] fox", head="both", top_k=2)[0].spans[0].tokens)
        2

    Args:
        model: a SpanBertForPreTraining, or what `AutoModelForSpanPreTraining` gives; or a
            SpanBertForMaskedLM, which has head="mlm" only.
        tokenizer: its fast tokenizer, with a mask token.
    """

    def __init__(
        self,
        model: SpanObjectives | SpanBertForMaskedLM,
        tokenizer: PreTrainedTokenizerBase,
    ):
        if not isinstance(model, (SpanObjectives, SpanBertForMaskedLM)):
            raise TypeError(
                "model must be a SpanBertForPreTraining or a SpanBertForMaskedLM, "
                f"got {type(model).__name__}"
            )
        if tokenizer.mask_token_id is None:
            raise ValueError("tokenizer must have a mask token, got None")
        if not tokenizer.is_fast:
            raise ValueError(f"tokenizer must be a fast one, got {type(tokenizer).__name__}")
        ids, size = list(tokenizer.get_vocab().values()), model.config.vocab_size
        if max(ids) >= size:
            raise ValueError(
                f"tokenizer must not have more tokens than the model's vocab_size = {size}, "
                f"got {max(ids) + 1}"
            )
        self.model, self.tokenizer = model, tokenizer
        # a filling never holds special tokens, nor rows of the vocabulary that have no token
        self._never = torch.ones(size, dtype=torch.bool)
        self._never[list({*ids} - {*tokenizer.all_special_ids})] = False

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self, texts: str, **options: Unpack[_Options]
    ) -> list[Filling]: ...

    @overload
    def __call__(
        self, texts: Sequence[str], **options: Unpack[_Options]
    ) -> list[list[Filling]]: ...

    @torch.no_grad()
    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        head: str = "mlm",
        top_k: int = 5,
        iterative: bool = False,
        batch_size: int = 64,
    ) -> list[Filling] | list[list[Filling]]:
        """The `top_k` best fillings of each text, best first.

        Args:
            texts: a text, or several, each with at least one mask token.
            head: "mlm", "sbo", or "both": the renormalised product of the two heads' probabilities,
                or the masked-LM head alone where the other has no prediction.
            top_k: number of fillings of each text.
            iterative: fill the surest place and encode again, with a beam of `top_k` fillings.
            batch_size: sequences that are encoded at once, packed.

        Returns:
            A list of fillings; for several texts, a list of such lists.

        Raises:
            ValueError: the head is unknown, the model lacks it, or it does not predict a run; a
                text has no mask or is longer than the model reads.
            FloatingPointError: the model's scores are not finite.
        """
        if head not in _HEADS:
            raise ValueError(f"head must be one of {', '.join(_HEADS)}, got {head!r}")
        if head != "mlm" and not isinstance(self.model, SpanObjectives):
            raise ValueError(
                f'head must be "mlm" with a {type(self.model).__name__}, which has no span '
                f"boundary head, got {head!r}"
            )
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        given = [texts] if isinstance(texts, str) else list(texts)
        encoded = [self._encode(index, text) for index, text in enumerate(given)]
        search = self._beams if iterative else self._independent
        with evaluation_mode(self.model):
            hypotheses = search([e["input_ids"] for e in encoded], head, top_k, batch_size)
        filled = [
            [self._filling(text, encoding, hypothesis) for hypothesis in found]
            for text, encoding, found in zip(given, encoded, hypotheses, strict=True)
        ]
        return filled[0] if isinstance(texts, str) else filled

    def _encode(self, index: int, text: str) -> BatchEncoding:
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        if self.tokenizer.mask_token_id not in encoding["input_ids"]:
            raise ValueError(
                f"texts[{index}] must hold the mask token {self.tokenizer.mask_token}, got {text!r}"
            )
        return encoding

    def _independent(self, sequences, head, top_k, batch_size) -> list[list["_Hypothesis"]]:
        """Exactly the best by the product: extends the best prefixes place by place."""
        found: list[list[_Hypothesis]] = []
        for token_ids, log_p in self._predict(sequences, head, batch_size):
            values, choices = self._best(log_p, top_k)
            scores, paths = values.new_zeros(1), choices.new_zeros((1, 0))
            for value, choice in zip(values, choices, strict=True):
                joint = (scores[:, None] + value).flatten()
                scores, best = joint.topk(min(top_k, len(joint)))
                prefix, last = paths[best // len(value)], choice[best % len(value)]
                paths = torch.cat([prefix, last[:, None]], dim=1)
            places = self._masked(token_ids)
            each = log_p.gather(1, paths.T).T.tolist()
            found.append([])
            for path, log_probabilities in zip(paths.tolist(), each, strict=True):
                filled = _replaced(token_ids, dict(zip(places, path, strict=True)))
                by_place = dict(zip(places, log_probabilities, strict=True))
                found[-1].append(_Hypothesis(filled, by_place))
        return found

    def _beams(self, sequences, head, top_k, batch_size) -> list[list["_Hypothesis"]]:
        """Fills the surest place first. All hypotheses of a text have the same number filled."""
        beams = [[_Hypothesis(list(token_ids), {})] for token_ids in sequences]
        while True:
            open_beams = [beam for beam in beams if self._masked(beam[0].token_ids)]
            if not open_beams:
                return beams
            flat = [hypothesis.token_ids for beam in open_beams for hypothesis in beam]
            predictions = iter(self._predict(flat, head, batch_size))
            for beam in open_beams:
                grown: dict[tuple[int, ...], _Hypothesis] = {}
                for hypothesis in beam:
                    token_ids, log_p = next(predictions)
                    surest = int(log_p.amax(1).argmax())
                    place = self._masked(token_ids)[surest]
                    values, choices = (t.tolist() for t in self._best(log_p[surest], top_k))
                    for value, choice in zip(values, choices, strict=True):
                        by_place = {**hypothesis.log_probabilities, place: value}
                        filled = _Hypothesis(_replaced(token_ids, {place: choice}), by_place)
                        key = tuple(filled.token_ids)
                        if key not in grown or filled.score > grown[key].score:
                            grown[key] = filled
                beam[:] = sorted(grown.values(), key=lambda h: -h.score)[:top_k]

    def _masked(self, token_ids: list[int]) -> list[int]:
        return [p for p, token in enumerate(token_ids) if token == self.tokenizer.mask_token_id]

    def _runs(self, token_ids: list[int]) -> list[tuple[int, int]]:
        """(first, last) place of every run of masks."""
        runs: list[tuple[int, int]] = []
        for place in self._masked(token_ids):
            if runs and runs[-1][1] == place - 1:
                runs[-1] = (runs[-1][0], place)
            else:
                runs.append((place, place))
        return runs

    def _best(self, log_p: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, tokens) of the best along the last axis, never a token that is ruled out."""
        return log_p.topk(min(top_k, int((~self._never).sum())))

    def _predict(self, sequences, head, batch_size):
        """Yield (token_ids, log-probabilities (masks, vocab_size) fp32) of every sequence."""
        for start in range(0, len(sequences), batch_size):
            batch = sequences[start : start + batch_size]
            counts = [len(self._masked(token_ids)) for token_ids in batch]
            yield from zip(batch, self._predict_batch(batch, head).split(counts), strict=True)

    def _predict_batch(self, batch: list[list[int]], head: str) -> torch.Tensor:
        """(masks of all sequences, vocab_size), -inf for what a filling never holds."""
        device, model = self.model.device, self.model
        starts = list(accumulate(map(len, batch), initial=0))
        masked = [s + p for s, ids in zip(starts, batch, strict=False) for p in self._masked(ids)]
        boundaries, lengths, answers = self._questions([] if head == "mlm" else batch, starts, head)
        inputs = model.encoder_inputs(
            input_ids=torch.tensor(sum(batch, []), device=device),
            cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
            max_seqlen=max(map(len, batch)),
        )
        needed = torch.tensor(masked + boundaries, device=device)
        hidden = model.encode(inputs, rows=needed).hidden_states
        log_p = model.masked_lm_logits(hidden[: len(masked)]).float().log_softmax(-1)
        if answers:
            assert isinstance(model, SpanObjectives)  # no other head has questions
            heads = model.pretraining_heads()
            cu_lengths = list(accumulate(lengths, initial=0))
            states = heads.span_boundary(
                hidden,
                torch.arange(len(masked), len(hidden), device=device).view(-1, 2),
                torch.tensor(cu_lengths, dtype=torch.int32, device=device),
                len(answers),
            )
            scores = F.linear(states, heads.decoder_weight, heads.span_boundary.bias)
            sbo = scores.float().log_softmax(-1)
            log_p[answers] = sbo if head == "sbo" else (log_p[answers] + sbo).log_softmax(-1)
        if not log_p.isfinite().all():
            raise FloatingPointError("the model's scores are not finite (NaN or infinity)")
        return log_p.masked_fill(self._never.to(device), float("-inf"))

    def _questions(
        self, batch: list[list[int]], starts: list[int], head: str
    ) -> tuple[list[int], list[int], list[int]]:
        """For the span boundary head: rows of the boundaries (left, right, left, ...), places per
        span, and which masks they answer; raises where head is "sbo" and it has no answer."""
        limit, special = self.model.config.max_span_targets, set(self.tokenizer.all_special_ids)
        boundaries, lengths, answers, mask = list[int](), list[int](), list[int](), 0
        for start, token_ids in zip(starts, batch, strict=False):
            for first, last in self._runs(token_ids):
                length = last - first + 1
                beside = token_ids[first - 1 : first] + token_ids[last + 1 : last + 2]
                known = min(length, limit) if len(beside) == 2 and not special & set(beside) else 0
                if known < length and head == "sbo":
                    raise ValueError(
                        'head must be "mlm" or "both" for a run of masks that touches the start '
                        f"or the end of the text or is longer than max_span_targets = {limit}, "
                        f'got "sbo" and a run of {length}'
                    )
                if known:
                    boundaries += [start + first - 1, start + last + 1]
                    lengths.append(known)
                    answers += range(mask, mask + known)
                mask += length
        return boundaries, lengths, answers

    def _filling(self, text: str, encoding: BatchEncoding, hypothesis: "_Hypothesis") -> Filling:
        spans, offsets = [], encoding["offset_mapping"]
        for first, last in reversed(self._runs(encoding["input_ids"])):  # offsets before it hold
            token_ids = tuple(hypothesis.token_ids[first : last + 1])
            tokens = tuple(self.tokenizer.convert_ids_to_tokens(list(token_ids)))
            filling = self.tokenizer.convert_tokens_to_string(list(tokens))
            left, right = text[: offsets[first][0]], text[offsets[last][1] :]
            text = _joined(left, filling, tokens[0]) + right
            each = tuple(hypothesis.log_probabilities[p] for p in range(first, last + 1))
            spans.append(FilledSpan(filling, token_ids, tokens, each))
        return Filling(text, hypothesis.score, tuple(reversed(spans)))


class _Hypothesis(NamedTuple):
    token_ids: list[int]
    log_probabilities: dict[int, float]  # of each place that is filled

    @property
    def score(self) -> float:
        return sum(self.log_probabilities.values())


def _joined(left: str, filling: str, first_token: str) -> str:
    """A text and what continues it, with a space between them where the first token has one."""
    if filling.startswith("##"):
        return left.rstrip() + filling[2:]
    if first_token.startswith(SPACES):
        # a mask token may take the space in front of it, and a tokenizer leave out the first one
        filling = filling.removeprefix(" ")
        return left + filling if not left or left[-1].isspace() else f"{left} {filling}"
    return left + filling


def _replaced(token_ids: list[int], by_place: dict[int, int]) -> list[int]:
    return [by_place.get(place, token) for place, token in enumerate(token_ids)]
