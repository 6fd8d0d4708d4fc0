"""vlmft cache: what is stored of images and of the untuned model's answers, and away with it."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.config.schema import CacheConfig
from vlmft.config.tool_schema import CacheToolConfig
from vlmft.data.survey.cache import Store
from vlmft.models.feature_files import FeatureFiles, stored_files
from vlmft.run.features import features_folder
from vlmft.run.stored_answers import ANSWERS


def cache(config: CacheToolConfig) -> None:
    """Prints what is stored for each key, or deletes all of it.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = features_folder(CacheConfig(folder=config.folder))
    if folder is None or (config.folder is not None and not folder.is_dir()):
        raise ConfigError(f"folder: Expected a folder with stored features, got {config.folder!r}; check the path")
    found, store = stored_files(folder), Store()
    answers = store.names(ANSWERS) if config.folder is None else []
    if config.clear:
        store.forget(answers)
        for file, _ in found:
            file.unlink(missing_ok=True)
        lists = f" and {len(answers)} arms' answers of untuned models" if answers else ""
        print(f"{len(found)} files of features deleted in {folder}{lists}")
        return
    sizes, used = defaultdict[Path, int](int), defaultdict[Path, float](float)
    for file, about in found:
        sizes[file.parent] += about.st_size
        used[file.parent] = max(used[file.parent], about.st_mtime)
    print(f"{folder}: {sum(sizes.values()) / 2**30:.2f} GiB")
    for key in sorted(used, key=lambda key: -used[key]):
        day = time.strftime("%Y-%m-%d", time.localtime(used[key]))
        n_images = len(FeatureFiles(key, 0).hashes())
        print(f"  {key.name}  {n_images:>9,} images  {sizes[key] / 2**30:8.2f} GiB  last used {day}")
    if answers:
        print(f"{store.file}: answers of untuned models, {len(answers)} arms")
