{{/* What the tracing of a component needs: of .root the values, of .prefix the name of its settings. docs/tracing.md */}}
{{- define "vfio-migration.tracing-env" -}}
{{- with .root.Values.tracing }}
{{- if .enabled -}}
- {name: {{ $.prefix }}_OTLP_ENDPOINT, value: {{ required "tracing.enabled needs tracing.endpoint, such as http://collector.observability:4317" .endpoint | quote }}}
{{- if .insecure }}
- {name: OTEL_EXPORTER_OTLP_INSECURE, value: "true"}
{{- end }}
{{- if .caSecret }}
- {name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /etc/vfio-tracing/ca.crt}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vfio-migration.tracing-mount" -}}
{{- if and .Values.tracing.enabled .Values.tracing.caSecret -}}
- {name: tracing-ca, mountPath: /etc/vfio-tracing, readOnly: true}
{{- end }}
{{- end }}

{{- define "vfio-migration.tracing-volume" -}}
{{- if and .Values.tracing.enabled .Values.tracing.caSecret -}}
# without the Secret the pod runs all the same, and sends no traces
- {name: tracing-ca, secret: {secretName: {{ .Values.tracing.caSecret }}, optional: true, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- end }}

{{/* To the collector, wherever it is: by the port of its endpoint. gRPC takes 443 if there is none. */}}
{{- define "vfio-migration.tracing-egress" -}}
{{- if .Values.tracing.enabled -}}
- ports: [{protocol: TCP, port: {{ regexFind ":[0-9]+/?$" .Values.tracing.endpoint | trimAll ":/" | default "443" }}}]
{{- end }}
{{- end }}
