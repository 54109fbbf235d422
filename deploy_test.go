package lamina_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every alert has a section in the manual of operators that says what to do, and every such section an alert.
func TestAlerts_HaveARunbook(t *testing.T) {
	rules, err := os.ReadFile("deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#### (Lamina\w+)\n(\S.*)`).FindAllStringSubmatch(string(manual), -1) {
		sections[m[1]] = true
	}
	alert := regexp.MustCompile(`- alert: (\w+)\n(?:.*\n)*?\s+runbook: docs/operate\.md#(\w+)\n`)
	found := alert.FindAllStringSubmatch(string(rules), -1)
	if n := strings.Count(string(rules), "- alert:"); len(found) != n || n == 0 {
		t.Fatalf("%d of %d alerts name a section", len(found), n)
	}
	for _, m := range found {
		if !sections[m[1]] {
			t.Errorf("alert %s has no section", m[1])
		}
		if m[2] != strings.ToLower(m[1]) {
			t.Errorf("alert %s names the section %s", m[1], m[2])
		}
		delete(sections, m[1])
	}
	for name := range sections {
		t.Errorf("there is no alert %s", name)
	}
}

// The dashboards are what Grafana imports.
func TestDashboards_AreComplete(t *testing.T) {
	files, err := filepath.Glob("deploy/grafana/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			UID    string
			Panels []struct {
				ID      int
				Type    string
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &d); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if d.UID+".json" != filepath.Base(file) {
			t.Errorf("%s has the uid %q", file, d.UID)
		}
		for _, p := range d.Panels {
			if p.ID == 0 || p.Title == "" || p.Type != "row" && (len(p.Targets) == 0 || p.Targets[0].Expr == "") {
				t.Errorf("%s: panel %d %q has no query", file, p.ID, p.Title)
			}
		}
	}
}
