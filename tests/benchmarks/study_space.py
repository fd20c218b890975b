"""The search space and the data of both sides of `study`."""

import argparse

from pneumo.training.config import RunConfig

# The five dimensions, the same for both
DROPOUT = (0.0, 0.6)
WIDTHS = ((0, 128, 32), (0, 64, 32))  # lowest, highest, step; 0 is no such layer
STRENGTH = (0.0, 1.0, 0.25)
RATE = (2e-4, 5e-3)  # on a logarithmic scale


def arguments() -> argparse.ArgumentParser:
    """Return the arguments of all processes of this benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="", help="default: random ones, written to a file")
    parser.add_argument("--backbone", default="mobilenet")
    parser.add_argument("--alpha", type=float, default=0.25, help="of MobileNet")
    parser.add_argument("--images", type=int, default=0, help="training images (default: all)")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--depth", type=int, default=2, help="greatest unfreeze_depth")
    parser.add_argument("--fresh", action="store_true", help="vary images anew in every epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0, help="of KerasTuner")
    parser.add_argument(
        "--seconds", type=int, default=0, help="of KerasTuner's search, see `budget`"
    )
    parser.add_argument("--folder", help="where a process finds its files")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument(
        "--by_epoch", action="store_true", help="sum KerasTuner's study from its cost per epoch"
    )
    parser.add_argument("--alone", action="store_true", help="without KerasTuner")
    return parser


def config_of(options: argparse.Namespace) -> RunConfig:
    """Return our baseline, on the same network, images and epochs."""
    return RunConfig(
        backbone=options.backbone,
        alpha=options.alpha if options.backbone == "mobilenet" else 1,
        weights=options.weights,
        image_size=options.size,
        dense_widths=(64,),
        dropout=0.3,
        unfreeze_depth=options.depth,
        feature_cache="off" if options.fresh else "on",
        batch_size=options.batch,
        epochs=options.epochs,
        patience=options.epochs,  # the peer does not stop early either
    )
