{{- define "weir.metadata" -}}
name: weir
namespace: {{ .Release.Namespace }}
labels:
  app.kubernetes.io/name: weir
{{- end }}

{{- define "weir.clusterMetadata" -}}
name: weir
labels:
  app.kubernetes.io/name: weir
{{- end }}

{{- /* A webhook configuration is for the whole cluster, so a weir for one namespace has none. */ -}}
{{- define "weir.webhook" -}}
{{- if and .Values.webhook.enabled (not .Values.serve.onlyNamespace) }}true{{ end }}
{{- end }}

{{- define "weir.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{- define "weir.injection" -}}
{{- if and .Values.injection.enabled (not .Values.serve.onlyNamespace) }}true{{ end }}
{{- end }}

{{- define "weir.webhooks" -}}
{{- if or (include "weir.webhook" .) (include "weir.injection" .) }}true{{ end }}
{{- end }}

{{- define "weir.injectionCall" -}}
admissionReviewVersions: [v1]
sideEffects: None
failurePolicy: {{ .Values.injection.failurePolicy }}
# A second call would change nothing.
reinvocationPolicy: Never
timeoutSeconds: {{ .Values.injection.timeoutSeconds }}
clientConfig:
  service:
    name: weir
    namespace: {{ .Release.Namespace }}
    path: /inject
    port: 443
rules:
- operations: [CREATE]
  apiGroups: [""]
  apiVersions: [v1]
  resources: [pods]
  scope: Namespaced
matchConditions:
- name: has-no-sidecar
  expression: "!has(object.metadata.annotations) || !('sidecar.istio.io/status' in object.metadata.annotations)"
{{- end }}

{{- /* Only a ClusterRole lets weir ask whose a token is, so a weir for one namespace does not know. */ -}}
{{- define "weir.identity" -}}
{{- if and .Values.identity.enabled (not .Values.serve.onlyNamespace) }}true{{ end }}
{{- end }}

{{- define "weir.namespacedRules" -}}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [networking.istio.io]
  resources: [destinationrules, serviceentries, sidecars, virtualservices, workloadentries]
  verbs: [list, watch]
- apiGroups: [security.istio.io]
  resources: [peerauthentications]
  verbs: [list, watch]
# weir wait and the gates of rollout tools compare what is live with the object's current generation.
- apiGroups: [networking.istio.io]
  resources: [destinationrules, virtualservices]
  verbs: [get]
# The replica that holds the Lease writes the conditions of these objects.
- apiGroups: [networking.istio.io]
  resources: [destinationrules/status, virtualservices/status]
  verbs: [patch]
{{- end }}
