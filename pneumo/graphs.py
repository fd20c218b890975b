"""Optuna's plots of a study: interactive ones for its page, stills for MLflow's artifact pane."""

import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from markupsafe import Markup
from matplotlib import pyplot as plt
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from pneumo.config import spelled_out
from pneumo.figures import BLUE, GREY, ORANGE, STYLE, png

LAYOUT = {
    "template": "plotly_white",
    "title": None,  # the page has headings
    "width": None,  # that of the page
    "colorway": [BLUE, ORANGE],
    "font": {"size": 13},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
}


@dataclass(frozen=True)
class Graph:
    """A plot, which has the same name in both of Optuna's modules.

    `scored`: whether it names the score; `complete`: the least number of complete trials that it
    needs; `width`: pixels of the
    interactive one for each parameter that was searched, below which it scrolls; `height`, too;
    `size`: of the still, in inches.
    """

    plot: str
    title: str
    caption: str
    scored: bool = True
    complete: int = 1
    width: int = 0
    height: int = 400
    size: tuple[float, float] = (8, 4.5)


GRAPHS = {
    "optimisation_history": Graph(
        "plot_optimization_history",
        "How the search went",
        "Each complete trial, and the best until then. The best of many is flattered: what it is "
        "worth on other images, only other images tell.",
    ),
    "parameter_importances": Graph(
        "plot_param_importances",
        "What matters",
        "The share of the differences between trials that each parameter explains. With few "
        "trials this changes with every one.",
        complete=2,
    ),
    "slices": Graph(
        "plot_slice",
        "Parameter by parameter",
        "Each complete trial, the later the darker.",
        width=210,
        size=(16, 4.5),
    ),
    "parallel_coordinates": Graph(
        "plot_parallel_coordinate",
        "All parameters at once",
        "A line is a trial, the better the darker. Drag along an axis to choose among them.",
        width=130,
        size=(11, 5),
    ),
    "intermediate_values": Graph(
        "plot_intermediate_values",
        "Epoch by epoch",
        "The score after each epoch; grey are the trials that were pruned.",
        scored=False,
    ),
    "timeline": Graph(
        "plot_timeline", "Who worked when", "Each trial from its start to its end.", scored=False
    ),
}


def script() -> Markup:
    """What the interactive ones need on their page, once: some 5 MB of JavaScript."""
    return Markup(get_plotlyjs())


def interactive(study: optuna.Study) -> dict[str, Markup]:
    """Name → HTML of each graph that there are trials enough for."""
    return {name: _interactive(study, name, graph) for name, graph in _possible(study).items()}


def stills(study: optuna.Study) -> dict[str, bytes]:
    """File name → PNG of the same graphs."""
    return {f"{name}.png": _still(study, graph) for name, graph in _possible(study).items()}


def _possible(study: optuna.Study) -> dict[str, Graph]:
    complete = len(_complete(study))
    return {name: graph for name, graph in GRAPHS.items() if complete >= graph.complete}


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _options(study: optuna.Study, graph: Graph) -> dict[str, str]:
    objective = study.best_trial.user_attrs["config"]["objective"]
    return {"target_name": spelled_out(objective)} if graph.scored else {}


def _interactive(study: optuna.Study, name: str, graph: Graph) -> Markup:
    complete = {f"Trial{trial.number}" for trial in _complete(study)}
    with warnings.catch_warnings():
        # Optuna warns that importances are less accurate if a range was changed
        warnings.simplefilter("ignore", UserWarning)
        figure = getattr(optuna.visualization, graph.plot)(study, **_options(study, graph))
    figure.update_layout(**LAYOUT, height=graph.height)
    if name == "intermediate_values":
        figure.update_layout(showlegend=False)  # a hundred names
        for trace in figure.data:
            trace.line.color = BLUE if trace.name in complete else GREY
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displaylogo": False},
    )
    width = graph.width * len(study.best_trial.params)
    return Markup(f'<div class="scroll"><div style="min-width:{width}px">{plot}</div></div>')


def _still(study: optuna.Study, graph: Graph) -> bytes:
    with plt.rc_context({**STYLE, "savefig.bbox": "tight"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental, and of values that are all alike
        axes = getattr(optuna.visualization.matplotlib, graph.plot)(study, **_options(study, graph))
        figure = np.ravel(axes)[0].figure
        try:
            figure.set_size_inches(graph.size)
            if graph.plot == "plot_intermediate_values" and axes.get_legend():
                axes.get_legend().remove()  # a hundred names
            return png(figure)
        finally:
            plt.close(figure)
