"""Commands with one invalid value."""

from tests.bad import Case


def case(name: str, says: str, *arguments: str) -> Case:
    return Case(name, lambda _: list(arguments), says)


TEXT = "must have 1 to 4096 UTF-8 characters and no control characters"

CASES: list[Case] = [
    case("not a number", "dropout must be .* 0 to 0.9: got 'nan'$", "train", "--dropout", "nan"),
    case("infinite", "learning_rate must be .*got '-inf'$", "train", "--learning_rate=-inf"),
    case("beyond all floats", "got '1e400'$", "tune", "--learning_rate", "1e400"),
    case("beyond all integers", "seed must be .*got '9+…9+'$", "tune", "--seed", "9" * 4_000),
    case(
        "too many trials", "from 1 to 1000000000: got '1\\d+…\\d+'", "tune", "--trials", "1" * 999
    ),
    case("too many workers", "from 1 to 1000: got '5000'", "tune", "--workers", "5000"),
    case("superscript digits", "epochs must be .*got '²³'$", "train", "--epochs", "²³"),
    case(
        "a number with words",
        "batch_size must be .*got '8 or 16'$",
        "train",
        "--batch_size=8 or 16",
    ),
    case(
        "a thousand layers",
        "dense_widths must be widths of up to four",
        "train",
        f"--dense_widths={'8-' * 999}8",
    ),
    case("a newline", rf"{TEXT}.*got 'a\\nb'", "tune", "--study", "a\nb"),
    case("a surrogate", rf"{TEXT}.*got '\\udcff'", "explore", "--data", "\udcff"),
    case("a novel", rf"{TEXT}.*got 'x+…x+'", "train", "--resize", "x" * 10_000),
    case("an unknown flag", r"unrecognized arguments: --a\\nb x+…", "train", "--a\nb", "x" * 999),
    case("two dashes", "--dropout: must not be '--'", "train", "--dropout=--"),
    case(
        "no data", "--data: must have 1 to 4096 UTF-8 characters.*got ''", "explore", "--data", ""
    ),
    case("a path as a study", "--study: must be a name of .*got '../x'", "tune", "--study", "../x"),
    case("an address as a model", "--model_name: must be a name", "train", "--model_name", "a:b/c"),
    case(
        "a path as experiment",
        "experiment must be one of .*got '../x'",
        "train",
        "--experiment=../x",
    ),
    case(
        "weights of a home of nobody",
        "weights must be .*got '~nobody/x'$",
        "train",
        "--weights=~nobody/x",
    ),
    case(
        "weights with too long a name",
        "weights must be .*got 'w+…w+'$",
        "train",
        f"--weights={'w' * 4_000}",
    ),
    case(
        "images with too long a name",
        "'w+…w+' matches none$",
        "predict",
        "--out=o",
        f"--images={'w' * 4_000}",
    ),
    case(
        "an out with too long a name",
        "out must have a file name of at most 240 bytes: got 'w+…w+'$",
        "predict",
        "--images=.",
        f"--out={'w' * 250}",
    ),
    case("a width of a network that has none", "alpha must be 1 with", "train", "--alpha", "0.5"),
    case(
        "a search that goes beyond what is fixed",
        "tune_resnet.py contains unfreeze_depth 4, which is invalid: unfreeze_depth must "
        "be 0 to 2 with backbone cnn: got 4. Set --unfreeze_depth too",
        *("tune", "--experiment", "tune_resnet", "--backbone", "cnn", "--weights", "none"),
    ),
    case(
        "a fixed value that the base contradicts",
        "weights must be none with backbone cnn: got imagenet$",
        *("tune", "--experiment", "tune_resnet", "--backbone", "cnn"),
    ),
]
