"""The vocabulary of a weight map: where slots' values are in a checkpoint.

A map is a tuple of rules, and names that no rule mentions are the same on both sides. Names match
by whole dotted words, wherever these stand in the name: `mlp.gate` matches
`model.layers.0.mlp.gate.weight` and never `mlp.gate_up_proj`. Where two rules give a layout to one
slot the later one holds, so that a family can extend another's map and differ in a point.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fuse:
    """The slot `into` has one checkpoint tensor for each of its parts, under the names in `parts`.

    `Fuse("qkv_proj", {"q": "q_proj", "k": "k_proj", "v": "v_proj"})`
    """

    into: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Split:
    """The parts of `slot` are successive rows of one checkpoint tensor, in the order given.

    Without a rule a tensor of the slot's own name holds its parts in the slot's own order; this
    rule is for another order: `Split("gate_up_proj", ("up", "gate"))`.
    """

    slot: str
    order: tuple[str, ...]


@dataclass(frozen=True)
class Interleave:
    """The parts of `slot` take turns head by head in one checkpoint tensor's rows.

    As many groups as the smallest part has units; each group holds its share of every part in
    the order given: GPT-NeoX (q k v of a head), Falcon (the queries of a key head, k, v). `groups`
    is another number of them: CodeGen's are 4, one for each core of the machine that trained it.
    """

    slot: str
    order: tuple[str, ...]
    groups: int | None = None


@dataclass(frozen=True)
class Stack:
    """The slot `into` [experts, ...] has one checkpoint tensor for each expert `{e}` and part.

    `Stack("experts.gate_up_proj", {"gate": "experts.{e}.w1", "up": "experts.{e}.w3"})`

    Words without `{e}` name one tensor that has the rows of all experts, one expert after another.
    A slot whose parts are the experts has, of each expert, the rows of all these one after another.
    """

    into: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Rename:
    """The words `slot` of a slot's name are the words `tensor` in the checkpoint."""

    slot: str
    tensor: str


@dataclass(frozen=True)
class Older:
    """As `Rename`, in checkpoints that have the words `tensor` anywhere, as older ones do."""

    slot: str
    tensor: str


@dataclass(frozen=True)
class Where:
    """`rules` hold in checkpoints that have these words anywhere, `otherwise` in all others.

    For a family whose tensors were called otherwise once.
    """

    words: str
    rules: tuple["Rule", ...]
    otherwise: tuple["Rule", ...] = ()


@dataclass(frozen=True)
class Body:
    """Slots' names begin with `prefix`, which checkpoints of the body alone leave out.

    transformers saves a `BertModel` as `encoder...` and a `BertForMaskedLM` as `bert.encoder...`.
    """

    prefix: str


@dataclass(frozen=True)
class Transpose:
    """Slots with these words are stored [inputs, outputs], as GPT-2's Conv1D does."""

    slot: str


@dataclass(frozen=True)
class Mxfp4:
    """Slots with these words may be stored in four bits, as tensors `_blocks` and `_scales`.

    Where the checkpoint has these beside or in place of the slot's own tensor, they are read, in
    the order of the slot's axes; what `Transpose` says is for the other form.
    """

    slot: str


@dataclass(frozen=True)
class Fold:
    """Slots with these words [n, rows, ...] are stored with two axes as one: [n x rows, ...].

    With `Transpose` beside it, each of the n is turned.
    """

    slot: str


@dataclass(frozen=True)
class Add:
    """Slots with these words are stored less a constant: Gemma's norms hold scale - 1."""

    slot: str
    constant: float


@dataclass(frozen=True)
class MinusExp:
    """Slots with these words are minus the exponential of what is stored: Mamba's decay rates."""

    slot: str


@dataclass(frozen=True)
class Tie:
    """The slot `slot` takes the value of the slot `to`, in models whose config ties the two.

    The config decides, as in transformers: a tensor stored under the tied slot's own name is then
    left unread.
    """

    slot: str
    to: str


@dataclass(frozen=True)
class UnitRows:
    """Slots with these words are used with every row at length 1: Baichuan 2's head."""

    slot: str


@dataclass(frozen=True)
class Ignore:
    """Checkpoint tensors with these words belong to no slot, and are left unread."""

    words: str


Layout = Fuse | Split | Interleave | Stack
Rule = (
    Layout
    | Rename
    | Older
    | Where
    | Body
    | Transpose
    | Mxfp4
    | Fold
    | Add
    | UnitRows
    | MinusExp
    | Tie
    | Ignore
)


def for_checkpoint(rules: Sequence[Rule], tensors: Collection[str]) -> tuple[Rule, ...]:
    """The rules that hold for a checkpoint with these tensor names, the conditional ones decided.

    A `Body` stays where its prefix is to be left out.
    """
    decided: list[Rule] = []
    for rule in rules:
        if isinstance(rule, Older):
            if any(has_words(tensor, rule.tensor) for tensor in tensors):
                decided.append(Rename(rule.slot, rule.tensor))
        elif isinstance(rule, Where):
            found = any(has_words(tensor, rule.words) for tensor in tensors)
            decided += for_checkpoint(rule.rules if found else rule.otherwise, tensors)
        elif not isinstance(rule, Body) or not any(
            tensor.startswith(f"{rule.prefix}.") for tensor in tensors
        ):
            decided.append(rule)
    return tuple(decided)


def has_words(name: str, words: str) -> bool:
    """Whether the dotted words stand together somewhere in the dotted name."""
    return f".{words}." in f".{name}."


def replace_words(name: str, old: str, new: str) -> str:
    """The name with the words `old` replaced, wherever they stand."""
    return f".{name}.".replace(f".{old}.", f".{new}.")[1:-1]
