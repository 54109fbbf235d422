package console_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/services/router/console"
)

func TestMain(m *testing.M) { leak.Main(m) }

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// sources returns the embedded files by name.
func sources(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("static/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(f)] = string(text)
	}
	return out
}

func TestPages_FilesAndPolicy(t *testing.T) {
	s := httptest.NewServer(console.Pages())
	defer s.Close()
	kinds := map[string]string{".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
	paths := map[string]string{"/": "text/html"}
	for name := range sources(t) {
		if name != "index.html" { // net/http redirects its name
			paths["/console/"+name] = kinds[filepath.Ext(name)]
		}
	}
	for path, kind := range paths {
		resp, text := get(t, s.URL+path)
		policy := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != http.StatusOK || kind == "" || text == "" ||
			!strings.HasPrefix(resp.Header.Get("Content-Type"), kind) {
			t.Errorf("%s: %d, %q, %d bytes", path, resp.StatusCode, resp.Header.Get("Content-Type"), len(text))
		}
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "script-src 'self';") ||
			strings.Contains(policy, "unsafe") {
			t.Errorf("%s: the policy is %q", path, policy)
		}
	}
	for _, path := range []string{"/nothing", "/console/", "/console/nothing.js", "/static/app.js",
		"/console/..%2fconsole.go", "/console/static"} {
		if resp, _ := get(t, s.URL+path); resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

// TestPages_HaveNoMarkupFromTextAndNoForeignFiles reads the sources for what the policy or a reader would refuse.
func TestPages_HaveNoMarkupFromTextAndNoForeignFiles(t *testing.T) {
	files := sources(t)
	bad := map[string]string{
		".js":   `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\("style"`,
		".html": `(?i)<script[^>]*>[^<]|<style|\sstyle=|\son\w+=|(src|href)="[a-z]+:`,
		".css":  `@import|url\(`,
	}
	imports := regexp.MustCompile(`(?m)^import .*from "\./([a-z]+\.js)";$`)
	used := map[string]bool{"index.html": true}
	for name, text := range files {
		found := regexp.MustCompile(bad[filepath.Ext(name)]).FindString(text)
		if strings.HasPrefix(found, `href="data:`) { // the empty icon
			found = ""
		}
		if found != "" {
			t.Errorf("%s contains %q", name, found)
		}
		if filepath.Ext(name) == ".js" && !strings.HasPrefix(text, "// "+name+" ") {
			t.Errorf("%s does not begin with what it is for", name)
		}
		for _, m := range imports.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
			if files[m[1]] == "" {
				t.Errorf("%s imports %s, which is missing", name, m[1])
			}
		}
	}
	linked := regexp.MustCompile(`(?:src|href)="console/([a-z.]+)"`)
	for _, m := range linked.FindAllStringSubmatch(files["index.html"], -1) {
		used[m[1]] = true
	}
	for name := range files {
		if !used[name] {
			t.Errorf("nothing uses %s", name)
		}
	}
}
