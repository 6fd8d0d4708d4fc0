"""From a config to a model and its processor: where it is found, that it is the same again, and what is refused."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import PreTrainedModel
from transformers.video_processing_utils import BaseVideoProcessor

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig
from vlmft.models import locate as located
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.load import folder_digest, load_model, load_source
from vlmft.models.locate import locate
from vlmft.models.processor import load_processor, save_for_servers
from vlmft.sample import Sample

CPU = torch.device("cpu")
MakeConfig = Callable[..., ModelConfig]


@pytest.fixture
def hub_folder(name: str, family: GenericFamily, fresh: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    """The model as repositories on the Hub lie: weights, and processor files as they were before transformers 5."""
    folder = tmp_path / f"a-{name}-from-the-hub"
    fresh().save_pretrained(folder)
    ours = Path(locate(ModelConfig(name=name, path=f"package:{name}")))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ours / file, folder / file)
    processor = json.loads((ours / "processor_config.json").read_text())
    image = processor.pop("image_processor") | {"processor_class": processor["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": family.processor.chat_template}))
    if name == "tiny":
        (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def stored_config(make_config: MakeConfig, folder: Path) -> ModelConfig:
    return make_config(path=str(folder), init=Init.pretrained)


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys() and len(left) > 50
    return all(torch.equal(left[key], right[key]) for key in left)


def test_package_path(name: str, config: ModelConfig) -> None:
    source, model_config = load_source(config)
    assert Path(source.path).name == name and (Path(source.path) / "config.json").is_file()
    assert source.commit == "random" and source.revision is None
    assert model_config.model_type == {"tiny": "idefics3", "tiny_qwen2vl": "qwen2_vl"}[name]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:huge", "model.path: no model 'huge' comes with vlmft; use a folder or a Hub id"),
        ("./not-there", "model.path: there is no folder './not-there'; give a folder in Hub layout or a Hub id"),
        ("/not/there", "model.path: there is no folder '/not/there'"),
        ("~/not-there", "model.path: there is no folder '~/not-there'"),
        ("nobody/nothing-at-all", "model.path: 'nobody/nothing-at-all' cannot be read .*check id, revision, network"),
    ],
)
def test_missing_models(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_source(ModelConfig(name="x", path=path))


def test_without_a_network_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client tries each file six times, half a minute in all, and prints each attempt."""

    def no_such_name(host: str, port: int) -> Any:
        raise OSError(f"{host}: Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(located, "getproxies", dict)
    monkeypatch.setattr(located.socket, "getaddrinfo", no_such_name)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(ConfigError, match=r"'a/b' cannot be read .*no network to huggingface\.co") as refused:
        located.require_model(ModelConfig(name="x", path="a/b"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE, "for the files after this one, too"
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        located.require_model(ModelConfig(name="x", path="a/b"))
    assert "\n" not in str(refused.value)


def test_behind_a_proxy_names_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(located, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(located.socket, "getaddrinfo", None)
    assert located.is_found("huggingface.co")


def test_wrong_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers says it in three lines, with an address that the first does not need."""
    said = "v9 is not a valid git identifier (branch name, tag name or commit id) that exists for this model.\nCheck"

    def missing(path: str, revision: str | None) -> Any:
        assert (path, revision) == ("someone/model", "v9")
        raise OSError(said)

    monkeypatch.setattr("vlmft.models.load.PreTrainedConfig.get_config_dict", missing)
    with pytest.raises(ConfigError) as refused:
        load_source(ModelConfig(name="x", path="someone/model", revision="v9"))
    assert str(refused.value) == (
        f"model.path: 'someone/model' cannot be read ({said.splitlines()[0]}); check id, revision, network"
    )


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: .* cannot be read"):
        load_source(ModelConfig(name="x", path=str(tmp_path)))


def test_hub_layout_folder(
    make_config: MakeConfig,
    hub_folder: Path,
    fresh: Callable[..., PreTrainedModel],
    samples: dict[str, Sample],
    family: GenericFamily,
) -> None:
    """The same weights, the same ids, the same pixels as from the package."""
    config = stored_config(make_config, hub_folder)
    source, model_config = load_source(config)
    assert source.path == str(hub_folder) and source.commit == folder_digest(hub_folder)
    loaded = load_model(config, source, model_config, CPU, seed=5)
    assert same_weights(loaded, fresh())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training
    again = make_family(config, source, model_config)
    assert again.fingerprint_parts["template"] == family.fingerprint_parts["template"]
    for sample in samples.values():
        row, same = family.encode(sample), again.encode(sample)
        assert row.input_ids.tolist() == same.input_ids.tolist()
        for image, other in zip(row.images, same.images, strict=True):
            assert {k: v.tobytes() for k, v in image.arrays.items()} == {
                k: v.tobytes() for k, v in other.arrays.items()
            }


def test_digest_moves_with_any_byte_of_the_weights(hub_folder: Path) -> None:
    """Also in the middle of a file, where training one part alone leaves its traces, and with no change of size."""
    digests = [folder_digest(hub_folder), folder_digest(hub_folder)]
    assert digests[0] == digests[1] and len(digests[0]) == 40
    weights = hub_folder / "model.safetensors"
    whole = weights.read_bytes()
    for place in (len(whole) // 5, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        weights.write_bytes(changed)
        digests.append(folder_digest(hub_folder))
    weights.write_bytes(whole)
    assert folder_digest(hub_folder) == digests[0]
    for name in ("config.json", "tokenizer.json"):
        file = hub_folder / name
        file.write_text(file.read_text() + "\n")
        digests.append(folder_digest(hub_folder))
    assert len(set(digests)) == len(digests) - 1 == 6
    (hub_folder / "README.md").write_text("words")
    assert folder_digest(hub_folder) == digests[-1]


def test_pickled_weights_are_never_read(make_config: MakeConfig, hub_folder: Path) -> None:
    config = stored_config(make_config, hub_folder)
    source, model_config = load_source(config)
    weights = weights_of(load_model(config, source, model_config, CPU, seed=0))
    torch.save(weights, hub_folder / "pytorch_model.bin")
    (hub_folder / "model.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"model\.path: .* gives no model .*safetensors weights, or model\.init=random"
    ):
        load_model(config, source, model_config, CPU, seed=0)


def test_text_model_is_refused(tmp_path: Path) -> None:
    text = {"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(text))
    config = ModelConfig(name="x", path=str(tmp_path), init=Init.random)
    with pytest.raises(ConfigError, match=r"model\.path: .* of type 'llama'; .*use a vision-language model"):
        load_source(config)


def test_folder_without_a_processor(config: ModelConfig, tmp_path: Path) -> None:
    shutil.copy(Path(locate(config)) / "config.json", tmp_path / "config.json")
    bare = ModelConfig(name="x", path=str(tmp_path), init=Init.random)
    with pytest.raises(ConfigError, match=r"model\.path: no processor in .*; use a folder or Hub id that has one"):
        make_family(bare, *load_source(bare))


def test_random_weights_are_a_function_of_the_seed(config: ModelConfig) -> None:
    source, model_config = load_source(config)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load_model(config, source, model_config, CPU, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "nor does it disturb who draws after"
    torch.manual_seed(2)
    assert same_weights(first, load_model(config, source, model_config, CPU, seed=7))
    assert not same_weights(first, load_model(config, source, model_config, CPU, seed=8))


def test_processor_needs_no_torchvision(name: str, config: ModelConfig, tmp_path: Path) -> None:
    """PIL images on every machine: the torchvision backend makes other pixels."""
    source, model_config = load_source(config)
    processor = load_processor(source, model_config.model_type)
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert getattr(processor, "video_processor", None) is None
    assert processor.chat_template
    processor.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"processor_config.json", "tokenizer.json"}
    again = load_processor(type(source)(str(tmp_path), None, "x"), model_config.model_type)
    assert again.chat_template == processor.chat_template
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()


@pytest.mark.parametrize("video", ["", "own file", "nested"])
def test_a_saved_processor_has_what_servers_look_for(video: str, tmp_path: Path) -> None:
    """Beside torchvision AutoProcessor wants the settings for videos, too, which this program does not read."""
    source, model_config = load_source(ModelConfig(name="t", path="package:tiny_qwen2vl", init=Init.random))
    processor, base, to = load_processor(source, model_config.model_type), tmp_path / "base", tmp_path / "to"
    base.mkdir()
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3}
    named = "TheBasesProcessor" if video else "Qwen2VLProcessor"
    (base / "tokenizer_config.json").write_text(json.dumps({"processor_class": named} if video else {}))
    if video == "own file":
        (base / "video_preprocessor_config.json").write_text(json.dumps(settings))
    if video == "nested":
        (base / "processor_config.json").write_text(json.dumps({"video_processor": settings}))
    save_for_servers(processor, type(source)(str(base), None, "x"), to)
    found, _ = BaseVideoProcessor.get_video_processor_dict(to)
    assert found == settings if video else found["image_processor_type"] == "Qwen2VLImageProcessor"
    again = load_processor(type(source)(str(to), None, "x"), model_config.model_type)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    (to / "processor_config.json").unlink()  # transformers 4 knows the older names alone
    assert json.loads((to / "preprocessor_config.json").read_text())["processor_class"] == named
    older, _ = type(processor.image_processor).get_image_processor_dict(to)
    assert older["size"] == dict(processor.image_processor.size) and older["processor_class"] == named


PLUGIN = """
from vlmft.models.family import GenericFamily

class Solo(GenericFamily):
    max_images = 1

def not_a_class():
    pass
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's folder vlmft_plugins/ on the Python path."""
    folder = tmp_path / "vlmft_plugins"
    folder.mkdir()
    (folder / "families.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    for module in [name for name in sys.modules if name.startswith("vlmft_plugins")]:
        del sys.modules[module]


def test_own_family_by_name(make_config: MakeConfig, plugins: Path, samples: dict[str, Sample]) -> None:
    config = make_config(family="vlmft_plugins.families:Solo")
    own = make_family(config, *load_source(config))
    assert type(own).__name__ == "Solo" and own.max_images == 1 and isinstance(own, GenericFamily)
    generic = make_family(make_config(), *load_source(config))
    sample = samples["one_image"]
    assert own.encode(sample).input_ids.tolist() == generic.encode(sample).input_ids.tolist()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os:path", "model.family: Expected module.path:ClassName inside vlmft or vlmft_plugins, got 'os:path'"),
        ("vlmft_plugins.families", "model.family: Expected module.path:ClassName"),
        ("vlmft_plugins.families:Duo", "model.family: .*cannot be imported"),
        ("vlmft_plugins.nothing:Solo", "model.family: .*cannot be imported"),
        ("vlmft_plugins.families:not_a_class", "model.family: Expected a class"),
    ],
)
def test_other_families_are_refused(make_config: MakeConfig, plugins: Path, target: str, message: str) -> None:
    config = make_config(family=target)
    with pytest.raises(ConfigError, match=message):
        make_family(config, *load_source(config))
