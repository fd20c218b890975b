"""Small networks whose features are stored, and what is stored of them."""

import json
from dataclasses import replace
from pathlib import Path

from pneumo.data.dataset import DecodedDataset
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import METADATA_FILE, FeatureCache, FeatureExtractor
from tests.support.weights import SMALL


def few_images(sample) -> DecodedDataset:
    """Few images, at 32 pixels."""
    rows = sample.rows.groupby(["split", "label"]).head(20).reset_index(drop=True)
    return replace(sample, rows=rows).decode(32, 0)


def small_config(weights: Path) -> RunConfig:
    """Of a small MobileNet with weights of a file."""
    return RunConfig(**SMALL, weights=str(weights), epochs=4, patience=9, dense_widths=(16,))


def features_of(config: RunConfig, max_unfreeze_depth: int = 0) -> FeatureCache:
    """The store of what its frozen network gives."""
    return FeatureCache(
        FeatureExtractor(network.build_backbone(config), config.backbone),
        config,
        max_unfreeze_depth,
    )


def stored(folder: Path) -> list[tuple[int, float, int]]:
    """Depth, strength and view of all that is stored."""
    found = [json.loads(file.read_text()) for file in folder.rglob(METADATA_FILE)]
    return sorted((facts["depth"], facts["strength"], facts["view"]) for facts in found)
