from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.generation import ChatTemplateMissing
from modelworks.data.record import Conversation, Message, Text
from modelworks.data.render import IGNORED, ChatTemplate, Example, encode_example, load_tokenizer, mark

CHATML = (
    "{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
# Earlier answers lose their thinking, the last one is given an empty one; words are trimmed.
THINKING = (
    "{{ bos_token }}{% for m in messages %}<|s|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
UNCLOSED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TURNS = (Message("user", "a"), Message("assistant", "a"), Message("user", "a?"), Message("assistant", " so a"))


def make_model(folder: Path, template: str | None, *, adds_bos: bool = False) -> Path:
    """A byte tokenizer with four special tokens; `<|e|>` ends turns and is the padding as well."""
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|s|>", "<|e|>"])
    byte_level = processors.ByteLevel(trim_offsets=True)
    bos = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 256)])
    tokenizer.post_processor = processors.Sequence([byte_level, bos]) if adds_bos else byte_level
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"__type": "AddedToken", "content": "<|bos|>"}, "eos_token": "<|e|>", "pad_token": "<|e|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def learned(model: Path, *turns: Message) -> list[str]:
    tokenizer, template = load_tokenizer(model), ChatTemplate.load(model)
    marked = mark(tokenizer, template, Conversation(turns))
    example = encode_example(tokenizer, template, Conversation(turns))
    words = [marked.text[start:end] for start, end in marked.learned]
    assert example is not None
    labels = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(labels, skip_special_tokens=False).startswith("".join(words))
    return words


@pytest.mark.parametrize(
    ("template", "spans"),
    [
        (CHATML, ["a<|e|>", " so a<|e|>"]),
        (THINKING, ["a<|e|>", "<think></think>so a<|e|>"]),
        (UNCLOSED, ["a", " so a"]),
    ],
)
def test_every_answer_is_learned_with_its_end_of_turn(tmp_path: Path, template: str, spans: list[str]) -> None:
    assert learned(make_model(tmp_path, template), *TURNS) == spans


def test_labels_begin_behind_the_prompt_and_end_with_the_end_of_turn(tmp_path: Path) -> None:
    model = make_model(tmp_path, CHATML)
    tokenizer = load_tokenizer(model)

    example = encode_example(
        tokenizer, ChatTemplate.load(model), Conversation((Message("user", "x"), Message("assistant", "\né")))
    )

    # the prompt's line break is not learned, the one that begins the answer is; the template's last one is left out
    prompt = tokenizer.encode("<|s|>user\nx<|e|>\n<|s|>assistant\n").ids
    answer = tokenizer.encode("\né<|e|>").ids
    assert example == Example(prompt + answer, [IGNORED] * len(prompt) + answer)


def test_an_answer_without_a_closing_token_gets_the_end_of_text(tmp_path: Path) -> None:
    model = make_model(tmp_path, UNCLOSED)
    tokenizer = load_tokenizer(model)

    example = encode_example(tokenizer, ChatTemplate.load(model), Conversation(TURNS))

    assert example is not None
    assert tokenizer.decode(example.input_ids, skip_special_tokens=False).endswith("assistant:  so a<|e|>")


def test_the_beginning_of_text_stands_once(tmp_path: Path) -> None:
    model = make_model(tmp_path, THINKING, adds_bos=True)
    tokenizer, template = load_tokenizer(model), ChatTemplate.load(model)

    chat = encode_example(tokenizer, template, Conversation(TURNS))
    text = encode_example(tokenizer, template, Text("a"))

    assert chat is not None
    assert chat.input_ids.count(256) == 1
    bos, end = 256, 258
    letter = tokenizer.encode("a", add_special_tokens=False).ids
    assert text == Example([bos, *letter, end], [bos, *letter, end])


def test_truncation_keeps_the_start_and_drops_what_has_no_answer_left(tmp_path: Path) -> None:
    model = make_model(tmp_path, CHATML)
    tokenizer, template = load_tokenizer(model), ChatTemplate.load(model)
    whole = encode_example(tokenizer, template, Conversation(TURNS))
    assert whole is not None
    first = next(index for index, label in enumerate(whole.labels) if label != IGNORED)

    cut = encode_example(tokenizer, template, Conversation(TURNS), max_length=first + 1)

    assert cut == Example(whole.input_ids[: first + 1], whole.labels[: first + 1])
    assert encode_example(tokenizer, template, Conversation(TURNS), max_length=first) is None


def test_a_model_without_a_template_says_which_file_is_missing(tmp_path: Path) -> None:
    template = ChatTemplate.load(make_model(tmp_path, None))

    with pytest.raises(ChatTemplateMissing, match=r"neither chat_template\.jinja nor .*\.json\): add one, use"):
        template.render(TURNS)


def test_a_template_that_rewrites_answers_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path, "{% for m in messages %}{{ m.content | upper | reverse }}{% endfor %}")

    with pytest.raises(Unsupported, match="message 2"):
        learned(model, *TURNS)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
        ("{{ 'x' * 10**9 }}", "huge"),
        ("{{ 'x'.center(10000000000) }}", "huge"),
        ("{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}", "together"),
        ("{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}", "together"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than 1 s"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_hostile_or_broken_template_ends_in_an_error(tmp_path: Path, template: str, reason: str) -> None:
    model = make_model(tmp_path, template)

    with pytest.raises(Invalid, match=reason):
        ChatTemplate.load(model).render(TURNS)


def test_a_template_over_64_kib_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="larger than 65536 bytes"):
        ChatTemplate.load(make_model(tmp_path, "x" * 70_000))


def test_the_template_may_stand_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    for found in ("{{ 1 }}", [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{ 1 }}"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}))

        assert ChatTemplate.load(tmp_path).render(TURNS) == "1"


FEATURES = (
    "  {% for m in messages %}\n  {%- set ns = namespace(n=loop.index) %}\n{{ ns.n }}{{ m | tojson }}\n"
    "{{ m | tojson(indent=2) }}\n  {% if loop.index > 2 %}{% break %}{% endif %}\n"
    "  {% generation %}{{ m.content }}\n{% endgeneration %}\n{% endfor %}{{ bos_token }}{{ tools is defined }}"
    "{{ dict(a=1) | tojson }}"
    "{{ strftime_now('%Y') }}{{ [1] * 3 }}{{ 'é<&' | tojson }}{{ 1 ~ 'a' ~ (2 + 3) }}{{ 'a' + 'b' }}{{ [1] + [2] }}"
)


@pytest.mark.parametrize("template", [CHATML, THINKING, UNCLOSED, FEATURES])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(tmp_path: Path, template: str, prompt: bool) -> None:
    check_same_as_transformers(make_model(tmp_path, template), prompt)


@pytest.mark.model
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_the_real_template_as_transformers_does(smollm2: Path, prompt: bool) -> None:
    check_same_as_transformers(smollm2, prompt)


def check_same_as_transformers(model: Path, prompt: bool) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model)
    ours, tokenizer = ChatTemplate.load(model), load_tokenizer(model)
    for turns in (TURNS, (Message("system", "<b>&\n "), *TURNS), TURNS[:1], (Message("user", "日本 🙂\n\n"),)):
        body = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = ours.render(turns, add_generation_prompt=prompt)
        assert text == theirs.apply_chat_template(body, tokenize=False, add_generation_prompt=prompt)
        ids = theirs.apply_chat_template(body, add_generation_prompt=prompt, return_dict=False)
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.model
def test_the_real_model_learns_answers_and_their_end_and_nothing_else(smollm2: Path) -> None:
    assert learned(smollm2, *TURNS) == ["a<|im_end|>", " so a<|im_end|>"]


def test_rendering_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    model = make_model(tmp_path, CHATML)
    code = (
        "import sys; from pathlib import Path; from modelworks.data.render import *\n"
        "from modelworks.data.record import Text; m = Path(sys.argv[1])\n"
        "encode_example(load_tokenizer(m), ChatTemplate.load(m), Text('a')); ChatTemplate.load(m).render([])\n"
        "print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
