package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

// TestSystemd_EachServiceStarts reads the unit and sees that the binary takes its command line and its settings for
// each service.
func TestSystemd_EachServiceStarts(t *testing.T) {
	dir := filepath.Join(root, "deploy", "systemd")
	f, err := os.Open(filepath.Join(dir, "lamina@.service"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, o := range options {
		if values[o.Name] != "" {
			t.Errorf("%s is there twice", o.Name)
		}
		values[o.Name] = o.Value
	}
	const installed, settings = "/usr/local/bin/lamina", "/etc/lamina/lamina.yaml"
	for _, service := range services {
		command := strings.Fields(strings.ReplaceAll(values["ExecStart"], "%i", service))
		if len(command) != 4 || command[0] != installed || command[2] != settings {
			t.Fatalf("ExecStart is %q", command)
		}
		out := accepts(t, filepath.Join(dir, "lamina.yaml"), command[3:]...)
		if want := "/etc/lamina/certs/" + service + ".pem"; !strings.Contains(out, want) {
			t.Errorf("%s does not use %s:\n%s", service, want, out)
		}
	}
	for _, name := range []string{"User", "NoNewPrivileges", "ProtectSystem", "CapabilityBoundingSet", "TimeoutStopSec"} {
		if _, ok := values[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}
