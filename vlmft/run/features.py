"""Where features of frozen images are stored: what the settings, the model and the disk say."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from vlmft.config.schema import CacheConfig
from vlmft.data.survey.cache import cache_folder
from vlmft.models.family import Family
from vlmft.models.feature_cache import FeatureCache, feature_key, is_frozen
from vlmft.models.feature_files import FeatureFiles
from vlmft.models.memory_check import GIB, gib


def features_folder(settings: CacheConfig) -> Path | None:
    """The folder with a folder for each key; None where none can be written."""
    if settings.folder is not None:
        return Path(settings.folder).expanduser()
    own = cache_folder()
    return own / "features" if own is not None else None


def feature_cache(base: PreTrainedModel, family: Family, settings: CacheConfig) -> FeatureCache | None:
    """The cache of a loaded model, adapters on it; None where it is switched off, or, which is printed, where what
    sees is trained."""
    if not settings.enabled:
        return None
    if not is_frozen(base):
        print("  features: vision or connector is trained, so each image goes through them every time")
        return None
    key, folder = feature_key(base, family.processor_key), features_folder(settings)
    on_disk = folder is not None and settings.max_gib > 0
    files = FeatureFiles(folder / key, int(settings.max_gib * GIB)) if on_disk and folder is not None else None
    return FeatureCache(key, family.processor_key, files, int(settings.memory_gib * GIB))


def cost(cache: FeatureCache, n_images: int, settings: CacheConfig) -> str | None:
    """What it takes to store the features of so many images, for people; None before any have been made."""
    if (known := next(iter(cache.memory.values()), None)) is None:
        return None
    n_bytes = n_images * known.n_bytes
    place = f"in {cache.files.folder.parent}" if cache.files is not None else "in memory"
    most = settings.max_gib if cache.files is not None else settings.memory_gib
    beyond = f"; at most {most:g} GiB of it (cache.max_gib, cache.memory_gib)" if n_bytes > most * GIB else ""
    return f"vision features of {n_images:,} images, each computed once: about {gib(n_bytes)} {place}{beyond}"
