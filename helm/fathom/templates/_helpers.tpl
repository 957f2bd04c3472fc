{{/* Names: 40 characters at most, so that what is added to them stays within 63. */}}
{{- define "fathom.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "fathom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "fathom.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "fathom.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "fathom.controller" -}}{{ include "fathom.fullname" . }}-controller{{- end }}
{{- define "fathom.mlflow" -}}{{ include "fathom.fullname" . }}-mlflow{{- end }}
{{- define "fathom.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "fathom.controller" .) -}}
{{- else -}}
{{- required "serviceAccount.name: name yours, or let serviceAccount.create be true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Labels of everything; those by which pods are chosen never change. */}}
{{- define "fathom.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: {{ include "fathom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fathom
{{- end }}

{{- define "fathom.chosen" -}}
app.kubernetes.io/name: {{ include "fathom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fathom.scheme" -}}{{ ternary "https" "http" (not (empty .Values.tls.secretName)) }}{{- end }}
{{- define "fathom.host" -}}{{ include "fathom.controller" . }}.{{ .Release.Namespace }}.svc{{- end }}
{{- define "fathom.url" -}}
{{- $controller := .Values.cluster.controller | default dict -}}
{{- $controller.url | default (printf "%s://%s:%d" (include "fathom.scheme" .) (include "fathom.host" .) (int .Values.service.port)) -}}
{{- end }}

{{- define "fathom.trackingUri" -}}
{{- .Values.mlflow.trackingUri | default (printf "http://%s.%s.svc:5000" (include "fathom.mlflow" .) .Release.Namespace) -}}
{{- end }}

{{/* ClusterSettings (orchestrator/launch/rayjob/settings.py): what was given, and what the chart knows. */}}
{{- define "fathom.cluster" -}}
{{- $known := dict
  "url" (include "fathom.url" .)
  "namespace" .Release.Namespace
  "podLabels" (merge (dict "app.kubernetes.io/component" "controller") (include "fathom.chosen" . | fromYaml))
  "port" (int .Values.service.port) -}}
{{- $controller := merge $known (.Values.cluster.controller | default dict) -}}
{{- $images := omit .Values.images "controller" "tracking" -}}
{{- merge (dict "controller" $controller "images" $images) (deepCopy .Values.cluster) | toYaml -}}
{{- end }}

{{/* An image, by digest unless that is switched off: (list . "controller"). */}}
{{- define "fathom.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $image := index $root.Values.images $name -}}
{{- if not $image -}}
{{- fail (printf "images.%s: none is published, so name the one that you made of k8s/images/%s.Dockerfile: --set images.%s=REGISTRY/NAME@sha256:..." $name $name $name) -}}
{{- end -}}
{{- if and $root.Values.images.requireDigest (not (regexMatch "@sha256:[0-9a-f]{64}$" $image)) -}}
{{- fail (printf "images.%s is %q, which is not named by digest: write NAME@sha256:... with 64 digits, or set images.requireDigest=false to try something" $name $image) -}}
{{- end -}}
{{- $image -}}
{{- end }}

{{/* What Pod Security `restricted` wants, of a pod and of a container. */}}
{{- define "fathom.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "fathom.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where pods run, and by which secrets their images are had. */}}
{{- define "fathom.place" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.place.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.place.tolerations }}
tolerations:
  {{- range . }}
  - {{- toYaml (merge (dict "operator" (.operator | default "Exists")) .) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Of a volume: (list . values name component). */}}
{{- define "fathom.claim" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ index . 2 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "fathom.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ index . 3 }}
  {{- if $values.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
spec:
  accessModes: [{{ $values.accessMode | default "ReadWriteOnce" }}]
  {{- with $values.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $values.size }}
{{- end }}

{{/* Namespaces and addresses that may call controller and MLflow. */}}
{{- define "fathom.guests" -}}
{{- range .Values.networkPolicy.namespaces }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- range .Values.networkPolicy.cidrs }}
- ipBlock:
    cidr: {{ . }}
{{- end }}
{{- end }}

{{/* What the controller may do where jobs are: everything that it does, and nothing else. */}}
{{- define "fathom.rules" -}}
- apiGroups: [fathom.dev]
  resources: [trainingjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [fathom.dev]
  resources: [trainingjobs/status]
  verbs: [patch]
# what belongs to a job may hold it back until it is gone itself
- apiGroups: [fathom.dev]
  resources: [trainingjobs/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch]
# An attempt's own, each by its name; by their configuration those that are left over are found. Secrets are not listed:
# nobody's are looked through.
- apiGroups: [""]
  resources: [secrets, serviceaccounts]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, create, patch]
{{- end }}
