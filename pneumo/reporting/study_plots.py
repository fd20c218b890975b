"""Optuna's interactive plots of a study, for the study's page."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
import plotly.graph_objects as go
from markupsafe import Markup
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from pneumo.reporting.style import BLUE, GRAY, ORANGE

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
        function: Name of Optuna's function, or "" for the scatter plot of two scores.
        title: Title on the page.
        caption: Explanation for readers.
        uses_target_name: Whether the plot names the score.
        min_complete_trials: Minimum number of complete trials.
        width_per_param: Pixels per searched hyperparameter; a narrower page scrolls.
        height: Height in pixels.
    """

    function: str
    title: str
    caption: str
    uses_target_name: bool = True
    min_complete_trials: int = 1
    width_per_param: int = 0
    height: int = 400


STUDY_PLOTS = {
    "optimization_history": StudyPlot(
        "plot_optimization_history",
        "Optimization history",
        "Score of each complete trial, and the best score so far. The best of many trials is too "
        "optimistic (selection bias). Only other images show how good it is.",
    ),
    "validation_scores": StudyPlot(
        "",
        "Validation AUC and robust AUC",
        "Each complete trial. A high validation AUC with a low robust AUC means that the model "
        "uses aspect ratio or sharpness, which may be distributed differently in other images. The "
        "best trial is orange.",
        uses_target_name=False,
    ),
    "parameter_importances": StudyPlot(
        "plot_param_importances",
        "Hyperparameter importance",
        "How much the values of a hyperparameter in the best tenth of the trials differ from those "
        "in all trials, as a fraction (PED-ANOVA). With few trials, each new one changes it.",
        min_complete_trials=2,
    ),
    "slices": StudyPlot(
        "plot_slice",
        "Score by hyperparameter",
        "Each point is a complete trial. Later trials are darker.",
        width_per_param=210,
    ),
    "parallel_coordinates": StudyPlot(
        "plot_parallel_coordinate",
        "Parallel coordinates",
        "Each line is a trial. Better trials are darker.",
        width_per_param=130,
    ),
    "intermediate_values": StudyPlot(
        "plot_intermediate_values",
        "Intermediate values",
        "Score after each epoch. Pruned trials are gray.",
        uses_target_name=False,
    ),
    "timeline": StudyPlot(
        "plot_timeline",
        "Timeline",
        "Each trial, from its start to its end.",
        uses_target_name=False,
    ),
}


def plotly_script() -> Markup:
    """Return the script that interactive plots need once per page, some 5 MB of JavaScript."""
    return Markup(get_plotlyjs())


def render_plots(
    study: optuna.Study, objective: str, scores: Mapping[int, tuple[float, float]]
) -> dict[str, Markup]:
    """Render the plots for which a study has enough trials.

    Args:
        study: The study.
        objective: Title of its objective.
        scores: Number of a complete trial → its validation AUC and robust AUC.

    Returns:
        Name → HTML.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        name: _render_plot(study, name, objective, scores)
        for name, plot in STUDY_PLOTS.items()
        if len(complete) >= plot.min_complete_trials
    }


def _render_plot(
    study: optuna.Study, name: str, objective: str, scores: Mapping[int, tuple[float, float]]
) -> Markup:
    study_plot = STUDY_PLOTS[name]
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if study_plot.function:
        figure = _optuna_plot(study, study_plot, objective)
    else:  # of equals, the first is the best
        figure = _plot_scores(scores, max(complete, key=lambda trial: trial.value).number)
    figure.update_layout(**LAYOUT, height=study_plot.height)
    if name == "intermediate_values":
        names = {f"Trial{trial.number}" for trial in complete}
        figure.update_layout(showlegend=False)  # a hundred names
        for trace in figure.data:
            trace.line.color = BLUE if trace.name in names else GRAY
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"responsive": True, "displaylogo": False},
    )
    width = study_plot.width_per_param * len(complete[0].params)
    return Markup(f'<div class="scroll"><div style="min-width:{width}px">{html}</div></div>')


def _optuna_plot(study: optuna.Study, study_plot: StudyPlot, objective: str) -> go.Figure:
    options = {"target_name": objective} if study_plot.uses_target_name else {}
    with warnings.catch_warnings():
        # Optuna warns that importances are less accurate if a range was changed
        warnings.simplefilter("ignore", UserWarning)
        return getattr(optuna.visualization, study_plot.function)(study, **options)


def _plot_scores(scores: Mapping[int, tuple[float, float]], best: int) -> go.Figure:
    points = go.Scatter(
        x=[auc for auc, _ in scores.values()],
        y=[robust for _, robust in scores.values()],
        text=[f"Trial {number}" for number in scores],
        mode="markers",
        marker={"size": 9, "color": [ORANGE if number == best else BLUE for number in scores]},
        hovertemplate="%{text}<br>validation AUC %{x:.4f}<br>robust AUC %{y:.4f}<extra></extra>",
    )
    figure = go.Figure(points)
    figure.update_xaxes(title="validation AUC")
    figure.update_yaxes(title="robust AUC")
    return figure
