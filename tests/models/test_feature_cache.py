"""A feature is made once, and nothing comes out otherwise: ids, features, checks of what is stored, and its limits."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.tiny_models import MODELS, Tiny, save
from tests.models.tiny_folders import drawn, loaded
from vlmft.config.schema import Init, ModelConfig, PartsConfig, QuantizationConfig, QuantizationMode, Tuning
from vlmft.models import feature_files, lora
from vlmft.models import features as features_file
from vlmft.models.family import GenericFamily, make_family
from vlmft.models.feature_cache import FeatureCache, feature_key, is_frozen
from vlmft.models.feature_files import Entry, FeatureFiles
from vlmft.models.features import groups_to_see
from vlmft.models.load import load_model, load_source
from vlmft.models.placeholders import placeholders_known
from vlmft.sample import PIXEL_HASHES, EncodedImage, EncodedRow, Image, Message, Prompt

MANY = 1 << 30
PIXELS_ARE_READ = {"Idefics2", "IDEFICS"}
"""Their processors do not tell what they write in an image's place: features are stored, ids need the image."""


@pytest.fixture(autouse=True)
def forget_hashes() -> Iterator[None]:
    yield
    PIXEL_HASHES.clear()


def lost() -> PIL.Image.Image:
    raise AssertionError("an image whose features are stored was decoded")


def picture(width: int, height: int, seed: int) -> Image:
    return Image(partial(drawn, width, height, seed), f"{seed}", f"{width} {height} {seed}")


def asked(*images: Image) -> Prompt:
    return Prompt((Message("user", (*images, "How many?")),))


def cache_of(family: GenericFamily, model: PreTrainedModel, folder: Path) -> FeatureCache:
    key = feature_key(model, family.processor_key)
    return FeatureCache(key, family.processor_key, FeatureFiles(folder / key, MANY), MANY)


def features(family: GenericFamily, model: PreTrainedModel, row: EncodedRow) -> list[torch.Tensor]:
    return family.image_features(model, row.images, grad=False)


def logits(family: GenericFamily, model: PreTrainedModel, row: EncodedRow) -> torch.Tensor:
    with torch.no_grad():
        batch = family.collate([row], "right", model)
        return family.forward(model, batch, features(family, model, row), batch.attention_mask.bool())


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_a_stored_image_is_not_looked_at_and_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """Ids, token types, positions and logits of one and of two images, to the bit; read in another process's way."""
    family, model = loaded(tiny, tmp_path / "model")
    images = [picture(60, 60, 1), picture(96, 50, 2)][: family.max_images or 2]
    plain = family.encode_prompt("row", asked(*images))
    expected, seen = logits(family, model, plain), features(family, model, plain)
    with cache_of(family, model, tmp_path / "features") as family.cache:
        for image in images:
            features(family, model, family.encode_prompt("alone", asked(image)))
    assert family.cache.made == len(images)
    family.cache = pickle.loads(pickle.dumps(family.cache))  # as in a worker or the next process: nothing in memory
    if placeholders_known(family.processor):
        images = [Image(lost, image.name, image.identity) for image in images]
    else:
        assert tiny.name in PIXELS_ARE_READ
    row = family.encode_prompt("row", asked(*images))
    assert np.array_equal(row.input_ids, plain.input_ids)
    assert row.token_arrays.keys() == plain.token_arrays.keys()
    assert all(np.array_equal(row.token_arrays[name], plain.token_arrays[name]) for name in row.token_arrays)
    assert [image.sha256 for image in row.images] == [image.sha256 for image in plain.images]
    assert all(torch.equal(*pair) for pair in zip(features(family, model, row), seen, strict=True))
    assert torch.equal(logits(family, model, row), expected)
    assert family.cache.made == 0
    assert torch.isfinite(expected).all() and expected.std() > 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[GenericFamily, PreTrainedModel]:
    return loaded(MODELS[0], tmp_path_factory.mktemp("model"))


@pytest.fixture
def stored(small: tuple[GenericFamily, PreTrainedModel], tmp_path: Path) -> tuple[FeatureCache, Image, torch.Tensor]:
    """A cache of one image in one file, as a later process finds it."""
    family, model = small
    image = picture(60, 60, 1)
    with cache_of(family, model, tmp_path) as family.cache:
        (feature,) = features(family, model, family.encode_prompt("row", asked(image)))
    family.cache = cache_of(family, model, tmp_path)
    return family.cache, image, feature


def the_file(cache: FeatureCache) -> Path:
    assert cache.files is not None
    (file,) = cache.files.folder.glob("*.safetensors")
    return file


@pytest.mark.parametrize("place", [0, 9, 0.3, 0.9, -1], ids=str)
def test_a_damaged_byte_is_never_read(
    place: float, small: tuple[GenericFamily, PreTrainedModel], stored: tuple[FeatureCache, Image, torch.Tensor]
) -> None:
    """In the header's length, the header, the tensors: the file is deleted, and the image goes through the model."""
    (family, model), (cache, image, feature) = small, stored
    file = the_file(cache)
    data = bytearray(file.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 0x5A
    file.write_bytes(data)
    (again,) = features(family, model, family.encode_prompt("row", asked(image)))
    assert torch.equal(again, feature) and cache.made == 1
    assert not file.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_file_is_never_read(
    share: float, small: tuple[GenericFamily, PreTrainedModel], stored: tuple[FeatureCache, Image, torch.Tensor]
) -> None:
    (family, model), (cache, image, feature) = small, stored
    file = the_file(cache)
    os.truncate(file, int(share * file.stat().st_size))
    (again,) = features(family, model, family.encode_prompt("row", asked(image)))
    assert torch.equal(again, feature) and cache.made == 1


def test_an_entry_that_is_gone_by_then_is_made_anew(
    small: tuple[GenericFamily, PreTrainedModel], stored: tuple[FeatureCache, Image, torch.Tensor]
) -> None:
    """A worker found it, and before the batch came it was evicted."""
    (family, model), (cache, image, feature) = small, stored
    row = family.encode_prompt("row", asked(image))
    assert row.images[0].features_stored and "pixel_values" not in row.images[0].arrays
    the_file(cache).unlink()
    assert cache.files is not None
    family.cache = FeatureCache(cache.key, cache.processor, FeatureFiles(cache.files.folder, MANY), MANY)
    assert torch.equal(features(family, model, row)[0], feature) and family.cache.made == 1


def test_with_gradients_pixels_come_back(
    small: tuple[GenericFamily, PreTrainedModel], stored: tuple[FeatureCache, Image, torch.Tensor]
) -> None:
    """Preflight asks for gradients of a frozen tower: they cannot come from a store."""
    (family, model), (_, image, feature) = small, stored
    row = family.encode_prompt("row", asked(image))
    assert row.images[0].features_stored
    (seen,) = family.image_features(model, row.images, grad=True)
    assert torch.allclose(seen, feature, atol=1e-6)


class Other(GenericFamily):
    """An own family, whose file is not one of ours."""


@pytest.mark.parametrize("change", ["weight", "connector", "dtype", "attention", "processor", "code"])
def test_what_makes_another_key(change: str, tmp_path: Path) -> None:
    family, model = loaded(MODELS[0], tmp_path / "model")
    before = feature_key(model, family.processor_key)
    assert before == feature_key(model, family.processor_key)
    names = [name for name, _ in model.named_parameters()]
    if change in ("weight", "connector"):
        part = "vision" if change == "weight" else "connector"
        name = next(name for name in names if lora.part_of(name) == part)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0].add_(1e-3)
    elif change == "dtype":
        model.to(torch.bfloat16)
    elif change == "attention":
        model.config._attn_implementation = "flex_attention"
    elif change == "code":
        family = Other(family.processor, model.config, family.max_length_tokens)
    else:
        family.processor.image_processor.do_normalize = False
    assert feature_key(model, family.processor_key) != before


def test_language_weights_are_not_in_the_key(small: tuple[GenericFamily, PreTrainedModel]) -> None:
    family, model = small
    before = feature_key(model, family.processor_key)
    name = next(name for name, p in model.named_parameters() if lora.part_of(name) == "language" and p.dim() == 1)
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
        assert feature_key(model, family.processor_key) == before
        model.get_parameter(name).sub_(1.0)


@pytest.mark.parametrize("part", ["vision", "connector", "language"])
@pytest.mark.parametrize("tuning", [Tuning.lora, Tuning.full])
def test_what_is_trained_is_not_cached(part: str, tuning: Tuning, tmp_path: Path) -> None:
    """The defect: `grad=False` means that no gradient is wanted, as in validation, not that the tower is frozen."""
    save(MODELS[0], tmp_path / "model")
    plain = QuantizationConfig(mode=QuantizationMode.none)
    parts = PartsConfig(**{"language": Tuning.frozen, part: tuning})
    path = str(tmp_path / "model")
    config = ModelConfig(name="x", path=path, init=Init.random, quantization=plain, train=parts)
    source, model_config = load_source(config)
    family = make_family(config, source, model_config)
    base = load_model(config, source, model_config, torch.device("cpu"), seed=0)
    cache = FeatureCache(feature_key(base, family.processor_key), family.processor_key, None, MANY)
    base.requires_grad_(False)
    assert cache.serves(base)
    if part != "language" and tuning == Tuning.lora:
        config.lora.target_modules = sorted(
            {n.rpartition(".")[2] for n, m in base.named_modules() if lora.part_of(n) == part and hasattr(m, "weight")}
            & {"q_proj", "v_proj", "proj"}
        )
    lora.attach(base, config, 0)
    assert is_frozen(base) is (part == "language")
    if tuning == Tuning.lora:  # an adapter that is put on later, as by evaluate.py, is noticed, too
        assert cache.serves(base) is (part == "language")


def entry(number: int, n_bytes: int = 4000) -> Entry:
    return Entry(torch.full((n_bytes // 4,), float(number)), {"grid": np.array([[1, 2, number]])}, "<i>" * number)


def test_files_return_what_was_added(tmp_path: Path) -> None:
    files = FeatureFiles(tmp_path / "key", MANY)
    half = Entry(torch.randn(3, 5).bfloat16(), {}, "", "file 7")
    files.add("a", entry(3))
    files.add("b", half)
    files.flush()
    later = FeatureFiles(tmp_path / "key", MANY)
    found, other = later.read("a"), later.read("b")
    assert found is not None and other is not None and later.read("c") is None
    assert torch.equal(found.feature, entry(3).feature) and found.placeholder == "<i><i><i>"
    assert found.arrays["grid"].tolist() == [[1, 2, 3]]
    assert other.feature.dtype == torch.bfloat16 and torch.equal(other.feature, half.feature)
    assert PIXEL_HASHES["file 7"] == "b"


def test_the_longest_unused_files_go_and_files_in_use_stay(tmp_path: Path) -> None:
    for number in (1, 2):
        old = FeatureFiles(tmp_path / f"key{number}", MANY)
        old.add(str(number), entry(number, 40_000))
        old.flush()
        (file,) = old.folder.glob("*.safetensors")
        os.utime(file, (number, number))
    size = file.stat().st_size
    files = FeatureFiles(tmp_path / "key2", int(2.5 * size))
    assert files.read("2") is not None  # used by this process
    files.add("3", entry(3, 40_000))
    files.flush()
    assert not list((tmp_path / "key1").glob("*.safetensors")) and not files.full
    files.add("4", entry(4, 40_000))
    files.flush()
    assert files.full and len(list((tmp_path / "key2").glob("*.safetensors"))) == 2
    assert {sha for sha in "1234" if FeatureFiles(tmp_path / "key2", MANY).read(sha)} == {"2", "3"}


def test_a_full_disk_costs_the_cache_alone(room_for: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = FeatureFiles(tmp_path / "key", MANY)
    files.add("a", entry(1, 400_000))
    with room_for(1000):
        files.flush()
    assert "cannot be written" in capsys.readouterr().err and files.full
    assert list((tmp_path / "key").iterdir()) == [] and files.read("a") is None


def fill(folder: Path, first: int, n: int, ready: Any) -> None:
    files = FeatureFiles(folder, MANY)
    if ready is not None:
        ready.wait()
    for number in range(first, first + n):
        files.add(str(number), entry(number))
        files.flush()


def test_two_processes_fill_one_cache_and_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(2)
    ranges = [(0, 30), (20, 30)]
    processes = [context.Process(target=fill, args=(tmp_path / "key", *each, ready)) for each in ranges]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    files = FeatureFiles(tmp_path / "key", MANY)
    for number in range(50):
        found = files.read(str(number))
        assert found is not None and torch.equal(found.feature, entry(number).feature)
    assert files.read("50") is None


@pytest.mark.slow
def test_killed_at_any_byte_the_cache_works(tmp_path: Path) -> None:
    """kill -9 while it writes, 20 times: what is there is whole, and more is added."""
    context = multiprocessing.get_context("fork")  # twenty imports of torch would take minutes
    n_stored = []
    for kill in range(20):
        process = context.Process(target=fill, args=(tmp_path / "key", 100 * kill, 100_000, None))
        process.start()
        before = len(list(tmp_path.rglob("*.safetensors")))
        while len(list(tmp_path.rglob("*.safetensors"))) < before + 2:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(np.random.default_rng(kill).uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        files = FeatureFiles(tmp_path / "key", MANY)
        files.read("none")
        whole = [sha for sha in files.place if files.read(sha)]
        assert sorted(whole) == sorted(files.place)
        n_stored.append(len(whole))
    assert len(n_stored) == 20 and n_stored == sorted(n_stored) and n_stored[-1] > 40
    torn = list(tmp_path.rglob(".*.partial"))
    for file in torn:
        os.utime(file, (1, 1))
    files.add("last", entry(1))
    files.flush()
    assert not list(tmp_path.rglob(".*.partial"))


def test_what_waits_is_written_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "FILE_BYTES", 10_000)
    files = FeatureFiles(tmp_path / "key", MANY)
    for number in range(6):
        files.add(str(number), entry(number))
    assert len(list((tmp_path / "key").glob("*.safetensors"))) == 2


def test_what_goes_together_on_a_gpu() -> None:
    """Equal shapes, within a limit, each once and in their order; on a CPU each image alone."""

    def encoded(name: str, tiles: int, side: int) -> EncodedImage:
        return EncodedImage(name, {"pixel_values": np.zeros((tiles, 3, side, side), np.float32)})

    sizes = {"a": (17, 512), "b": (4, 64), "c": (4, 512), "d": (9, 64), "e": (17, 512)}
    images = [encoded(name, *size) for name, size in sizes.items()]
    grouped = groups_to_see(images, torch.device("cuda"))
    assert [[image.sha256 for image in group] for group in grouped] == [["a", "c"], ["b", "d"], ["e"]]
    gone = [EncodedImage(name, {}, features_stored=True) for name in "fg"]  # stored then, and deleted since
    assert [len(group) for group in groups_to_see(gone, torch.device("cuda"))] == [1, 1]
    assert [len(group) for group in groups_to_see(images, torch.device("cpu"))] == [1] * 5


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_images_that_go_together_have_the_features_of_each_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: up to rounding, 1e-5 of the largest value in fp32. An image that comes twice is seen once."""
    family, model = loaded(tiny, tmp_path / "model")
    first, second = (family.encode_prompt("row", asked(picture(60, 60, seed))).images[0] for seed in (1, 2))
    alone = [*family.image_features(model, [first], grad=False), *family.image_features(model, [second], grad=False)]
    seen: list[int] = []
    see = family.see
    monkeypatch.setattr(family, "see", lambda model, images: seen.append(len(images)) or see(model, images))
    monkeypatch.setattr(features_file, "groups_to_see", lambda images, _: groups_to_see(images, torch.device("cuda")))
    together = family.image_features(model, [first, second, first], grad=False)
    assert seen == [2]
    assert torch.equal(together[0], together[2])
    if tiny.name != "Gemma 3":  # its projection begins at zero
        assert not torch.allclose(together[0], together[1])
    for one, other in zip(alone, together, strict=False):
        assert one.shape == other.shape and float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
