package main

import (
	"strings"
	"testing"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

func TestParseShare_Texts(t *testing.T) {
	for text, want := range map[string]float32{"5%": 0.05, "0.05": 0.05, " 100 % ": 1, "1": 1, "0.5%": 0.005} {
		got, err := parseShare(text)
		if err != nil || got == nil || *got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "101%", "5", "-1%", "NaN", "x", "%"} {
		if got, err := parseShare(text); err == nil || !strings.HasPrefix(err.Error(), "canary:") {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	if got, err := parseShare(""); got != nil || err != nil {
		t.Errorf("no share: %v, %v", got, err)
	}
}

func TestListDeployments_SaysWhatTheyDo(t *testing.T) {
	var out strings.Builder
	listDeployments(&out, []*routerv1.Deployment{
		{Name: "chat", State: routerv1.DeploymentState_DEPLOYMENT_STATE_CANARY, Canary: 0.05, Replicas: 2,
			Live: &routerv1.Version{Digest: "sha256:0123456789abcdef", Model: "smollm-1"},
			Next: &routerv1.Version{Digest: "sha256:fedcba9876543210", Model: "smollm-2"}, Pinned: true},
		{Name: "code", State: routerv1.DeploymentState_DEPLOYMENT_STATE_ASLEEP, IdleMs: 600_000, Last: "it is unloaded"},
	})
	for _, want := range []string{"canary 5 %", "smollm-1@0123456789ab", "smollm-2@fedcba987654", "never", "asleep",
		"after 10m0s", "it is unloaded"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestDeploy_RefusesBeforeItConnects(t *testing.T) {
	verbFails(t, 2, "canary", "", "deploy", "m", "--canary", "200%")
	verbFails(t, 2, "idle", "", "deploy", "m", "--idle", "-1s")
}

func TestDeploy_SaysWhatToDoForAnAdapter(t *testing.T) {
	line := leftLine(&routerv1.AdapterLeft{Name: "law", Digest: "sha256:0123", Reason: "it was loaded for another"})
	for _, want := range []string{"adapter law", "it was loaded for another", "lamina adapters load sha256:0123:law=DIR"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
}
