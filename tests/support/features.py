"""Small networks with cached features, and the content of that cache."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pneumo.data.dataset import DecodedDataset
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import METADATA_FILE, FeatureCache, FeatureExtractor
from tests.support.weights import SMALL


def few_images(sample) -> DecodedDataset:
    """Return few images, at 32 pixels."""
    rows = sample.rows.groupby(["split", "label"]).head(20).reset_index(drop=True)
    return replace(sample, rows=rows).decode(32, 0)


def small_config(weights: Path) -> RunConfig:
    """Return the config of a small MobileNet with weights of a file."""
    return RunConfig(**SMALL, weights=str(weights), epochs=4, patience=9, dense_widths=(16,))


def features_of(config: RunConfig, max_unfreeze_depth: int = 0) -> FeatureCache:
    """Return the feature cache of a config; its network is built once for all tests."""
    fields = ("backbone", "alpha", "weights", "image_size", "seed")
    values = tuple((name, getattr(config, name)) for name in fields)
    return FeatureCache(_extractor(values), config, max_unfreeze_depth)


@lru_cache(maxsize=4)
def _extractor(fields: tuple[tuple[str, object], ...]) -> FeatureExtractor:
    config = RunConfig(**dict(fields), unfreeze_depth=0)
    return FeatureExtractor(network.build_backbone(config), config.backbone)


def stored(folder: Path) -> list[tuple[int, float, int]]:
    """Return depth, strength and view of all stored features."""
    found = [json.loads(file.read_text()) for file in folder.rglob(METADATA_FILE)]
    return sorted((facts["depth"], facts["strength"], facts["view"]) for facts in found)
