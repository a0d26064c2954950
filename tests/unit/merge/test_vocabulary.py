from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.errors import Invalid
from modelworks.core.nouns import AnyArtifact, Model
from modelworks.merge.engine import CHUNK_ELEMENTS
from modelworks.merge.pieces import Pieces
from modelworks.merge.plan import BASE, Plan, Source, make_plan
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from modelworks.weights.reader import Checkpoint
from tiny import CHAT_TEMPLATE, tiny_adapter, tiny_llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WIDTH = 16


def retokenized(folder: Path, seed: int, *, extra: tuple[str, ...] = (), rows: int = 0, shuffled: bool = False) -> Path:
    """A tiny model whose own tokens are in another order, with added tokens and an embedding of so many rows."""
    tiny_llama(folder, seed, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(seed)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    if shuffled:
        plain = [token for token in vocabulary if not token.startswith("<|")]
        order = torch.randperm(len(plain), generator=generator).tolist()
        content["model"]["vocab"] = vocabulary | {plain[place]: 3 + number for number, place in enumerate(order)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": 259 + place, "content": token, **flags} for place, token in enumerate(extra)]
    file.write_text(json.dumps(content))
    wanted = rows or 259 + len(extra)
    tensors = load_file(folder / "model.safetensors")
    for name in (EMBEDDING, HEAD):
        tensors[name] = (0.1 * torch.randn(wanted, WIDTH, generator=generator)).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": wanted}))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """The base pads its embedding to 264 rows; one model adds two tokens, the other one, and shuffles."""
    folder = tmp_path_factory.mktemp("models")
    retokenized(folder / "base", 0, rows=264)
    retokenized(folder / "one", 1, extra=("<|tool|>", "<|think|>"))
    retokenized(folder / "two", 2, extra=("<|think|>",), shuffled=True)
    return {name: as_model(folder / name, name) for name in ("base", "one", "two")}


def planned(inputs: Mapping[str, AnyArtifact], tokenizer: Any, **spec: Any) -> Plan:
    body = {"base": "base", "models": ["one", "two"], "tokenizer": tokenizer, **spec}
    return make_plan(MergeSpec.model_validate(body), inputs)


def merged(inputs: Mapping[str, AnyArtifact], folder: Path, chunk: int = 1 << 18, **spec: Any) -> Path:
    body = {"base": "base", "models": ["one", "two"], "method": "task_arithmetic", "dtype": "float32", **spec}
    job = FakeJob(folder, dict(inputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_ELEMENTS, "cpu", chunk)
        run(MergeSpec.model_validate(body), job)
    return job.drafts[0].folder


def vocabulary(folder: Path) -> dict[str, int]:
    content = json.loads((folder / "tokenizer.json").read_text())
    return {**content["model"]["vocab"], **{entry["content"]: entry["id"] for entry in content["added_tokens"]}}


def aligned(plan: Plan, place: int, tensor: str = EMBEDDING) -> torch.Tensor:
    with ExitStack() as stack:
        step = next(step for step in plan.steps if step.output.name == tensor)
        values = Pieces(plan, FakeJob(Path()), "cpu", stack).stored(Source(place, tensor, tensor), 0, step.elements)
    return values.view(-1, WIDTH)


def expected(inputs: Mapping[str, Model], tokens: Mapping[str, int], tensor: str) -> dict[str, dict[str, torch.Tensor]]:
    """Token by token, by mergekit's words: the base's row, that of the only model that has it, the mean, zeros."""
    rows = {name: load_file(model.path / "model.safetensors")[tensor].float() for name, model in inputs.items()}
    own = {name: vocabulary(model.path) for name, model in inputs.items()}
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in inputs}
    for token in tokens:
        has = {name: rows[name][ids[token]] for name, ids in own.items() if token in ids}
        default = torch.zeros(WIDTH)
        if "base" in has or len(has) == 1:
            default = has.get("base", next(iter(has.values())))
        elif has:
            default = torch.stack(list(has.values())).sum(0) / len(has)
        for name in inputs:
            found[name][token] = has.get(name, default)
    return found


@pytest.mark.parametrize("policy", ["base", "first", "two", "union"])
@pytest.mark.parametrize("tensor", [EMBEDDING, HEAD])
def test_every_token_has_the_row_that_its_model_gives_it(inputs: dict[str, Model], policy: str, tensor: str) -> None:
    plan = planned(inputs, policy)
    assert plan.vocabulary is not None
    tokens = plan.vocabulary.ids

    wanted = expected(inputs, tokens, tensor)

    for place, name in ((BASE, "base"), (0, "one"), (1, "two")):
        rows = aligned(plan, place, tensor)
        for token, number in tokens.items():
            assert torch.equal(rows[number], wanted[name][token]), (name, token)


@pytest.mark.parametrize(
    ("policy", "rows", "count"),
    [
        ("base", 264, 259),
        ("first", 261, 261),
        ("two", 260, 260),
        ("union", 264, 261),
        ({"source": "union", "pad_to_multiple_of": 1}, 261, 261),
        ({"source": "base", "pad_to_multiple_of": 64}, 320, 259),
    ],
)
def test_padding_stays_unless_a_multiple_is_asked_for(
    inputs: dict[str, Model], policy: Any, rows: int, count: int
) -> None:
    plan = planned(inputs, policy)

    sizes = {step.output.name: step.output.shape for step in plan.steps if step.output.name in {EMBEDDING, HEAD}}
    assert sizes == {EMBEDDING: (rows, WIDTH), HEAD: (rows, WIDTH)}
    assert plan.vocabulary is not None
    assert len(plan.vocabulary.ids) == count


def test_rows_of_no_token_are_the_owners(inputs: dict[str, Model]) -> None:
    plan = planned(inputs, "base")
    own = load_file(inputs["base"].path / "model.safetensors")[EMBEDDING].float()

    assert all(torch.equal(aligned(plan, place)[259:], own[259:]) for place in (BASE, 0, 1))


def test_new_padding_is_the_mean_of_all_tokens(inputs: dict[str, Model]) -> None:
    plan = planned(inputs, {"source": "base", "pad_to_multiple_of": 64})

    rows = aligned(plan, 1)

    assert len(rows) == 320
    assert torch.equal(rows[259:], rows[:259].double().mean(0).float().expand(61, WIDTH))


def test_a_rule_gives_a_token_another_row(inputs: dict[str, Model]) -> None:
    rules = {
        "A": {"source": "one", "force": True},
        "<|tool|>": {"source": {"kind": "zero"}},
        "<|think|>": {"source": {"model": "base", "token": "B"}, "force": True},
        "<|new|>": {"source": {"kind": "model_token", "model": "two", "token_id": 7}},
    }
    plan = planned(inputs, {"source": "first", "tokens": rules})
    assert plan.vocabulary is not None
    ids = plan.vocabulary.ids
    stored = {name: load_file(model.path / "model.safetensors")[EMBEDDING].float() for name, model in inputs.items()}
    own = {name: vocabulary(model.path) for name, model in inputs.items()}

    rows = [aligned(plan, place) for place in (BASE, 0, 1)]

    assert ids["<|new|>"] == 261
    assert all(torch.equal(values[ids["A"]], stored["one"][own["one"]["A"]]) for values in rows)
    assert [values[ids["<|tool|>"]].any().item() for values in rows] == [False, True, False]
    assert all(torch.equal(values[ids["<|think|>"]], stored["base"][own["base"]["B"]]) for values in rows)
    assert all(torch.equal(values[ids["<|new|>"]], stored["two"][7]) for values in rows)


def test_a_rule_for_a_token_of_a_union_adds_it_once(inputs: dict[str, Model]) -> None:
    plan = planned(inputs, {"source": "union", "tokens": {"<|tool|>": {"source": {"kind": "zero"}}}})

    assert plan.vocabulary is not None
    assert [(entry["content"], entry["id"], entry["special"]) for entry in plan.vocabulary.added] == [
        ("<|tool|>", 259, True), ("<|think|>", 260, True),
    ]  # fmt: skip


def test_a_rule_that_cannot_be_followed_is_told(inputs: dict[str, Model]) -> None:
    rules = {"A": {"source": "three"}, "<|tool|>": {"source": "two"}}

    with pytest.raises(Invalid) as caught:
        planned(inputs, {"source": "base", "tokens": rules})

    assert [str(problem) for problem in caught.value.problems] == [
        "tokenizer.tokens.A: 'three' is not among the models",
        "tokenizer.tokens.<|tool|>: two has no row for '<|tool|>'",
    ]


def test_an_adapter_of_the_embedding_cannot_be_moved(inputs: dict[str, Model], tmp_path: Path) -> None:
    base = inputs["base"]
    folder = tiny_adapter(tmp_path / "lora", base.path, targets=("embed_tokens",))
    both: dict[str, AnyArtifact] = {**inputs, "lora": as_adapter(folder, "lora", base)}

    with pytest.raises(Invalid, match="fold the adapter into its base first"):
        planned(both, "union", models=["lora", "one"])


@pytest.mark.parametrize("policy", ["union", {"source": "base", "pad_to_multiple_of": 64}])
def test_the_result_is_the_same_in_pieces_of_any_size(inputs: dict[str, Model], tmp_path: Path, policy: Any) -> None:
    whole, small = (
        merged(inputs, tmp_path / str(chunk), chunk, tokenizer=policy, method="ties_merging", dtype="bfloat16")
        for chunk in (1 << 18, 100)
    )

    assert (whole / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()


def test_a_union_loads_speaks_and_embeds_every_token(inputs: dict[str, Model], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = merged(inputs, tmp_path, tokenizer="union", weights=[0, 1])

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.encode("A<|think|>B") == [*tokenizer.encode("A"), 260, *tokenizer.encode("B")]
    assert network.config.vocab_size == network.get_input_embeddings().weight.shape[0] == 264
    two = load_file(inputs["two"].path / "model.safetensors")[EMBEDDING].float()
    # With weights 0 and 1 the result is the second model, but for the rounding of b + (e - b).
    for token in ("A", "<|think|>"):
        row = network.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)]
        assert torch.allclose(row, two[vocabulary(inputs["two"].path)[token]], atol=1e-7)


def test_another_models_tokenizer_comes_with_its_files_and_numbers(inputs: dict[str, Model], tmp_path: Path) -> None:
    config = inputs["two"].path / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "eos_token_id": 259}))

    folder = merged(inputs, tmp_path, tokenizer="two")
    config.write_text(before)

    told = json.loads((folder / "config.json").read_text())
    assert (told["vocab_size"], told["eos_token_id"], told["bos_token_id"]) == (260, 259, 1)
    assert (folder / "tokenizer.json").read_bytes() == (inputs["two"].path / "tokenizer.json").read_bytes()


def test_where_all_tokens_agree_nothing_is_moved(tmp_path: Path) -> None:
    folders = {name: as_model(tiny_llama(tmp_path / name, seed), name) for seed, name in enumerate(("base", "one"))}

    plan = planned(folders, "union", models=["one"])

    assert {source.aligned for step in plan.steps for source in step.sources} == {None}


def test_only_the_rows_of_a_piece_are_read(inputs: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(inputs, "union")
    read, elements = Checkpoint.read, []

    def count(self: Checkpoint, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        found = read(self, name, start, stop)
        elements.append(found.numel())
        return found

    monkeypatch.setattr(Checkpoint, "read", count)
    with ExitStack() as stack:
        Pieces(plan, FakeJob(Path()), "cpu", stack).stored(Source(1, EMBEDDING, EMBEDDING), 0, 64 * WIDTH)

    # 64 tokens, all of which the shuffled model has somewhere.
    assert sum(elements) == 64 * WIDTH


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, CHAT_TEMPLATE),
        ("auto", "{{ other }}"),
        ("one", "{{ other }}"),
        ("base", CHAT_TEMPLATE),
        ("{{ mine }}", "{{ mine }}"),
    ],
)
def test_the_chat_template_is_the_bases_or_as_asked(tmp_path: Path, wanted: str | None, found: str) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed) for seed, name in enumerate(("base", "one", "two"))}
    for name in ("one", "two"):
        (folders[name] / "chat_template.jinja").write_text("{{ other }}\n")
    models = {name: as_model(folder, name) for name, folder in folders.items()}

    folder = merged(models, tmp_path / "job", chat_template=wanted)

    assert (folder / "chat_template.jinja").read_text() == found


def test_a_template_kept_in_the_tokenizers_settings_is_replaced_there_too(tmp_path: Path) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed) for seed, name in enumerate(("base", "one"))}
    settings = folders["base"] / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": "{{ old }}"}))
    models = {name: as_model(folder, name) for name, folder in folders.items()}

    folder = merged(models, tmp_path / "job", models=["one"], chat_template="{{ new }}")

    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == "{{ new }}"
