package deploy

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// render returns the chart's objects as templates make them, decoded by Kubernetes's types: a field that these do not
// have is an error.
func render(t *testing.T, values map[string]any) []any {
	t.Helper()
	chart, err := loader.Load(filepath.Join(root, "deploy", "helm", "lamina"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, values,
		chartutil.ReleaseOptions{Name: "lamina", Namespace: "models", IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	var objects []any
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		docs := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(files[name])))
		for {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if o := decode(t, name, doc); o != nil {
				objects = append(objects, o)
			}
		}
	}
	return objects
}

func decode(t *testing.T, name string, doc []byte) any {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, doc)
	}
	kinds := map[string]any{
		"": nil, "apps/v1 Deployment": &appsv1.Deployment{}, "apps/v1 StatefulSet": &appsv1.StatefulSet{},
		"v1 Service": &corev1.Service{}, "policy/v1 PodDisruptionBudget": &policyv1.PodDisruptionBudget{},
		"networking.k8s.io/v1 NetworkPolicy":      &networkingv1.NetworkPolicy{},
		"monitoring.coreos.com/v1 ServiceMonitor": &monitoringv1.ServiceMonitor{},
	}
	o, ok := kinds[strings.TrimSpace(kind.APIVersion+" "+kind.Kind)]
	switch {
	case !ok:
		t.Fatalf("%s: unexpected %s %s", name, kind.APIVersion, kind.Kind)
	case o == nil: // a document of comments
		return nil
	}
	if err := yaml.UnmarshalStrict(doc, o); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, doc)
	}
	return o
}

// pods is a Deployment or StatefulSet.
type pods struct {
	name     string
	selector map[string]string
	template corev1.PodTemplateSpec
	claims   []corev1.PersistentVolumeClaim
}

func workloads(objects []any) (out []pods) {
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			out = append(out, pods{o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template, nil})
		case *appsv1.StatefulSet:
			out = append(out, pods{o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template, o.Spec.VolumeClaimTemplates})
		}
	}
	return out
}

var everything = map[string]any{
	"router":         map[string]any{"keysSecret": "lamina-keys"},
	"nats":           map[string]any{"nkeysSecret": "lamina-nkeys"},
	"consul":         map[string]any{"tokenSecret": "lamina-consul"},
	"shard":          map[string]any{"train": true, "kvPositions": 1 << 24},
	"trainer":        map[string]any{"enabled": true},
	"serviceMonitor": map[string]any{"enabled": true},
	"networkPolicy":  map[string]any{"clients": map[string]any{"app": "chat"}},
	"nodeSelector":   map[string]any{"kubernetes.io/arch": "amd64"},
	"tolerations":    []any{map[string]any{"key": "models", "operator": "Exists"}},
	"podAnnotations": map[string]any{"team": "models"},
}

// TestHelm_ObjectsFitTogether renders the chart with its defaults and with everything turned on.
func TestHelm_ObjectsFitTogether(t *testing.T) {
	for name, values := range map[string]map[string]any{"defaults": nil, "everything": everything} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, values)
			found := map[string]bool{}
			for _, w := range workloads(objects) {
				checkWorkload(t, w)
				found[w.template.Spec.Containers[0].Args[0]] = true
			}
			for _, service := range services {
				if !found[service] && (service != "trainer" || values != nil) {
					t.Errorf("nothing runs the %s", service)
				}
			}
			for _, o := range objects {
				switch o := o.(type) {
				case *corev1.Service:
					checkSelects(t, objects, "service "+o.Name, o.Spec.Selector)
				case *policyv1.PodDisruptionBudget:
					checkSelects(t, objects, "budget "+o.Name, o.Spec.Selector.MatchLabels)
				case *networkingv1.NetworkPolicy:
					checkSelects(t, objects, "policy "+o.Name, o.Spec.PodSelector.MatchLabels)
				}
			}
		})
	}
}

func checkWorkload(t *testing.T, w pods) {
	t.Helper()
	if !within(w.selector, w.template.Labels) {
		t.Errorf("%s does not select its own pods", w.name)
	}
	c := w.template.Spec.Containers[0]
	args := slices.Clone(c.Args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$(POD_NAME)", w.name+"-0")
	}
	accepts(t, "", args...)
	volumes := map[string]bool{}
	for _, v := range w.template.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, v := range w.claims {
		volumes[v.Name] = true
	}
	var paths []string
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("%s mounts %s, which is no volume", w.name, m.Name)
		}
		paths = append(paths, m.MountPath)
	}
	for _, a := range args { // what a flag names lies in a volume
		_, path, _ := strings.Cut(a, "=")
		if strings.HasPrefix(path, "/") && !slices.ContainsFunc(paths, func(p string) bool {
			return path == p || strings.HasPrefix(path, p+"/")
		}) {
			t.Errorf("%s: %s lies in no volume of %q", w.name, a, paths)
		}
	}
	ports := map[string]bool{}
	for _, p := range c.Ports {
		ports[p.Name] = true
	}
	for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		switch {
		case probe == nil:
			t.Errorf("%s lacks a probe", w.name)
		case probe.TCPSocket != nil && !ports[probe.TCPSocket.Port.String()]:
			t.Errorf("%s: no port %s", w.name, probe.TCPSocket.Port.String())
		case probe.Exec != nil:
			accepts(t, "", probe.Exec.Command[1:]...)
		}
	}
	if s := w.template.Spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		t.Errorf("%s may run as root", w.name)
	}
}

func checkSelects(t *testing.T, objects []any, what string, selector map[string]string) {
	t.Helper()
	if !slices.ContainsFunc(workloads(objects), func(w pods) bool { return within(selector, w.template.Labels) }) {
		t.Errorf("%s selects nothing: %v", what, selector)
	}
}

func within(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// TestHelm_CertificatesCoverNames makes certificates as docs/deploy.md tells, and looks up the names that pods
// advertise.
func TestHelm_CertificatesCoverNames(t *testing.T) {
	dir := t.TempDir()
	args := []string{"certs", "init", "--dir", dir}
	for _, host := range certificateHosts(t) {
		args = append(args, "--host", host)
	}
	if _, err := lamina(args...); err != nil {
		t.Fatal(err)
	}
	for _, w := range workloads(render(t, everything)) {
		for _, a := range w.template.Spec.Containers[0].Args {
			address, ok := strings.CutPrefix(a, "--advertise=")
			if !ok {
				continue
			}
			host, _, _ := strings.Cut(strings.ReplaceAll(address, "$(POD_NAME)", w.name+"-12"), ":")
			service := w.template.Spec.Containers[0].Args[0]
			data, err := os.ReadFile(filepath.Join(dir, service+".pem"))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(data)
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.VerifyHostname(host); err != nil {
				t.Error(err)
			}
		}
	}
}

// certificateHosts returns the names that docs/deploy.md says to issue certificates for.
func certificateHosts(t *testing.T) (hosts []string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs", "deploy.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, "lamina certs init --dir certs --host lamina-router") {
			continue
		}
		fields := strings.Fields(line)
		for i, f := range fields {
			if f == "--host" {
				hosts = append(hosts, strings.Trim(fields[i+1], "'"))
			}
		}
	}
	if len(hosts) == 0 {
		t.Fatal("docs/deploy.md does not tell how to make certificates for the chart")
	}
	return hosts
}

func TestHelm_TrainerNeedsShardsThatTrain(t *testing.T) {
	chart, err := loader.Load(filepath.Join(root, "deploy", "helm", "lamina"))
	if err != nil {
		t.Fatal(err)
	}
	values, err := chartutil.ToRenderValues(chart, map[string]any{"trainer": map[string]any{"enabled": true}},
		chartutil.ReleaseOptions{Name: "lamina"}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = (engine.Engine{Strict: true}).Render(chart, values); err == nil ||
		!strings.Contains(err.Error(), "trainer.enabled needs shard.train") {
		t.Errorf("got %v", err)
	}
}
