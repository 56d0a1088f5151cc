// What a dashboard's JSON may be, by Grafana's own types: every field that is not theirs, and every value of another
// type, is an error of tsc. Grafana completes options that are left out, so those are optional here.
import type { Dashboard, FieldConfig, FieldConfigSource, Panel, RowPanel } from '@grafana/schema';
import type * as BarGauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as Heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as Stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as TimeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// In JSON a member of an enum is its value.
type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends (infer U)[]
      ? Json<U>[]
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;
type Some<T> = T extends (infer U)[] ? Some<U>[] : T extends object ? { [K in keyof T]?: Some<T[K]> } : T;

type Defaults<Custom> = Omit<Json<FieldConfig>, 'custom'> & { custom?: Some<Json<Custom>> };
type Shown<Kind extends string, Options, Custom> = Omit<Json<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: Kind;
  options: Some<Json<Options>>;
  fieldConfig: Omit<Json<FieldConfigSource>, 'defaults'> & { defaults: Defaults<Custom> };
  targets: Query[];
};
// The schema's package has no type for it.
type Query = {
  expr: string;
  exemplar: boolean;
  format?: 'time_series' | 'heatmap' | 'table';
  instant?: boolean;
  legendFormat: string;
  range?: boolean;
  refId: string;
};

export type Board = Omit<Json<Dashboard>, 'panels'> & {
  panels: (
    | (Json<Omit<RowPanel, 'panels'>> & { panels: [] })
    | Shown<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
    | Shown<'stat', Stat.Options, object>
    | Shown<'bargauge', BarGauge.Options, object>
    | Shown<'heatmap', Heatmap.Options, Heatmap.FieldConfig>
  )[];
};
