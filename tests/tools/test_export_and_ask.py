"""vlmft export and vlmft ask: what is given away is the tuned model, for people who have transformers alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import PIL.Image
import pytest
import torch
from hydra.errors import HydraException
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from vlmft.config.check import ConfigError
from vlmft.config.entry import explained
from vlmft.config.schema import TrainConfig
from vlmft.config.tool_schema import AskConfig, ExportConfig
from vlmft.config.tools import compose_tool
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.models.greedy import greedy_by_default
from vlmft.models.loaded import LoadedModel
from vlmft.models.lora import merged
from vlmft.run.folder import read_run
from vlmft.run.weights import load_tuned
from vlmft.sample import BadRowError, Image, Message, Prompt
from vlmft.tools import model_card
from vlmft.tools.ask import ask
from vlmft.tools.export import export

pytestmark = pytest.mark.slow  # whole runs

CPU = TrainerConfig(accelerator="cpu")


def exported(*overrides: str) -> Path:
    return export(compose_tool("export", ExportConfig, overrides))


def asked(*overrides: str) -> None:
    ask(compose_tool("ask", AskConfig, overrides))


def picture(seed: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def run(trained: Any) -> Path:
    """A QLoRA run, not to be changed."""
    folder: Path = trained.folder
    return folder


@pytest.fixture(scope="module")
def tuned(run: Path) -> LoadedModel:
    return load_tuned(run, read_run(str(run)), CPU)


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(f"run={run}", f"to={tmp_path_factory.mktemp('export') / 'fp32'}", "dtype=float32", "check_rows=4")


def prompts(n: int) -> list[Prompt]:
    return [Prompt((Message("user", (Image(lambda i=i: picture(i), f"{i}"), "How many?")),)) for i in range(n)]  # type: ignore[misc]


def test_merged_in_fp32_is_the_tuned_model(whole: Path, tuned: LoadedModel) -> None:
    """Plain transformers on the folder: logits within 1e-5, greedy answers equal; on the plain processor's inputs."""
    assert {file.suffix for file in whole.rglob("*") if file.is_file()} <= {".safetensors", ".json", ".jinja", ".md"}
    assert "quantization_config" not in json.loads((whole / "config.json").read_text())
    plain = AutoModelForImageTextToText.from_pretrained(whole, dtype=torch.float32, attn_implementation="eager").eval()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    family = tuned.family
    for position, prompt in enumerate(prompts(4)):
        row = family.encode_prompt(str(position), prompt)
        batch = family.collate([row], "right", tuned.base)
        keep = torch.ones_like(batch.supervised)
        arrays = {name: torch.from_numpy(array) for name, array in row.images[0].arrays.items()}
        types = {name: torch.from_numpy(array)[None] for name, array in row.token_arrays.items()}
        with torch.inference_mode():
            features = family.image_features(tuned.base, batch.images, grad=False)
            ours = family.forward(tuned.base, batch, features, keep)
            theirs = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **arrays, **types).logits[0]
            assert ours.abs().max() > 0.1
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
            said = family.generate(tuned.base, batch, features, 6)[0].tolist()
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **arrays, **types}
            new = plain.generate(**inputs, max_new_tokens=6, do_sample=False)[0, row.length :].tolist()
        assert new == said


def test_the_adapter_moved_what_is_merged(whole: Path, tuned: LoadedModel) -> None:
    """Or the comparison above would hold for an export of the untuned model."""
    plain = AutoModelForImageTextToText.from_pretrained(whole, dtype=torch.float32)
    name = "model.language_model.layers.0.self_attn.q_proj"
    assert isinstance(tuned.model, PeftModel)
    layer: Any = tuned.base.get_submodule(name)
    update = layer.get_delta_weight("default")
    stored = bnb.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()
    assert update.abs().max() > 1e-5
    torch.testing.assert_close(plain.get_submodule(name).weight, stored + update, rtol=0, atol=1e-6)


def test_a_server_takes_greedy_answers_from_it(whole: Path, tuned: LoadedModel) -> None:
    """A vendor's repetition penalty would apply to a request that names none."""
    said = GenerationConfig.from_pretrained(whole)
    family: Any = tuned.family
    assert said.eos_token_id == [family.end_id] and said.pad_token_id == family.pad_id
    own = GenerationConfig(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=1.05, eos_token_id=[7, 2])
    neutral, left_out = greedy_by_default(own, 2, 0)
    assert left_out == {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 1.05}
    assert neutral.eos_token_id == [2, 7]
    assert set(neutral.to_diff_dict()) <= {"do_sample", "eos_token_id", "pad_token_id", "transformers_version"}
    assert not neutral.do_sample


def test_merging_into_a_quantised_base_is_refused(run: Path, tmp_path: Path) -> None:
    loaded = load_tuned(run, read_run(str(run)), CPU)
    assert isinstance(loaded.model, PeftModel)
    with pytest.raises(ConfigError, match=r"form: Expected weights in 16 or 32 bit to merge into, got 14 quantised"):
        merged(loaded.model)
    with pytest.raises(HydraException) as refused:
        exported(f"run={run}", f"to={tmp_path / 'x'}", "dtype=nf4")
    assert explained(refused.value) == "dtype: Expected one of float32, bfloat16, float16, got 'nf4'"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_measured_and_said(
    run: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = exported(f"run={run}", f"to={tmp_path / dtype}", f"dtype={dtype}", "check_rows=4", "json=true")
    out = json.loads(capsys.readouterr().out)
    assert out["check"]["rows"] == 4 and 0 < out["check"]["logit_difference"] < 0.1 < out["check"]["logit_scale"]
    plain = AutoModelForImageTextToText.from_pretrained(to, dtype="auto")
    assert {parameter.dtype for parameter in plain.parameters()} == {getattr(torch, dtype)}
    assert f"{out['check']['answers_changed']} of 4 answers differ" in (to / "README.md").read_text()


def test_card(whole: Path, run: Path) -> None:
    text = (whole / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert text.startswith("---\n") and "library_name: transformers" in text.split("---")[1]
    assert "base_model" not in text.split("---")[1], "the Hub refuses a card whose base is none of its models"
    assert "Base model: package:tiny_qwen2vl" in text
    assert summary["sentence"] in text
    for arm in summary["arms"]:
        assert f"| {arm['arm']} | {arm['n']} | {100 * arm['value']:.1f} % |" in text
    assert "max_gradient_norm: 1.0" in text and "dataset: vlmft.data.datasets.shapes:Shapes" in text
    assert "## Licence" in text and "0 of 4 answers differ" in text


def test_licence_is_the_bases_own(run: Path, tmp_path: Path) -> None:
    config = read_run(str(run))
    assert model_card.licence_of(config) == "unknown"
    config.model.path = str(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert model_card.licence_of(config) == "apache-2.0"
    (tmp_path / "README.md").write_text("# A model without front matter\n")
    assert model_card.licence_of(config) == "unknown"


def test_adapter_alone(run: Path, tmp_path: Path) -> None:
    to = exported(f"run={run}", f"to={tmp_path / 'adapter'}", "form=adapter")
    assert (to / "adapter_model.safetensors").read_bytes() == (run / "adapter/adapter_model.safetensors").read_bytes()
    assert (to / "fingerprint.json").is_file() and "an adapter for it" in (to / "README.md").read_text()


def test_export_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"to: Expected a folder that is not there yet"):
        exported(f"run={run}", f"to={tmp_path}")
    with pytest.raises(ConfigError, match=r"run: there is no folder 'no/such'"):
        exported("run=no/such", f"to={tmp_path / 'x'}")
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/adapter")
    with pytest.raises(ConfigError, match=r"run: there is no folder 'adapter'"):
        exported(f"run={tmp_path / 'copy'}", f"to={tmp_path / 'x'}", "check_rows=0")
    assert not (tmp_path / "x").exists()


def test_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    stored = tmp_path / "copy/adapter/fingerprint.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "base": "another"}))
    with pytest.raises(ConfigError, match=r"run: the adapter was trained under another base"):
        load_tuned(tmp_path / "copy", read_run(str(run)), CPU)
    load_tuned(tmp_path / "copy", read_run(str(run)), CPU, mismatch=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for position, name in enumerate(("b.png", "a.png", "below/c.jpg")):
        picture(position).save(folder / name)
    (folder / "broken.png").write_bytes(b"<html>not found</html>")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_ask_about_an_image(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked(f"image={photos / 'a.png'}", "question=How many?", f"run={run}", "max_new_tokens=4")
    text = capsys.readouterr().out
    asked(f"image={photos / 'a.png'}", "question=How many?", f"run={run}", "max_new_tokens=4", "json=true")
    row = json.loads(capsys.readouterr().out)
    assert text == row["text"] + "\n" and row["id"] == "a.png" and row["n_new_tokens"] <= 4
    with pytest.raises(BadRowError, match=r"broken\.png: .*an HTML page"):
        asked(f"image={photos / 'broken.png'}", "question=How many?", f"run={run}")


def test_ask_about_a_folder(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an image, the same answer as alone; what cannot be read is named and counted."""
    to = photos.parent / "out" / "predictions.jsonl"
    asked(f"image={photos}", "question=How many?", f"run={run}", f"to={to}", "max_new_tokens=4")
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a.png", "b.png", "below/c.jpg"]
    streams = capsys.readouterr()
    assert streams.out == f"3 answers in {to}, 1 images not asked\n"
    assert streams.err.startswith("not asked: broken.png: ")
    for row in rows:
        asked(f"image={photos / row['id']}", "question=How many?", f"run={run}", "max_new_tokens=4")
        assert capsys.readouterr().out == row["text"] + "\n"


def test_ask_an_untuned_model(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked(f"image={photos / 'a.png'}", "question=How many?", "model=tiny", "max_new_tokens=4")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("question=x", "model=tiny"), "image: Expected a value, got none"),
        (("image=x.png", "question=x"), "run: Expected either run=<run folder> or model=, got none"),
        (("image=x.png", "question=x", "model=tiny", "run=."), "run: Expected either run=.* got both"),
        (("image=no/such.png", "question=x", "model=tiny"), "image: Expected an image file or a folder with"),
        (("image=x.png", "question=x", "model=tiny", "max_new_tokens=0"), "max_new_tokens: Expected a whole number"),
    ],
)
def test_ask_is_refused_in_a_sentence(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(*overrides)


PARTS = ("model.train.connector=full", "model.lora.target_modules=[q_proj]")


def test_parts_that_were_trained_in_full_come_along(fit_small: Callable[..., Any], tmp_path: Path) -> None:
    """Beside the adapter of another part, PEFT keeps none of them."""
    run = fit_small(*PARTS, "trainer.max_epochs=1", "train.lr=1e-2").folder
    loaded = load_tuned(run, read_run(str(run)), CPU)
    stored = load_file(run / "adapter" / "full_parts.safetensors")
    assert len(stored) >= 4
    parameters = dict(loaded.model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in stored.items())
    to = exported(f"run={run}", f"to={tmp_path / 'whole'}", "dtype=float32", "check_rows=2")
    assert "0 of 2 answers differ" in (to / "README.md").read_text()


def test_a_model_trained_in_full(fit_small: Callable[..., Any], tmp_path: Path, compose: Callable[..., Any]) -> None:
    run = fit_small("model.train.language=full", "trainer.max_epochs=1").folder
    config: TrainConfig = read_run(str(run))
    assert not isinstance(load_tuned(run, config, CPU).model, PeftModel)
    with pytest.raises(ConfigError, match=r"form: Expected merged for a model that was trained in full"):
        exported(f"run={run}", f"to={tmp_path / 'adapter'}", "form=adapter")
    to = exported(f"run={run}", f"to={tmp_path / 'whole'}", "check_rows=0")
    AutoModelForImageTextToText.from_pretrained(to)
