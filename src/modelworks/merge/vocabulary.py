"""Tokenizers that differ: whose tokens the result has, and which row of which model embeds each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import JsonObject, Model
from modelworks.core.registry import nearest
from modelworks.merge.spec import MergeSpec, NoEmbedding, TokenizerChoice, TokenRule
from modelworks.merge.tokenizer import TokenReader, Tokens, clashes, digest_of
from modelworks.weights.reader import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|tok_embeddings)\.(weight|bias)$"
)
# Instead of a place among the members: no row but zeros, the mean of the members that have the token, or the mean of
# all tokens.
_ZERO, _SOME, _ALL = -1, -2, -3


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return _VOCABULARY.search(name) is not None


def vocabulary_rows(tensors: Mapping[str, TensorInfo]) -> int:
    """How many rows a model's embedding has; 0 if it has none."""
    return next((info.shape[0] for name, info in tensors.items() if is_vocabulary(name) and info.shape), 0)


@dataclass(frozen=True, slots=True)
class Member:
    """A model whose embeddings take part: under the name used in the spec, with so many rows."""

    name: str
    model: Model
    rows: int
    tokens: Tokens


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of the result.

    A model's row of a token that it does not have is the base's, else that of the only model which has it, else the
    mean of those which have it; 0 if none has. A row of no token is that of the model whose tokenizer it is.
    """

    owner: int  # among the members
    members: tuple[Member, ...]  # the base first, if there is one, then the models
    has_base: bool
    ids: Mapping[str, int]
    size: int
    # From here on each row is the mean of those before it.
    padded_from: int
    # By token: a member and its row (or _ZERO), and whether it is for all members.
    rules: Mapping[str, tuple[int, int, bool]]
    # The entries of tokens that the owner's tokenizer.json does not have.
    added: tuple[JsonObject, ...] = field(default=())

    @property
    def moves(self) -> bool:
        """Whether any embedding is another than in its own model."""
        first = self.members[0]
        same = all(member.tokens is first.tokens and member.rows == self.size for member in self.members)
        return not same or bool(self.rules or self.added) or self.padded_from < self.size

    @cached_property
    def _tables(self) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """For each member, of every row of the result: from which member it is, and which row; and its own rows."""
        import torch

        tokens: list[str | None] = [None] * self.size
        for token, place in self.ids.items():
            if place < self.size:
                tokens[place] = token
        own = []
        for member in self.members:
            ids = torch.tensor(list(map(member.tokens.ids.get, tokens, repeat(-1))), dtype=torch.int64)  # type: ignore[arg-type] # None is in no vocabulary
            own.append(torch.where(ids < member.rows, ids, -1))
        present = torch.stack([rows >= 0 for rows in own])
        count, first = present.sum(0), present.int().argmax(0)
        donor = torch.where(count == 1, first, torch.where(count == 0, _ZERO, _SOME))
        if self.has_base:
            donor = torch.where(present[0], 0, donor)
        rows = torch.stack(own).gather(0, donor.clamp(min=0)[None])[0]
        # Rows of no token: as they are in the model whose tokenizer it is.
        unnamed = torch.tensor([token is None for token in tokens])
        unnamed[self.members[self.owner].rows :] = False
        donor[unnamed], rows[unnamed] = self.owner, torch.arange(self.size)[unnamed]
        forced = torch.zeros(self.size, dtype=torch.bool)
        for token, (member_place, row, force) in self.rules.items():
            place = self.ids[token]
            donor[place], rows[place], forced[place] = member_place, row, force
        donor[self.padded_from :] = _ALL
        tables = []
        for place, ids in enumerate(own):
            has = (ids >= 0) & ~forced
            tables.append((torch.where(has, place, donor), torch.where(has, ids, rows)))
        return tables, own

    def read(self, member: int, width: int, start: int, stop: int, stored: Callable[[int, int, int], Tensor]) -> Tensor:
        """Elements `start` to `stop` of a member's aligned tensor, float32 and flat; only rows of these are read.

        Args:
            width: elements a row.
            stored: (member, start, stop) reads elements of the tensor as it is in that member.
        """
        first, last = start // width, -(-stop // width)
        found = self._rows(member, first, last, width, stored)
        return found.view(-1)[start - first * width : stop - first * width]

    def _rows(
        self, member: int, first: int, last: int, width: int, stored: Callable[[int, int, int], Tensor]
    ) -> Tensor:
        import torch

        tables, own = self._tables
        donors, rows = (table[first:last] for table in tables[member])
        kinds = torch.unique(donors).tolist()
        if len(kinds) == 1 and kinds[0] >= 0:
            return _gather(kinds[0], rows, width, stored)
        result = torch.zeros(last - first, width)
        for donor in kinds:
            here = (donors == donor).nonzero().view(-1)
            if donor >= 0:
                result[here] = _gather(donor, rows[here], width, stored)
            elif donor == _ALL:
                result[here] = self._mean(member, width, stored)
            elif donor == _SOME:
                total, count = torch.zeros(len(here), width), torch.zeros(len(here), 1)
                for place, ids in enumerate(own):
                    ids = ids[first:last][here]
                    total[ids >= 0] += _gather(place, ids[ids >= 0], width, stored)
                    count += (ids >= 0)[:, None]
                result[here] = total / count
        return result

    def _mean(self, member: int, width: int, stored: Callable[[int, int, int], Tensor]) -> Tensor:
        """Of all tokens' rows; a new row so made changes the other tokens' chances least (Hewitt 2021)."""
        import torch

        total = torch.zeros(width, dtype=torch.float64)
        for first in range(0, self.padded_from, 1024):
            last = min(first + 1024, self.padded_from)
            total += self._rows(member, first, last, width, stored).sum(0, dtype=torch.float64)
        return (total / self.padded_from).float()


def _gather(member: int, rows: Tensor, width: int, stored: Callable[[int, int, int], Tensor]) -> Tensor:
    """Rows in any order, each read once, neighbours together."""
    import torch

    if not len(rows):
        return torch.zeros(0, width)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and torch.equal(rows, torch.arange(first, last + 1)):
        return stored(member, first * width, (last + 1) * width).float().view(-1, width)
    wanted, places = torch.unique(rows, return_inverse=True)
    breaks = ((wanted[1:] - wanted[:-1]) != 1).nonzero().view(-1) + 1
    runs = wanted.tensor_split(breaks)
    read = [stored(member, int(run[0]) * width, (int(run[-1]) + 1) * width).float() for run in runs]
    return torch.cat(read).view(-1, width)[places]


def plan_vocabulary(
    spec: MergeSpec, named: Sequence[tuple[str, Model, int]], problems: list[Problem], warnings: list[str]
) -> Vocabulary | None:
    """Whose tokens the result has, with every problem; None: the frame's, and all agree.

    Args:
        named: the frame, then the models: name, model, rows of its embedding.
    """
    if spec.tokenizer is None and len({digest_of(model.path) for _, model, _ in named}) == 1:
        return None
    reader, members = TokenReader(), []
    for name, model, rows in named:
        try:
            tokens = reader.read(model.path)
        except (Invalid, OSError) as error:
            problems.append(Problem(name, str(error), code="damaged_file"))
            continue
        if tokens is not None:
            members.append(Member(name, model, rows, tokens))
        elif spec.tokenizer is not None:
            what = "has no tokenizer.json, so its tokens cannot be aligned"
            problems.append(Problem(name, what, "save its tokenizer as a fast one", "tokenizer_conflict"))
    if spec.tokenizer is None:
        for member in members[1:] if members and members[0].name == named[0][0] else ():
            frame = members[0]
            problems += clashes(member.name, member.tokens, frame.name, frame.tokens, warnings)
        return None
    if len(members) < len(named):
        return None
    choice = spec.tokenizer if isinstance(spec.tokenizer, TokenizerChoice) else TokenizerChoice(source=spec.tokenizer)
    # Without a base the frame is the first model, and takes part only as such.
    has_base = spec.base is not None
    return _aligned(choice, tuple(members if has_base else members[1:]), has_base, problems, warnings)


def _aligned(
    choice: TokenizerChoice, members: tuple[Member, ...], has_base: bool, problems: list[Problem], warnings: list[str]
) -> Vocabulary | None:
    by_name = {member.name.partition("+")[0]: place for place, member in reversed(list(enumerate(members)))}
    by_name |= {member.name: place for place, member in enumerate(members)}
    policies = {"base": 0, "union": 0, "first": int(has_base)}
    owner = policies.get(choice.source, by_name.get(choice.source))
    if owner is None:
        what = f"{choice.source!r} is neither a policy nor one of the models"
        problems.append(Problem("tokenizer", what, nearest(choice.source, [*policies, *by_name])))
        return None
    own = members[owner]
    ids, added = dict(own.tokens.ids), list[JsonObject]()
    missing = _missing(ids, members if choice.source == "union" else ())
    missing |= {token: missing.get(token) for token in choice.tokens if token not in ids}
    for token, entry in missing.items():
        ids[token] = max(ids.values()) + 1 if not added else int(str(added[-1]["id"])) + 1
        added.append({**(entry or _plain(token)), "id": ids[token]})
    if plain := sum(not entry["special"] for entry in added):
        warnings.append(f"tokenizer: {plain} tokens are added, which text is split at before {own.name}'s own tokens")
    rules = {}
    for token, rule in choice.tokens.items():
        found = _ruled(token, rule, members, by_name)
        if isinstance(found, str):
            problems.append(Problem(f"tokenizer.tokens.{token}", found))
        else:
            rules[token] = (*found, rule.force)
    used = 1 + max(place for place in ids.values() if place < own.rows or added)
    size = max(own.rows, used if added else 0)
    if multiple := choice.pad_to_multiple_of:
        size = -(-used // multiple) * multiple
    return Vocabulary(owner, members, has_base, ids, size, used if multiple else size, rules, tuple(added))


def _missing(ids: Mapping[str, int], members: Sequence[Member]) -> dict[str, JsonObject | None]:
    """The tokens of the members that are not among these, model by model in the order of their numbers."""
    found: dict[str, JsonObject | None] = {}
    for member in members:
        for token, place in sorted(member.tokens.ids.items(), key=lambda item: item[1]):
            if token not in ids and token not in found and place < member.rows:
                found[token] = member.tokens.added.get(token)
    return found


def _plain(token: str) -> JsonObject:
    flags: JsonObject = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"content": token, "normalized": True, **flags}


def _ruled(token: str, rule: TokenRule, members: Sequence[Member], by_name: Mapping[str, int]) -> tuple[int, int] | str:
    """The member and the row that a rule names, or what is wrong with it."""
    source = rule.source
    if isinstance(source, NoEmbedding):
        return _ZERO, 0
    name = source if isinstance(source, str) else source.model
    place = by_name.get(name)
    if place is None:
        return f"{name!r} is not among the models"
    row = None if isinstance(source, str) else source.token_id
    wanted = token if isinstance(source, str) else source.token
    if row is None and wanted is not None:
        row = members[place].tokens.ids.get(wanted)
    if row is None or row >= members[place].rows:
        return f"{name} has no row for {wanted if row is None else row!r}"
    return place, row
