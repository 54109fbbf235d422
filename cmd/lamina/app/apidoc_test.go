package app_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
)

// TestRoutes_AreDocumented compares docs/api.md with the table of routes, both ways.
func TestRoutes_AreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("`((GET|POST|DELETE) (/[^` ]+))`").FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(documented, m[1]) {
			documented = append(documented, m[1])
		}
	}
	other := regexp.MustCompile(`^GET /(healthz|readyz|metrics|\{\$\}|console/\{file\})$`)
	var served []string
	for _, pattern := range app.Routes() {
		if !other.MatchString(pattern) {
			served = append(served, pattern)
		}
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, served) {
		t.Errorf("docs/api.md has %q, the table %q", documented, served)
	}
}
