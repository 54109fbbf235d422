package console_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/services/router/console"
)

func TestMain(m *testing.M) { leak.Main(m) }

// watcher is a backend whose Watch is a function.
type watcher func(ctx context.Context, send func(*routerv1.Mesh) error) error

func (w watcher) Watch(ctx context.Context, send func(*routerv1.Mesh) error) error {
	return w(ctx, send)
}

func serve(t *testing.T, b console.Backend, o console.Options) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(console.New(b, o))
	t.Cleanup(s.Close)
	return s
}

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

func TestPage_FilesAndPolicy(t *testing.T) {
	s := serve(t, nil, console.Options{})
	for path, kind := range map[string]string{"/": "text/html", "/app.js": "text/javascript",
		"/mesh.js": "text/javascript", "/style.css": "text/css"} {
		resp, text := get(t, s.URL+path)
		policy := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || text == "" {
			t.Errorf("%s: %d, %q, %d bytes", path, resp.StatusCode, resp.Header.Get("Content-Type"), len(text))
		}
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "script-src 'self';") ||
			strings.Contains(policy, "unsafe") {
			t.Errorf("%s: the policy is %q", path, policy)
		}
	}
	for _, path := range []string{"/nothing", "/static/", "/static/app.js"} {
		if resp, _ := get(t, s.URL+path); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestPage_HasNoInlineScriptsForeignFilesOrMarkup(t *testing.T) {
	s := serve(t, nil, console.Options{})
	_, html := get(t, s.URL+"/")
	_, app := get(t, s.URL+"/app.js")
	_, mesh := get(t, s.URL+"/mesh.js")
	for what, bad := range map[string]string{
		html: `(?i)<script[^>]*>[^<]|<style|\sstyle=|\son\w+=|//[a-z]`,
		app:  `innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:`,
		mesh: `innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:`,
	} {
		if found := regexp.MustCompile(bad).FindString(what); found != "" {
			t.Errorf("the page contains %q", found)
		}
	}
	used := regexp.MustCompile(`\$\("([a-z]+)"\)`).FindAllStringSubmatch(app, -1)
	if len(used) == 0 {
		t.Fatal("the script uses no element of the page")
	}
	for _, id := range used {
		if !strings.Contains(html, `id="`+id[1]+`"`) {
			t.Errorf("the script uses element %q, which the page lacks", id[1])
		}
	}
	for _, e := range regexp.MustCompile(`<(?:input|textarea|select)[^>]*id="(\w+)"`).FindAllStringSubmatchIndex(html,
		-1) {
		id := html[e[2]:e[3]]
		before := html[:e[0]]
		if !strings.Contains(html, `for="`+id+`"`) &&
			strings.LastIndex(before, "<label>") <= strings.LastIndex(before, "</label>") {
			t.Errorf("field %q has no label", id)
		}
	}
}

func TestTopology_ChangesAreSentAtOnceUntilTheReaderDisconnects(t *testing.T) {
	meshes := make(chan *routerv1.Mesh)
	ended := make(chan struct{})
	s := serve(t, watcher(func(ctx context.Context, send func(*routerv1.Mesh) error) error {
		defer close(ended)
		for {
			select {
			case m := <-meshes:
				if err := send(m); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}), console.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := &routerv1.Mesh{Members: []*routerv1.Member{{Id: "a\n<b>", Service: "shard",
		Held: []*shardv1.Held{{Hi: 2, KvPages: 8, KvPagesUsed: 3, Rows: 1 << 60}}}}}
	second := &routerv1.Mesh{Pipelines: []*routerv1.Pipeline{{Id: "p", TokensPerSecond: 1.5,
		Stages: []*shardv1.Hop{{Address: "x:1", Lo: 2, Hi: 4}}}}}
	go func() {
		select {
		case meshes <- first:
		case <-ctx.Done():
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/topology", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("content type is %q", kind)
	}
	lines := bufio.NewReader(resp.Body)
	read := func(want *routerv1.Mesh) {
		t.Helper()
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		var got routerv1.Mesh
		if err := protojson.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &got); err != nil ||
			!proto.Equal(&got, want) {
			t.Errorf("the event is %q, %v", line, err)
		}
		if want.GetMembers() != nil && !strings.Contains(line, `"kv_pages_used":`) {
			t.Errorf("names are not those of the .proto file: %q", line)
		}
		if end, err := lines.ReadString('\n'); end != "\n" {
			t.Errorf("an event ends with %q, %v", end, err)
		}
	}
	read(first)
	select {
	case meshes <- second: // the first was read before this is sent, so nothing is buffered
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	read(second)
	cancel()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the watch goes on after its reader has gone")
	}
}

func TestTopology_ErrorBeforeTheFirstMesh(t *testing.T) {
	s := serve(t, watcher(func(context.Context, func(*routerv1.Mesh) error) error {
		return fault.New(fault.Unavailable, "stop router")
	}), console.Options{})
	resp, text := get(t, s.URL+"/api/topology")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "stop router") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

func TestTopology_StalledReaderIsDisconnected(t *testing.T) {
	cut := make(chan error, 1)
	large := &routerv1.Mesh{Members: []*routerv1.Member{{Id: strings.Repeat("x", 64<<10)}}}
	s := serve(t, watcher(func(_ context.Context, send func(*routerv1.Mesh) error) error {
		for {
			if err := send(large); err != nil {
				cut <- err
				return err
			}
		}
	}), console.Options{WriteTimeout: 50 * time.Millisecond})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // without reading a byte
	if _, err := io.WriteString(conn, "GET /api/topology HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-cut:
		if fault.CodeOf(err) != fault.Canceled {
			t.Errorf("the watch gets %v with code %v", err, fault.CodeOf(err))
		}
	case <-time.After(time.Minute):
		t.Error("a reader that reads nothing keeps its watch")
	}
}
