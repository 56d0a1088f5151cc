"""Declared dashboards as Grafana's JSON, made with Grafana's own SDK.

The JSON is the classic one, which is what Grafana's sidecar and every Grafana since 10 take; the SDK would rather have
the newer resource, and warns of it when it is imported.
"""

import itertools
from collections.abc import Iterator

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model
from grafana_foundation_sdk.models.common import DataSourceRef

from devtools.dashboards.declared import Dashboard, Kind, Panel, Query, Row

RUNBOOKS = "docs/runbooks"  # the chart puts the address of the docs in its place
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "vfio-migration"
HEIGHTS = {Kind.STAT: 4}
HEIGHT = 8
WINDOWS = "5m,15m,1h,6h,1d,7d"


# What the SDK's builders of panels have in common they have each for itself.
_PanelBuilder = stat.Panel | bargauge.Panel | heatmap.Panel | timeseries.Panel


def render(declared: Dashboard) -> str:
    """The dashboard's JSON."""
    made = (
        dashboard.Dashboard(declared.title)
        .uid(declared.uid)
        .description(declared.about)
        .tags([TAG])
        .editable()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Runbooks").type(model.DashboardLinkType.LINK).url(f"{RUNBOOKS}/README.md"))
        .link(
            dashboard.DashboardLink("VFIO dashboards").tags([TAG]).as_dropdown(True).include_vars(True).keep_time(True)
        )
    )
    for variable in _variables():
        made = made.with_variable(variable)
    top, ids = 0, itertools.count(1)
    for row in declared.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(ids)).grid_pos(model.GridPos(h=1, w=24, x=0, y=top)))
        top = _place(made, row, top + 1, ids)
    board = made.build()
    for each in (board.templating.list_val or ()) if board.templating is not None else ():
        each.auto = each.auto_min = each.auto_count = None  # defaults of the SDK that Grafana's schema does not have
    return JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n"


def _place(made: dashboard.Dashboard, row: Row, top: int, ids: Iterator[int]) -> int:
    """Add a row's panels from `top` on; returns where the next row begins."""
    left, height = 0, 0
    for panel in row.panels:
        if left + panel.width > 24:
            left, top, height = 0, top + height, 0
        height = HEIGHTS.get(panel.kind, HEIGHT)
        made.with_panel(_panel(panel, next(ids), model.GridPos(h=height, w=panel.width, x=left, y=top)))
        left += panel.width
    return top + height


def _panel(panel: Panel, number: int, where: model.GridPos) -> _PanelBuilder:
    made = _of_kind(panel.kind).title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE)
    made = made.id(number).grid_pos(where)
    if panel.runbook:
        link = dashboard.DashboardLink(f"Runbook: {panel.runbook}").url(f"{RUNBOOKS}/{panel.runbook}.md")
        made = made.links([link.type(model.DashboardLinkType.LINK).target_blank(True)])
    for letter, query in zip("ABCDEFGHIJKLMNOP", panel.queries, strict=False):
        made = made.with_target(_target(query, letter, panel.kind))
    return made


def _target(query: Query, letter: str, kind: Kind) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).exemplar(query.exemplars)
    if kind is Kind.HEATMAP:
        return made.format(prometheus_model.PromQueryFormat.HEATMAP)
    return made.instant() if kind in (Kind.STAT, Kind.BARS) else made.range()


def _of_kind(kind: Kind) -> _PanelBuilder:
    match kind:
        case Kind.STAT:
            return stat.Panel().min(0)
        case Kind.BARS:
            return bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL).min(0)
        case Kind.HEATMAP:
            axis = heatmap.YAxisConfig().unit("s")
            return (
                heatmap.Panel()
                .calculate(False)
                .y_axis(axis)
                .color(
                    heatmap.HeatmapColorOptions()
                    .mode(heatmap_model.HeatmapColorMode.SCHEME)
                    .scheme("Oranges")
                    .steps(64)
                )
            )
        case Kind.LINES | Kind.STACK:
            legend = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.TABLE)
            legend = (
                legend.placement(common_model.LegendPlacement.BOTTOM).show_legend(True).calcs(["max", "lastNotNull"])
            )
            lines = timeseries.Panel().legend(legend).min(0).fill_opacity(10)
            if kind is Kind.STACK:
                stacked = common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A")
                lines = lines.stacking(stacked).fill_opacity(60)
            return lines
    raise AssertionError(kind)


def _variables() -> list[Builder[model.VariableModel]]:
    def values(name: str, label: str, query: str) -> dashboard.QueryVariable:
        made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
        made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
        return made.multi(True).include_all(True).all_value(".*")

    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        values("namespace", "Namespace", 'label_values({__name__=~"vfio_(operator|agent)_build_info"}, namespace)'),
        values("node", "Node", "label_values(vfio_agent_build_info, node)"),
        dashboard.IntervalVariable("window")
        .label("Window")
        .values(WINDOWS)
        .current(model.VariableOption(selected=True, text="1h", value="1h")),
    ]
