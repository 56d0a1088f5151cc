{{/* Labels of every object of the chart. */}}
{{- define "vfio-migration.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that a selector may name: those that never change. (dict "root" . "component" "...") */}}
{{- define "vfio-migration.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* An image's name. (dict "root" . "image" .Values.operator.image) */}}
{{- define "vfio-migration.image" -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* securityContext of pods, and of containers, that the pod security standard "restricted" admits. */}}
{{- define "vfio-migration.restricted-pod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "vfio-migration.restricted-container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Of the pod, and of the container, of a task that is done once in the operator's image. */}}
{{- define "vfio-migration.task-pod" -}}
restartPolicy: Never
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "vfio-migration.restricted-pod" . | nindent 2 }}
volumes:
  - {name: tmp, emptyDir: {sizeLimit: 16Mi}}
{{- end }}
{{- define "vfio-migration.task-container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- include "vfio-migration.restricted-container" . | nindent 2 }}
resources:
  requests: {cpu: 50m, memory: 128Mi}
  limits: {memory: 256Mi}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* Where agents and keepers run, of a pod's spec: the same nodes for both. */}}
{{- define "vfio-migration.node-scheduling" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.agent.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.agent.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.agent.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
CEL variables of both requester policies: `requester` is the stamp for who makes the request, `stamp` and `oldStamp` are
the object's ('' for none). The format is JSON with keys in order; \ and " are all that is escaped, so that CEL can do
it. vfio_operator/requester.py writes and reads the same.
*/}}
{{- define "vfio-migration.requester-variables" -}}
- name: user
  expression: request.userInfo
- name: names
  expression: >-
    [has(variables.user.username) ? variables.user.username : '', has(variables.user.uid) ? variables.user.uid : '']
    .map(t, '"' + t.replace('\\', '\\\\').replace('"', '\\"') + '"')
- name: groups
  expression: >-
    (has(variables.user.groups) ? variables.user.groups : [])
    .map(t, '"' + t.replace('\\', '\\\\').replace('"', '\\"') + '"').join(',')
# sorted, since a map has no order and two evaluations must agree
- name: extra
  expression: >-
    (has(variables.user.extra) ? variables.user.extra.map(k, k).sort() : [])
    .map(k, '"' + k.replace('\\', '\\\\').replace('"', '\\"') + '":['
      + variables.user.extra[k].map(t, '"' + t.replace('\\', '\\\\').replace('"', '\\"') + '"').join(',') + ']')
    .join(',')
- name: requester
  expression: >-
    '{"username":' + variables.names[0] + ',"uid":' + variables.names[1]
    + ',"groups":[' + variables.groups + '],"extra":{' + variables.extra + '}}'
- name: stamp
  expression: object.metadata.?annotations[?'vfiomigration.io/requester'].orValue('')
- name: oldStamp
  expression: >-
    oldObject == null ? '' : oldObject.metadata.?annotations[?'vfiomigration.io/requester'].orValue('')
# the operator makes the migrations of an evacuation for who asked for that
- name: forAnother
  expression: variables.user.username == {{ include "vfio-migration.operator-user" . }}
{{- end }}

{{/* CEL: may do as they like, since who may `use` every device is trusted with all of them. */}}
{{- define "vfio-migration.may-use-every-device" -}}
authorizer.group('vfiomigration.io').resource('vfiodevices').check('use').allowed()
{{- end }}

{{/* CEL: the user names of the operator, of the hook that runs before an uninstall, and of the agents. */}}
{{- define "vfio-migration.operator-user" -}}
'system:serviceaccount:{{ .Release.Namespace }}:vfio-operator'
{{- end }}
{{- define "vfio-migration.uninstall-user" -}}
'system:serviceaccount:{{ .Release.Namespace }}:vfio-uninstall'
{{- end }}
{{- define "vfio-migration.agent-user" -}}
'system:serviceaccount:{{ .Values.agent.namespace.name }}:vfio-agent'
{{- end }}

{{/* CEL: the node of the pod that the token is bound to, '' if it is bound to none. The API server says it, not the agent. */}}
{{- define "vfio-migration.token-node" -}}
request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')
{{- end }}

{{/* A binding that denies: (dict "name" ... "component" ... "root" .) */}}
{{- define "vfio-migration.deny" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "vfio-migration.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}

{{/* Egress that every pod with an API client needs. */}}
{{- define "vfio-migration.egress-basics" -}}
- ports:
    {{- range .Values.networkPolicies.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{/*
A file of the chart whose links to docs/runbooks lead to where these pages can be read, or that has no such links if that
is nowhere: a line of YAML or an object of JSON each. (dict "root" . "path" "...")
*/}}
{{- define "vfio-migration.with-runbooks" -}}
{{- $text := .root.Files.Get .path }}
{{- with .root.Values.monitoring }}
{{- if .runbooks }}
{{- $first := get (dict ".md" "README.md" ".html" "index.html") .runbooksSuffix }}
{{- $text = $text | replace "docs/runbooks/README.md" (printf "%s/%s" .runbooks $first) }}
{{- regexReplaceAll "docs/runbooks/(\\w+)\\.md" $text (printf "%s/${1}%s" .runbooks .runbooksSuffix) }}
{{- else }}
{{- regexReplaceAll "(?m)^ *runbook_url: .*\\n|\\{[^{}]*\"docs/runbooks/[^{}]*\\},?\\s*" $text "" }}
{{- end }}
{{- end }}
{{- end }}
