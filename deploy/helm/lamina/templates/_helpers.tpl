{{/* Labels by which a component's pods are selected: (dict "root" $ "name" "shard"). */}}
{{- define "lamina.selector" -}}
app.kubernetes.io/name: lamina
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "lamina.labels" -}}
{{ include "lamina.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "lamina.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every pod has besides its container. */}}
{{- define "lamina.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container has: (dict "root" $ "name" "shard" "port" 7073). */}}
{{- define "lamina.container" -}}
image: {{ include "lamina.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: LAMINA_SERVER_CA
    value: /certs/ca.pem
  - name: LAMINA_CLIENT_CERT
    value: /certs/monitor.pem
  - name: LAMINA_CLIENT_CERT_KEY
    value: /certs/monitor.key
  {{- with .root.Values.consul.tokenSecret }}
  - name: LAMINA_CONSUL_TOKEN
    valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}
  {{- end }}
ports:
  - {name: grpc, containerPort: {{ .port }}}
  - {name: metrics, containerPort: 9090}
  {{- if eq .name "router" }}
  - {name: http, containerPort: 8080}
  {{- end }}
# A process that cannot answer is restarted; one that waits for others is only not ready.
startupProbe:
  exec: {command: [/bin/lamina, health, "127.0.0.1:{{ .port }}"]}
  periodSeconds: 2
  failureThreshold: 150
  timeoutSeconds: 5
readinessProbe:
  exec: {command: [/bin/lamina, health, "127.0.0.1:{{ .port }}"]}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  tcpSocket: {port: grpc}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{/* Flags of every service. */}}
{{- define "lamina.flags" -}}
- --listen=0.0.0.0:{{ .port }}
- --metrics=0.0.0.0:9090
- --consul={{ .root.Values.consul.address }}
- --tls-cert=/certs/{{ .name }}.pem
- --tls-key=/certs/{{ .name }}.key
- --tls-ca=/certs/ca.pem
{{- end }}

{{/* The certificate of a component and that of its probes; no pod has another's key. */}}
{{- define "lamina.certificates" -}}
- name: certs
  secret:
    secretName: {{ .root.Values.certificates.secret }}
    defaultMode: 0440
    items:
      - {key: ca.pem, path: ca.pem}
      - {key: {{ .name }}.pem, path: {{ .name }}.pem}
      - {key: {{ .name }}.key, path: {{ .name }}.key}
      - {key: monitor.pem, path: monitor.pem}
      - {key: monitor.key, path: monitor.key}
{{- end }}
