"""Pictures of the numbers, in one style."""

from matplotlib.figure import Figure

# A plain Figure belongs to no window and no global list: nothing to close, nothing leaks.


def confusion_matrix(confusion: dict[str, int], title: str) -> Figure:
    """The four counts, and each as a share of its row: shaded by that share, light to dark."""
    rows = [
        ("NORMAL", confusion["tn"], confusion["fp"]),
        ("PNEUMONIA", confusion["fn"], confusion["tp"]),
    ]
    figure = Figure(figsize=(5, 4.5), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    shares = [[count / max(1, sum(counts)) for count in counts] for _, *counts in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, (_, *counts) in enumerate(rows):
        for column, count in enumerate(counts):
            share = shares[row][column]
            axes.text(
                column,
                row,
                f"{count:,}\n{share:.1%}",
                ha="center",
                va="center",
                fontsize=15,
                color="white" if share > 0.5 else "black",
            )
    names = [name for name, *_ in rows]
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="actual", title=title)
    return figure
