package console_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// backend is a router.
type backend struct {
	watch    func(ctx context.Context, send func(*routerv1.Mesh) error) error
	trainers []string
	open     *routerv1.LoadAdapterOpen // of the adapter that was loaded
	data     []byte
	unloaded string
	loading  func() // called once an adapter is there; nil for nothing
}

func (b *backend) Watch(ctx context.Context, send func(*routerv1.Mesh) error) error {
	return b.watch(ctx, send)
}

func (b *backend) Trainers() []string { return b.trainers }

func (b *backend) LoadAdapter(
	_ context.Context, next func() (*routerv1.LoadAdapterRequest, error),
) (*routerv1.LoadAdapterResponse, error) {
	first, err := next()
	if err != nil {
		return nil, err
	}
	b.open, b.data = first.GetOpen(), nil
	for uint64(len(b.data)) < b.open.GetSize() {
		frame, err := next()
		if err != nil {
			return nil, err
		}
		b.data = append(b.data, frame.GetData()...)
	}
	if b.loading != nil {
		b.loading()
	}
	return &routerv1.LoadAdapterResponse{Adapter: &routerv1.Adapter{Name: b.open.GetName()}}, nil
}

func (b *backend) UnloadAdapter(
	_ context.Context, r *routerv1.UnloadAdapterRequest,
) (*routerv1.UnloadAdapterResponse, error) {
	b.unloaded = r.GetModel() + ":" + r.GetName()
	return &routerv1.UnloadAdapterResponse{Requests: 3}, nil
}

func serve(t *testing.T, b *backend, o console.Options) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(httpapi.Mux(console.Routes(b, o)))
	t.Cleanup(s.Close)
	return s
}

// call sends a request and reads the answer into out, which may be nil. It returns the status and the body.
func call(t *testing.T, method, url, body string, out any) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			t.Fatalf("%s %s: %d %q: %v", method, url, resp.StatusCode, text, err)
		}
	}
	return resp.StatusCode, string(text)
}

func TestTopology_ChangesAreSentAtOnceUntilTheReaderDisconnects(t *testing.T) {
	meshes := make(chan *routerv1.Mesh)
	ended := make(chan struct{})
	s := serve(t, &backend{watch: func(ctx context.Context, send func(*routerv1.Mesh) error) error {
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
	}}, console.Options{})
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
	s := serve(t, &backend{watch: func(context.Context, func(*routerv1.Mesh) error) error {
		return fault.New(fault.Unavailable, "stop router")
	}}, console.Options{})
	status, text := call(t, http.MethodGet, s.URL+"/api/topology", "", nil)
	if status != http.StatusServiceUnavailable || !strings.Contains(text, "stop router") {
		t.Errorf("%d %s", status, text)
	}
}

func TestTopology_StalledReaderIsDisconnected(t *testing.T) {
	cut := make(chan error, 1)
	large := &routerv1.Mesh{Members: []*routerv1.Member{{Id: strings.Repeat("x", 64<<10)}}}
	s := serve(t, &backend{watch: func(_ context.Context, send func(*routerv1.Mesh) error) error {
		for {
			if err := send(large); err != nil {
				cut <- err
				return err
			}
		}
	}}, console.Options{Options: httpapi.Options{WriteTimeout: 50 * time.Millisecond}})
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

func TestAccess_TellsWhatTheCallerMay(t *testing.T) {
	b := &backend{trainers: []string{"here"}}
	keys := keyring(t)
	api := httpapi.Mux(console.Routes(b, console.Options{Guarded: true, Keys: keys, Base: "tolstoy"}))
	var out struct {
		Guarded, Keys, Store, Trainer bool
		Who, Name, Tenant, Base       string
		May                           []auth.Verb
	}
	ask := func(ctx context.Context) {
		t.Helper()
		w := httptest.NewRecorder()
		api.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/access", nil))
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
	}
	ask(t.Context())
	if len(out.May) != len(auth.Verbs()) || out.Store || !out.Keys || !out.Trainer || !out.Guarded ||
		out.Base != "tolstoy" {
		t.Errorf("without a principal: %+v", out)
	}
	_, secret, err := keys.Add(auth.Key{Name: "ann", Roles: []auth.Role{auth.User}, Verbs: []auth.Verb{auth.Generate}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := keys.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	ask(auth.WithPrincipal(t.Context(), p))
	if len(out.May) != 1 || out.May[0] != auth.Generate || out.Name != "ann" || out.Tenant != "ann" {
		t.Errorf("a restricted user: %+v", out)
	}
}

func keyring(t *testing.T) *auth.Keyring {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	root := auth.Key{Name: "root", Roles: []auth.Role{auth.Operator}}
	if _, _, err := auth.AddKey(path, root, time.Now()); err != nil {
		t.Fatal(err)
	}
	keys, err := auth.OpenKeyring(path, auth.KeyringOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestKeys_AreMadeRotatedAndRevokedAndSecretsShownOnce(t *testing.T) {
	keys := keyring(t)
	s := serve(t, &backend{}, console.Options{Keys: keys})
	type keyAnswer struct {
		Key struct {
			ID, Name, State string
			Sha256          string
			Expires         time.Time
		}
		Secret string
	}
	var made, rotated, revoked keyAnswer
	status, _ := call(t, http.MethodPost, s.URL+"/api/keys",
		`{"name":"bob","roles":["user"],"requests_per_minute":60,"expires_in":3600}`, &made)
	if status != http.StatusOK || made.Key.State != "active" || made.Key.Sha256 != "" ||
		!strings.HasPrefix(made.Secret, auth.Prefix) || made.Key.Expires.Before(time.Now()) {
		t.Fatalf("%d %+v", status, made)
	}
	valid := func(secret string) bool {
		_, err := keys.Authenticate(secret)
		return err == nil
	}
	if !valid(made.Secret) {
		t.Error("a new key is not valid at once")
	}
	_, list := call(t, http.MethodGet, s.URL+"/api/keys", "", nil)
	if !strings.Contains(list, `"bob"`) || !strings.Contains(list, `"root"`) || strings.Contains(list, "sha256") ||
		strings.Contains(list, made.Secret) {
		t.Errorf("the list is %s", list)
	}
	call(t, http.MethodPost, s.URL+"/api/keys/"+made.Key.ID+"/rotate", `{"grace":0}`, &rotated)
	if rotated.Secret == made.Secret || !valid(rotated.Secret) || valid(made.Secret) {
		t.Errorf("after a rotation: %+v", rotated)
	}
	call(t, http.MethodPost, s.URL+"/api/keys/"+made.Key.ID+"/revoke", `{}`, &revoked)
	if revoked.Key.State != "revoked" || revoked.Secret != "" || valid(rotated.Secret) {
		t.Errorf("after the revocation: %+v", revoked)
	}
}

// TestKeys_RestrictedOperatorsMakeNoLargerOnes makes and rotates keys with credentials that are restricted themselves.
func TestKeys_RestrictedOperatorsMakeNoLargerOnes(t *testing.T) {
	keys := keyring(t)
	_, secret, err := keys.Add(auth.Key{Name: "part", Roles: []auth.Role{auth.Operator, auth.User},
		Verbs: []auth.Verb{auth.Keys, auth.Generate}, Models: []string{"m", "n"}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := keys.Authenticate(secret)
	if err != nil {
		t.Fatal(err)
	}
	api := httpapi.Mux(console.Routes(&backend{}, console.Options{Keys: keys}))
	ask := func(path, body string) (int, string) {
		ctx := auth.WithPrincipal(t.Context(), p)
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for _, c := range []struct {
		path, body, want string
		status           int
	}{
		{"/api/keys", `{"name":"a","roles":["user"],"models":["m"]}`, "verb embed", 403},
		{"/api/keys", `{"name":"a","roles":["user"],"verbs":["generate"]}`, "all models", 403},
		{"/api/keys", `{"name":"a","roles":["user"],"verbs":["generate"],"models":["m","o"]}`, "model o", 403},
		{"/api/keys/root/rotate", `{}`, "verb", 403},
		{"/api/keys", `{"name":"a","roles":["user"],"verbs":["generate"],"models":["m"]}`, "secret", 200},
		{"/api/keys/a/rotate", `{}`, "secret", 200},
	} {
		if status, text := ask(c.path, c.body); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %s", c.path, c.body, status, text)
		}
	}
}

func TestKeys_RefusalsNameTheField(t *testing.T) {
	s := serve(t, &backend{}, console.Options{Keys: keyring(t)})
	bare := serve(t, &backend{}, console.Options{})
	for _, c := range []struct {
		url, body, want string
		status          int
	}{
		{s.URL + "/api/keys", `{"name":"x"}`, "roles", 400},
		{s.URL + "/api/keys", `{"name":"x","roles":["king"]}`, "king", 400},
		{s.URL + "/api/keys", `{"name":"root","roles":["user"]}`, "active key of that name", 409},
		{s.URL + "/api/keys", `{"name":"x","roles":["user"],"expires_in":-1}`, "expires_in", 400},
		{s.URL + "/api/keys", `{"name":"x","roles":["user"],"expires_in":99999999999}`, "expires_in", 400},
		{s.URL + "/api/keys", `{"name":7}`, "name", 400},
		{s.URL + "/api/keys", `{`, "body", 400},
		{s.URL + "/api/keys/none/rotate", `{}`, "find key", 404},
		{s.URL + "/api/keys/root/rotate", `{"grace":-5}`, "grace", 400},
		{bare.URL + "/api/keys", `{"name":"x","roles":["user"]}`, "without keys", 400},
		{bare.URL + "/api/keys/x/revoke", `{}`, "without keys", 400},
	} {
		status, text := call(t, http.MethodPost, c.url, c.body, nil)
		if status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %s", c.url, c.body, status, text)
		}
	}
}

func TestAdapters_AreStreamedToTheRouter(t *testing.T) {
	b := &backend{}
	s := serve(t, b, console.Options{})
	weights := bytes.Repeat([]byte("weights"), 100_000)
	url := s.URL + "/api/adapters?model=m&name=a&config=2&weights=700000"
	if status, text := call(t, http.MethodPost, url, "{}"+string(weights), nil); status != http.StatusOK ||
		!bytes.Equal(b.data, weights) || string(b.open.GetConfig()) != "{}" || b.open.GetName() != "a" ||
		b.open.GetModel() != "m" {
		t.Errorf("%d %s; %d bytes of %v", status, text, len(b.data), b.open)
	}
	if status, text := call(t, http.MethodPost, s.URL+"/api/adapters?model=m&name=a&digest=previous", "", nil); status !=
		http.StatusOK || b.open.GetDigest() != "previous" {
		t.Errorf("%d %s: %v", status, text, b.open)
	}
	for _, query := range []string{"config=2&weights=0", "config=0&weights=5", "config=x&weights=5",
		"config=9999999&weights=5",
		"config=2&weights=-1", "config=2&weights=900000", "config=8&weights=5", ""} {
		status, text := call(t, http.MethodPost, s.URL+"/api/adapters?"+query, "{}short", nil)
		if status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, status, text)
		}
	}
	status, text := call(t, http.MethodDelete, s.URL+"/api/adapters/a?model=m", "", nil)
	if status != http.StatusOK || b.unloaded != "m:a" || !strings.Contains(text, "3") {
		t.Errorf("%d %s: %s", status, text, b.unloaded)
	}
}

// deadlines records the deadlines that a handler sets for reading.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// The server reads on while the shards load an adapter, and takes a deadline that passes for a client that has gone.
func TestAdapters_LoadWithoutADeadlineForReading(t *testing.T) {
	for query, body := range map[string]string{"config=2&weights=600000": "{}" + strings.Repeat("w", 600000),
		"digest=previous": ""} {
		var last time.Time
		b := &backend{}
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		b.loading = func() { last = w.set[len(w.set)-1] }
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/adapters?model=m&name=a&"+query,
			strings.NewReader(body))
		httpapi.Mux(console.Routes(b, console.Options{})).ServeHTTP(w, r)
		if w.Code != http.StatusOK || !last.IsZero() || len(w.set) < 2 || w.set[0].IsZero() {
			t.Errorf("%s: %d, deadlines %v, %v while the adapter is loaded", query, w.Code, w.set, last)
		}
	}
}

// modelStore is a store of models.
type modelStore struct {
	pulls  chan []console.Pull
	loaded string
}

func (s *modelStore) Models() ([]console.StoredModel, error) {
	return []console.StoredModel{{Name: "m", Bytes: 5}}, nil
}
func (s *modelStore) Remove(_ context.Context, name string) error {
	return fault.New(fault.FailedPrecondition, "remove %s: it is in use", name)
}

func (s *modelStore) Load(name string) error {
	s.loaded = name
	return nil
}

func (s *modelStore) Pull(r console.PullRequest) (console.Pull, error) {
	if r.Source == "" {
		return console.Pull{}, fault.Field("source", "is missing")
	}
	return console.Pull{ID: "1", Source: r.Source, State: "running"}, nil
}

func (s *modelStore) Watch(ctx context.Context, send func([]console.Pull) error) error {
	for {
		select {
		case p := <-s.pulls:
			if err := send(p); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *modelStore) Cancel(id string) error { return fault.New(fault.NotFound, "find pull %s", id) }

func TestStore_ModelsAndPulls(t *testing.T) {
	st := &modelStore{pulls: make(chan []console.Pull, 1)}
	s := serve(t, &backend{}, console.Options{Store: st})
	for _, c := range []struct {
		method, path, body, want string
		status                   int
	}{
		{"GET", "/api/store", "", `"name":"m"`, 200},
		{"DELETE", "/api/store/m", "", "in use", 400},
		{"POST", "/api/store/m/load", "", "{}", 200},
		{"POST", "/api/pulls", `{"source":"a/b"}`, `"state":"running"`, 202},
		{"POST", "/api/pulls", `{}`, `"field":"source"`, 400},
		{"DELETE", "/api/pulls/9", "", "find pull 9", 404},
	} {
		status, text := call(t, c.method, s.URL+c.path, c.body, nil)
		if status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, text)
		}
		bare := serve(t, &backend{}, console.Options{})
		if status, text := call(t, c.method, bare.URL+c.path, c.body, nil); status != 400 ||
			!strings.Contains(text, "this router has none") {
			t.Errorf("%s %s without a store: %d %s", c.method, c.path, status, text)
		}
	}
	if st.loaded != "m" {
		t.Errorf("loaded %q", st.loaded)
	}
	st.pulls <- []console.Pull{{ID: "1", Done: 3, Total: 4}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/pulls", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); !strings.Contains(line, `"done":3,"total":4`) {
		t.Errorf("the event is %q, %v", line, err)
	}
}

func TestPulls_WatcherIsDisconnectedOnceItsKeyIsInvalid(t *testing.T) {
	revoked := make(chan struct{})
	p := (&auth.Grant{ID: "token:a", Roles: []auth.Role{auth.Operator}}).Principal(nil, func() error {
		select {
		case <-revoked:
			return fault.New(fault.Unauthenticated, "authenticate: the key is revoked")
		default:
			return nil
		}
	})
	pulls := make(chan []console.Pull, 1)
	pulls <- []console.Pull{{ID: "1"}}
	h := httpapi.Mux(console.Routes(&backend{}, console.Options{Store: &modelStore{pulls: pulls}}))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(auth.WithPrincipal(r.Context(), p)))
	}))
	t.Cleanup(s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/pulls", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	close(revoked)
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), `"id":"1"`) {
		t.Errorf("%q, %v", text, err)
	}
}
