"""Draws inside ``generate()`` of the transformers library: exact, seeded per sequence, with their log-probabilities.

``ExactSampling`` is passed as ``custom_generate``: the library prepares everything as ever, and runs its own loop with
one logits processor, ``ExactDraws``. That draws by ``categorical`` and leaves one finite logit, so that whatever the
loop does to choose a token, ours comes out. ``ExactDraws`` alone, as a ``logits_processor``, serves releases before
4.56, which take no function as custom_generate. The library itself is never imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lastlayer import _draw_arguments
from lastlayer._draw_arguments import DrawOptions, Numbers
from lastlayer._draws import Rules
from lastlayer.torch.logits import logit_statistics
from lastlayer.torch.sampling import Sample, categorical, seed_of

__all__ = ["ExactDraws", "ExactSampling"]

# the library's truncations, what they are here, and the attribute that holds the number
WARPERS = {
    "TemperatureLogitsWarper": ("temperature", "temperature"),
    "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"),
    "MinPLogitsWarper": ("min_p", "min_p"),
    "TypicalLogitsWarper": ("typical_p", "mass"),
    "EpsilonLogitsWarper": ("epsilon_cutoff", "epsilon"),
    "EtaLogitsWarper": ("eta_cutoff", "epsilon"),
}
AFTER_THE_END = {"index": -1}  # everything else is 0 there


class ExactDraws:
    """A logits processor that draws: of each row of scores it leaves the logit of the class drawn, the others are -inf.

    For one call of ``generate``: make another for the next.

    Args:
        seed: an integer of 64 bits, or one per row; the draw of the first token is step 0, and so on.
        offset: what row it is: without it a row's index if there is one seed, 0 if each has its own.
        generator: instead of seed, a generator that a seed is drawn from; None for PyTorch's default one.
        processors: logits processors that change the scores before the draw. What they do is part of what is drawn
            from, and no part of ``logprob``.
        options: temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, top_n_sigma and order, as in
            ``categorical``.

    Raises:
        TypeError: an option that is not one of these.
        ValueError: seed and generator are both given; when called, a second time for the same place, or for other rows.

    Note:
        The finite logit is the log-probability of the draw under the distribution drawn from: with
        ``output_scores=True`` and this processor last, ``compute_transition_scores`` gives just these numbers.

    Example:
        >>> draws = ExactDraws(top_p=0.9, seed=3)
        >>> draws(torch.tensor([[7]]), torch.tensor([[0.0, 1.0, 2.0, 5.0]])).isfinite()
        tensor([[False, False, False,  True]])
        >>> draws.sample.index, draws.sample.logprob
        (tensor([[3]]), tensor([[-0.0722]]))
    """

    def __init__(
        self,
        *,
        seed: Numbers | None = None,
        offset: Numbers | None = None,
        generator: torch.Generator | None = None,
        processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
        **options: Any,
    ) -> None:
        check_options(options)
        self.processors, self.options = list(processors), options
        self.offset, self.seed = offset, seed
        self._seed_of = seed_of(seed, generator, torch.device("cpu") if generator is None else generator.device)
        self._steps: list[Sample] = []
        self._shape = (-1, -1)

    @property
    def sample(self) -> Sample:
        """The draws so far, each field (N, T): of T tokens of N sequences. Past a sequence's end they go on."""
        if not self._steps:
            raise RuntimeError("nothing has been drawn yet: sample is there after generate()")
        return Sample(*(torch.stack(each, -1) for each in zip(*self._steps, strict=True)))

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token of each row; return scores (N, V) that are finite at it alone."""
        rows, length = input_ids.shape
        if self._steps and (rows, length) != self._shape:
            raise ValueError(
                f"input_ids has shape {(rows, length)}, expected {self._shape}: one ExactDraws serves one generate()"
            )
        self._shape = (rows, length + 1)
        if self.seed is None:
            self.seed = self._seed_of()
        changed = scores.clone() if self.processors else scores
        for processor in self.processors:
            changed = processor(input_ids, changed)
        step: DrawOptions = {"seed": self.seed, "offset": self.offset, "step": len(self._steps)}
        found = categorical(changed, **step, **self.options)
        if self.processors:
            model = logit_statistics(scores, found.index, rank=True)
            found = found._replace(logprob=model.logprob, rank=model.rank, logsumexp=model.logsumexp)
        self._steps.append(found)
        left = torch.full_like(changed, -math.inf)
        return left.scatter_(-1, found.index[:, None], found.sampled_logprob[:, None].to(left.dtype))


class ExactSampling:
    """Exact draws for ``model.generate(..., custom_generate=ExactSampling(seed=...))``, with their log-probabilities.

    All that generate() is told holds: its temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff and eta_cutoff
    are done by ``categorical``, in the library's order; penalties and other processors, and truncations that are not
    among these, stay the library's own and come before. ``do_sample=False`` takes the largest logit. After the call
    ``sample`` has the draws.

    Args:
        seed: an integer of 64 bits, or one per prompt, or one per sequence returned. With one each, a sequence does
            not depend on the others in the batch, as far as its logits do not.
        offset: what row it is, one per sequence. Without it, the sequence's index if there is one seed, the number
            among those of its prompt if each has its own.
        generator: instead of seed, a generator that a seed is drawn from at each call; None for PyTorch's default one.
        options: as in ``ExactDraws``; they replace what generate() is told.

    Raises:
        TypeError: an option that is not one of these.
        ValueError: seed and generator are both given; when called, beams are asked for, or numbers do not fit the rows.

    Note:
        ``sample``: a ``Sample`` whose fields are (N, T) for N sequences of at most T new tokens. After the token that
        ends a sequence the index is -1 and all else 0. logprob, rank and logsumexp are the model's own, before
        penalties; kept_mass is what softmax of the scores gives to what was kept, after them. The loop is the
        library's ``_sample``, a private method, whose signature is the one that a custom_generate has. Release 5.23
        drops a ``streamer`` where there is a custom_generate: to stream, pass ``ExactDraws`` as a logits processor. Of
        equal logits at the k-th place the library's top_k keeps all, ours the first ones.

    Example:
        Needs transformers; examples/generate.py runs one::

            sampling = ExactSampling(seed=[11, 12])
            model.generate(**prompts, do_sample=True, top_p=0.9, custom_generate=sampling)
            sampling.sample.logprob.sum(-1)
    """

    def __init__(
        self,
        *,
        seed: Numbers | None = None,
        offset: Numbers | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        check_options(options)
        seed_of(seed, generator, torch.device("cpu"))
        self.seed, self.offset, self.generator, self.options = seed, offset, generator, options
        self._sample: Sample | None = None

    @property
    def sample(self) -> Sample:
        """The draws of the last call."""
        if self._sample is None:
            raise RuntimeError("nothing has been drawn yet: sample is there after generate()")
        return self._sample

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Run the library's loop of sampling with exact draws; what generate() calls."""
        if (generation_config.num_beams or 1) > 1:
            raise ValueError(f"num_beams = {generation_config.num_beams}: exact draws are for one sequence per row")
        others, options = split(list(logits_processor))
        if not generation_config.do_sample:
            options["temperature"] = 0.0
        seed, offset = per_sequence(self.seed, self.offset, len(input_ids), generation_config.num_return_sequences or 1)
        draws = ExactDraws(
            seed=seed, offset=offset, generator=self.generator, processors=others, **(options | self.options)
        )
        ended: list[Tensor] = []
        found = model._sample(
            input_ids,
            logits_processor=type(logits_processor)([draws]),
            stopping_criteria=recorded(stopping_criteria, ended),
            generation_config=generation_config,
            **model_kwargs,
        )
        self._sample = until_the_end(draws.sample, ended)
        return found


def check_options(options: dict[str, Any]) -> None:
    """Raise unless these are options of temperature and truncation."""
    unknown = set(options) - {*Rules._fields, "order"}
    if unknown:
        raise TypeError(f"unexpected option {min(unknown)!r}, expected one of {', '.join((*Rules._fields, 'order'))}")


def split(processors: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the processors that stay, and the truncations at their end as options in their order.

    A truncation that keeps more than one class at least (for beams) is not one of ours, nor is one done twice.
    """
    options: dict[str, Any] = {}
    rest = list(processors)
    while rest:
        name, attribute = WARPERS.get(type(rest[-1]).__name__, ("", ""))
        if type(rest[-1]).__name__ != "LogitNormalization":  # which changes no distribution
            if not name or name in options or getattr(rest[-1], "min_tokens_to_keep", 1) > 1:
                break
            number = float(getattr(rest[-1], attribute))
            options[name] = int(number) if name == "top_k" else number
        rest.pop()
    return rest, ({"order": tuple(reversed(options))} | options if options else {})


def per_sequence(seed: Any, offset: Any, rows: int, returned: int) -> tuple[Any, Any]:
    """Return seeds and offsets of sequences, of which ``returned`` in a row belong to one prompt."""
    if seed is None:
        return None, offset
    seeds = _draw_arguments.integers("seed", seed)
    if seeds.ndim == 0 or returned == 1 or len(seeds) == rows:
        return seed, offset
    if seeds.shape != (rows // returned,):
        raise ValueError(
            f"seed has shape {seeds.shape}, expected one per prompt, {rows // returned}, or per row, {rows}"
        )
    number = torch.arange(rows) % returned
    return seeds.repeat(returned), number if offset is None else offset


def recorded(criteria: Any, ended: list[Tensor]) -> Any:
    """Return the stopping criteria as they are, but writing down which sequences have ended after each token."""

    class Recorded(type(criteria)):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            done = super().__call__(input_ids, scores, **kwargs)
            ended.append(done)
            return done

    return Recorded(criteria)


def until_the_end(sample: Sample, ended: list[Tensor]) -> Sample:
    """Return the draws without those behind a sequence's end, nor places where all have ended."""
    done = torch.stack(ended, -1).cumsum(-1) > 0
    alive = torch.cat([torch.ones_like(done[:, :1]), ~done[:, :-1]], -1)
    places = int(alive.any(0).sum())
    alive = alive[:, :places]
    return Sample(
        *(
            torch.where(alive, field[:, :places], torch.tensor(AFTER_THE_END.get(name, 0), dtype=field.dtype))
            for name, field in zip(Sample._fields, sample, strict=True)
        )
    )
