"""Optuna's interactive plots of a study, for the study's page."""

import warnings
from dataclasses import dataclass

import optuna
from markupsafe import Markup
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from pneumo.reporting.style import BLUE, GREY, ORANGE

LAYOUT = {
    "template": "plotly_white",
    "title": None,  # the page has headings
    "width": None,  # the page's own width
    "colorway": [BLUE, ORANGE],
    "font": {"size": 13},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
}


@dataclass(frozen=True)
class StudyPlot:
    """A plot of `optuna.visualization`.

    Attributes:
        plot: Name of Optuna's function.
        title: Title on the page.
        caption: Explanation for readers.
        scored: Whether the plot names the score.
        complete: Minimum number of complete trials.
        width: Pixels per searched hyperparameter; a narrower page scrolls.
        height: Height in pixels.
    """

    plot: str
    title: str
    caption: str
    scored: bool = True
    complete: int = 1
    width: int = 0
    height: int = 400


STUDY_PLOTS = {
    "optimisation_history": StudyPlot(
        "plot_optimization_history",
        "Optimization history",
        "Score of each complete trial, and the best score so far. The best of many trials is too "
        "optimistic (selection bias). Only other images show how good it is.",
    ),
    "parameter_importances": StudyPlot(
        "plot_param_importances",
        "Hyperparameter importance",
        "Fraction of the variation between trials that each hyperparameter explains. With few "
        "trials, each new one changes these values.",
        complete=2,
    ),
    "slices": StudyPlot(
        "plot_slice",
        "Score by hyperparameter",
        "Each point is a complete trial. Later trials are darker.",
        width=210,
    ),
    "parallel_coordinates": StudyPlot(
        "plot_parallel_coordinate",
        "Parallel coordinates",
        "Each line is a trial. Better trials are darker. Drag along an axis to select trials.",
        width=130,
    ),
    "intermediate_values": StudyPlot(
        "plot_intermediate_values",
        "Intermediate values",
        "Score after each epoch. Pruned trials are gray.",
        scored=False,
    ),
    "timeline": StudyPlot(
        "plot_timeline", "Timeline", "Each trial, from its start to its end.", scored=False
    ),
}


def plotly_script() -> Markup:
    """Return the script that interactive plots need once per page, some 5 MB of JavaScript."""
    return Markup(get_plotlyjs())


def render_plots(study: optuna.Study, objective: str) -> dict[str, Markup]:
    """Render the plots for which a study has enough trials.

    Args:
        study: The study.
        objective: Title of its objective.

    Returns:
        Name → HTML.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        name: _render_plot(study, name, objective, {f"Trial{it.number}" for it in complete})
        for name, graph in STUDY_PLOTS.items()
        if len(complete) >= graph.complete
    }


def _render_plot(study: optuna.Study, name: str, objective: str, complete: set[str]) -> Markup:
    graph = STUDY_PLOTS[name]
    options = {"target_name": objective} if graph.scored else {}
    with warnings.catch_warnings():
        # Optuna warns that importances are less accurate if a range was changed
        warnings.simplefilter("ignore", UserWarning)
        figure = getattr(optuna.visualization, graph.plot)(study, **options)
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
