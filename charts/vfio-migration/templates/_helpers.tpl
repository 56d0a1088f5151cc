{{/* Labels of every object of the chart. */}}
{{- define "vfio-migration.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
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
{{- end }}

{{/* CEL: may do as they like, since who may `use` every device is trusted with all of them. */}}
{{- define "vfio-migration.may-use-every-device" -}}
authorizer.group('vfiomigration.io').resource('vfiodevices').check('use').allowed()
{{- end }}

{{/* CEL: the user name of the operator, and of the agents. */}}
{{- define "vfio-migration.operator-user" -}}
'system:serviceaccount:{{ .Release.Namespace }}:vfio-operator'
{{- end }}
{{- define "vfio-migration.agent-user" -}}
'system:serviceaccount:{{ .Release.Namespace }}:vfio-agent'
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
