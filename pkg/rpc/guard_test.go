package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/auth/issue"
	"github.com/lamina-mesh/lamina/pkg/auth/token/tokentest"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// fleet is an authority with a certificate for every service and role, and one for strangers.
type fleet struct {
	t   *testing.T
	dir string
}

func newFleet(t *testing.T, domain string) fleet {
	t.Helper()
	f := fleet{t, t.TempDir()}
	ca, err := issue.NewAuthority(domain, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(f.dir); err != nil {
		t.Fatal(err)
	}
	for _, id := range issue.All() {
		if err := ca.Issue(f.dir, id, nil, time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f fleet) files(name string) rpc.Files {
	return rpc.Files{Cert: filepath.Join(f.dir, name+".pem"), Key: filepath.Join(f.dir, name+".key"),
		CA: filepath.Join(f.dir, "ca.pem")}
}

func open(t *testing.T, f rpc.Files) *rpc.Certificates {
	t.Helper()
	c, err := f.Open(func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dial returns a connection that ends with the test.
func dial(t *testing.T, addr string, o rpc.DialOptions) *grpc.ClientConn {
	t.Helper()
	d := rpc.NewDialer(o)
	t.Cleanup(func() { d.Close() })
	conn, err := d.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// reached is what the handlers of a test return, and no guard does.
var reached = status.Error(codes.Aborted, "reached")

// served counts the calls that have reached a handler.
type served struct {
	mu     sync.Mutex
	calls  map[string]int
	tenant string
}

func (s *served) reach(ctx context.Context, method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
	s.tenant = auth.Tenant(ctx)
	return reached
}

func (s *served) count(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// serveAll runs a server that has every method with a policy; half of them are unary.
func serveAll(t *testing.T, o rpc.ServerOptions) (addr string, s *served) {
	t.Helper()
	s = &served{calls: map[string]int{}}
	server := rpc.NewServer(o)
	descs := map[string]*grpc.ServiceDesc{}
	for i, full := range slices.Sorted(func(yield func(string) bool) {
		for m := range auth.Methods() {
			if !yield(m) {
				return
			}
		}
	}) {
		service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
		if service == "grpc.health.v1.Health" || strings.HasPrefix(service, "grpc.reflection.") {
			continue // Serve registers them
		}
		d := descs[service]
		if d == nil {
			d = &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
			descs[service] = d
		}
		if i%2 == 0 {
			d.Streams = append(
				d.Streams,
				grpc.StreamDesc{StreamName: method, ClientStreams: true, ServerStreams: true,
					Handler: func(_ any, ss grpc.ServerStream) error { return s.reach(ss.Context(), full) }},
			)
			continue
		}
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: method,
			Handler: func(srv any, ctx context.Context, decode func(any) error,
				intercept grpc.UnaryServerInterceptor) (any, error) {
				in := &emptypb.Empty{}
				if err := decode(in); err != nil {
					return nil, err
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: full},
					func(ctx context.Context, _ any) (any, error) { return nil, s.reach(ctx, full) })
			}})
	}
	for _, d := range descs {
		server.RegisterService(d, nil)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, server, l, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), s
}

// call calls any method and returns its code.
func call(ctx context.Context, conn *grpc.ClientConn, method string) codes.Code {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err == nil {
		if err = stream.SendMsg(&emptypb.Empty{}); err == nil || status.Code(err) == codes.Unknown {
			_ = stream.CloseSend()
			err = stream.RecvMsg(&emptypb.Empty{})
		}
	}
	return status.Code(err)
}

// testKeys are keys in every state and for every role.
func testKeys(t *testing.T) (*auth.Keyring, map[string]string) {
	t.Helper()
	var keys []auth.Key
	secrets := map[string]string{}
	add := func(name string, k auth.Key) {
		k.Tenant = "own"
		k, secret, err := auth.NewKey(k, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		keys, secrets[name] = append(keys, k), secret
	}
	for _, r := range auth.Roles() {
		add(string(r), auth.Key{Roles: []auth.Role{r}})
	}
	add("expired", auth.Key{Roles: auth.Roles(), Expires: time.Now().Add(-time.Second)})
	add("revoked", auth.Key{Roles: auth.Roles(), Revoked: time.Now()})
	secrets["wrong"] = auth.NewSecret()
	return auth.NewKeyring(keys, auth.KeyringOptions{}), secrets
}

// TestGuard_EveryMethodTimesEveryCaller checks who reaches the handler of which method.
func TestGuard_EveryMethodTimesEveryCaller(t *testing.T) {
	ours, theirs := newFleet(t, "mesh"), newFleet(t, "mesh")
	keys, secrets := testKeys(t)
	guard := auth.NewGuard(keys, "mesh")
	issuer := tokentest.New(t, "https://login.example.org", nil, "ES256")
	guard.Tokens = issuer.Verifier(t)
	addr, served := serveAll(t, rpc.ServerOptions{Guard: guard,
		TLS: open(t, ours.files("router")).Server(tls.VerifyClientCertIfGiven, "h2")})
	anyone := open(t, rpc.Files{CA: filepath.Join(ours.dir, "ca.pem")}).Client()
	type caller struct {
		name   string
		conn   *grpc.ClientConn
		allows func(auth.Rule) bool // nil for a caller that is not authenticated
	}
	callers := []caller{{"nobody", dial(t, addr, rpc.DialOptions{TLS: anyone}), nil}}
	for _, name := range []string{"wrong", "expired", "revoked"} {
		callers = append(
			callers,
			caller{name, dial(t, addr, rpc.DialOptions{TLS: anyone, Secret: secrets[name]}), nil},
		)
	}
	for reason, text := range issuer.Bad(t) {
		callers = append(callers,
			caller{"a token " + reason, dial(t, addr, rpc.DialOptions{TLS: anyone, Secret: text}), nil})
	}
	wrongKey := rpc.DialOptions{TLS: open(t, ours.files("trainer")).Client(), Secret: secrets["wrong"]}
	callers = append(callers, caller{"a good certificate with a wrong key", dial(t, addr, wrongKey), nil})
	for _, role := range auth.Roles() {
		may := func(r auth.Rule) bool { return slices.Contains(role.Verbs(), r.Verb) }
		callers = append(
			callers,
			caller{
				"key " + string(role),
				dial(t, addr, rpc.DialOptions{TLS: anyone, Secret: secrets[string(role)]}),
				may,
			},
			caller{"token " + string(role), dial(t, addr, rpc.DialOptions{TLS: anyone,
				Secret: issuer.Token(t, jwt.MapClaims{"role": string(role)})}), may},
			caller{"client " + string(role),
				dial(t, addr, rpc.DialOptions{TLS: open(t, ours.files("client-"+string(role))).Client()}), may},
		)
	}
	for _, service := range auth.Services() {
		callers = append(callers, caller{"service " + string(service),
			dial(t, addr, rpc.DialOptions{TLS: open(t, ours.files(string(service))).Client()}),
			func(r auth.Rule) bool { return slices.Contains(r.Services, service) }})
	}
	calls := 0
	for method, rule := range auth.Methods() {
		real := strings.HasPrefix(method, "/grpc.")
		for _, c := range callers {
			before := served.count(method)
			got := call(t.Context(), c.conn, method)
			calls++
			switch {
			case c.allows == nil:
				if got != codes.Unauthenticated || served.count(method) != before {
					t.Errorf("%s, %s: %v", method, c.name, got)
				}
			case !c.allows(rule):
				if got != codes.PermissionDenied || served.count(method) != before {
					t.Errorf("%s, %s: %v", method, c.name, got)
				}
			case real:
				if got == codes.Unauthenticated || got == codes.PermissionDenied {
					t.Errorf("%s, %s: %v", method, c.name, got)
				}
			case got != codes.Aborted || served.count(method) != before+1:
				t.Errorf("%s, %s: %v", method, c.name, got)
			}
		}
	}
	t.Logf("%d calls of %d callers", calls, len(callers))
	for _, c := range callers {
		want := codes.Unauthenticated
		if c.allows != nil {
			want = codes.Unimplemented
		}
		for _, method := range []string{"/lamina.router.v1.RouterService/Nothing", "/nothing.Nothing/Nothing"} {
			if got := call(t.Context(), c.conn, method); got != want {
				t.Errorf("%s, %s: %v, want %v", method, c.name, got, want)
			}
		}
	}
	stranger := dial(t, addr, rpc.DialOptions{TLS: open(t, rpc.Files{Cert: theirs.files("trainer").Cert,
		Key: theirs.files("trainer").Key, CA: ours.files("").CA}).Client()})
	if got := call(t.Context(), stranger, "/lamina.trainer.v1.TrainerService/ListRuns"); got != codes.Unavailable {
		t.Errorf("a certificate of another authority: %v", got)
	}
}

// TestGuard_RoleMatrixOfTheMesh states who may call what inside a mesh, apart from the table that the guard uses.
func TestGuard_RoleMatrixOfTheMesh(t *testing.T) {
	const shard, sampler, tokenizer = "/lamina.shard.v1.ShardService/", "/lamina.sampler.v1.SamplerService/",
		"/lamina.tokenizer.v1.TokenizerService/"
	guard := auth.NewGuard(nil, "mesh")
	for method, want := range map[string][]auth.Service{
		shard + "Infer":      {auth.RouterService, auth.ShardService},
		shard + "Describe":   {auth.RouterService, auth.TrainerService},
		shard + "Train":      {auth.TrainerService},
		shard + "SaveState":  {auth.TrainerService},
		shard + "Exchange":   {auth.ShardService},
		shard + "Reduce":     {auth.ShardService},
		sampler + "Sample":   {auth.RouterService},
		sampler + "Push":     {auth.ShardService},
		tokenizer + "Encode": {auth.RouterService, auth.TrainerService},
		tokenizer + "Tokens": {auth.RouterService, auth.TrainerService},

		shard + "Embed":       {auth.RouterService},
		shard + "LoadAdapter": {auth.RouterService},
		shard + "Assign":      {auth.RouterService},
		shard + "Ping":        {auth.RouterService, auth.ShardService},

		"/lamina.router.v1.RouterService/Chat":          nil,
		"/lamina.router.v1.RouterService/Generate":      {auth.TrainerService},
		"/lamina.router.v1.RouterService/LoadAdapter":   {auth.TrainerService},
		"/lamina.router.v1.RouterService/UnloadAdapter": {auth.TrainerService},
		"/lamina.trainer.v1.TrainerService/StartRun":    {auth.RouterService}, // for callers of the console
		"/grpc.health.v1.Health/Check":                  auth.Services(),
	} {
		rule, known := guard.Method(method)
		if !known {
			t.Errorf("%s has no policy", method)
			continue
		}
		for _, s := range auth.Services() {
			p := &auth.Principal{Service: s}
			if got := p.May(rule); got != slices.Contains(want, s) {
				t.Errorf("%s may call %s: %v", s, method, got)
			}
		}
	}
}

func TestGuard_TheTenantComesFromTheKey(t *testing.T) {
	keys, secrets := testKeys(t)
	addr, served := serveAll(t, rpc.ServerOptions{Guard: auth.NewGuard(keys, "")})
	const method = "/lamina.router.v1.RouterService/Generate"
	for _, c := range []struct {
		role, named string
		want        codes.Code
		tenant      string
	}{
		{"user", "", codes.Aborted, "own"}, {"user", "own", codes.Aborted, "own"},
		{"user", "other", codes.PermissionDenied, ""}, {"service", "other", codes.Aborted, "other"},
		{"service", "", codes.Aborted, "own"},
	} {
		ctx := t.Context()
		if c.named != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, auth.TenantKey, c.named)
		}
		before := served.count(method)
		got := call(ctx, dial(t, addr, rpc.DialOptions{Secret: secrets[c.role]}), method)
		if got != c.want || c.want != codes.Aborted && served.count(method) != before ||
			c.want == codes.Aborted && served.tenant != c.tenant {
			t.Errorf("%s names %q: %v, tenant %q", c.role, c.named, got, served.tenant)
		}
	}
}

func TestGuard_AmbiguousCredentialsAreWrong(t *testing.T) {
	keys, secrets := testKeys(t)
	addr, served := serveAll(t, rpc.ServerOptions{Guard: auth.NewGuard(keys, "")})
	const method = "/lamina.router.v1.RouterService/ListModels"
	conn, good := dial(t, addr, rpc.DialOptions{}), secrets["user"]
	for want, all := range map[codes.Code][][]string{
		codes.Aborted: {{"authorization", "Bearer " + good}, {"authorization", "bearer " + good}, {"x-api-key", good},
			{"x-api-key", good, "authorization", "Bearer " + good}},
		codes.Unauthenticated: {{"authorization", "Bearer " + good, "authorization", "Bearer " + good},
			{"x-api-key", good, "x-api-key", good}, {"authorization", good}, {"authorization", "Basic " + good},
			{"authorization", ""}, {"x-api-key", ""},
			{"x-api-key", secrets["operator"], "authorization", "Bearer " + good}},
	} {
		for _, pairs := range all {
			before := served.count(method)
			got := call(metadata.AppendToOutgoingContext(t.Context(), pairs...), conn, method)
			if got != want || (served.count(method) > before) != (want == codes.Aborted) {
				t.Errorf("%d values, %.14q: %v, want %v", len(pairs)/2, pairs[1], got, want)
			}
		}
	}
}

func TestGuard_BudgetOfRequestsSaysHowLongToWait(t *testing.T) {
	k, secret, err := auth.NewKey(auth.Key{Roles: []auth.Role{auth.User}, Requests: 1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	keys := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: func() time.Time { return now }})
	addr, _ := serveAll(t, rpc.ServerOptions{Guard: auth.NewGuard(keys, "")})
	conn := dial(t, addr, rpc.DialOptions{Secret: secret})
	if got := call(t.Context(), conn, "/lamina.router.v1.RouterService/Generate"); got != codes.Aborted {
		t.Fatalf("the first call: %v", got)
	}
	if got := call(t.Context(), conn, "/lamina.router.v1.RouterService/ListModels"); got != codes.Aborted {
		t.Errorf("a call that is not metered: %v", got)
	}
	err = conn.Invoke(t.Context(), "/lamina.router.v1.RouterService/Chat", &emptypb.Empty{}, &emptypb.Empty{})
	var f *fault.Error
	if f, _ = rpc.FromStatus(err).(*fault.Error); f == nil || f.Code != fault.Exhausted ||
		f.RetryAfter != time.Minute ||
		f.Reason != "RATE_LIMIT_EXCEEDED" {
		t.Errorf("the second call: %#v", f)
	}
}

// routers is a router that only manages adapters.
type routers struct {
	routerv1.UnimplementedRouterServiceServer
}

func (routers) LoadAdapter(
	stream grpc.ClientStreamingServer[routerv1.LoadAdapterRequest, routerv1.LoadAdapterResponse],
) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return stream.SendAndClose(&routerv1.LoadAdapterResponse{})
		}
	}
}

func (routers) UnloadAdapter(
	context.Context, *routerv1.UnloadAdapterRequest,
) (*routerv1.UnloadAdapterResponse, error) {
	return &routerv1.UnloadAdapterResponse{}, nil
}

// TestGuard_AuditNamesTheTarget looks at the audit log after calls and streams that name an adapter.
func TestGuard_AuditNamesTheTarget(t *testing.T) {
	keys, secrets := testKeys(t)
	var log bytes.Buffer
	guard := auth.NewGuard(keys, "")
	guard.Audit = auth.NewAuditLog(&log, time.Now, func(err error) { t.Error(err) })
	server := rpc.NewServer(rpc.ServerOptions{Guard: guard})
	routerv1.RegisterRouterServiceServer(server, routers{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	serving, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(serving, server, l, nil) }()
	client := routerv1.NewRouterServiceClient(dial(t, l.Addr().String(), rpc.DialOptions{Secret: secrets["operator"]}))
	stream, err := client.LoadAdapter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*routerv1.LoadAdapterRequest{
		{Frame: &routerv1.LoadAdapterRequest_Open{Open: &routerv1.LoadAdapterOpen{Model: "base", Name: "sql"}}},
		{Frame: &routerv1.LoadAdapterRequest_Data{Data: []byte("x")}},
	} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UnloadAdapter(ctx, &routerv1.UnloadAdapterRequest{Name: "law"}); err != nil {
		t.Fatal(err)
	}
	long := &routerv1.UnloadAdapterRequest{Name: strings.Repeat("é", 1<<19)}
	for secret, want := range map[string]codes.Code{
		"": codes.Unauthenticated, secrets["user"]: codes.PermissionDenied,
	} {
		other := routerv1.NewRouterServiceClient(dial(t, l.Addr().String(), rpc.DialOptions{Secret: secret}))
		if _, err := other.UnloadAdapter(ctx, long); status.Code(err) != want {
			t.Errorf("another unloads an adapter: %v, want %v", err, want)
		}
	}
	stop()
	if err := <-done; err != nil { // no handler runs any more
		t.Error(err)
	}
	for _, want := range []string{`LoadAdapter","target":"base:sql","result":"ok"`,
		`UnloadAdapter","target":"law","result":"ok"`, `é...","result":"permission denied"`,
		`UnloadAdapter","result":"unauthenticated"`, // what strangers send is not received
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the audit log lacks %s: %.2000s", want, log.String())
		}
	}
	if log.Len() > 2000 {
		t.Errorf("%d bytes are in the audit log", log.Len())
	}
}

func TestGuard_ProbesAreOpenOnlyIfTheOperatorSaysSo(t *testing.T) {
	keys, _ := testKeys(t)
	for _, open := range []bool{false, true} {
		guard := auth.NewGuard(keys, "")
		guard.OpenProbes = open
		addr, _ := serveAll(t, rpc.ServerOptions{Guard: guard})
		conn := dial(t, addr, rpc.DialOptions{})
		_, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if open != (err == nil) {
			t.Errorf("open %v: %v", open, err)
		}
		if got := call(
			t.Context(),
			conn,
			"/lamina.router.v1.RouterService/ListModels",
		); got != codes.Unauthenticated {
			t.Errorf("open %v: other methods: %v", open, got)
		}
	}
}

func TestDial_AnAPIKeyIsNotSentInPlaintextToOthers(t *testing.T) {
	d := rpc.NewDialer(rpc.DialOptions{Secret: "lamina_x"})
	defer d.Close()
	if _, err := d.Dial("192.0.2.1:7070"); err == nil || !strings.Contains(err.Error(), "--insecure-key") {
		t.Errorf("%v", err)
	}
	if _, err := d.Dial("127.0.0.1:7070"); err != nil {
		t.Errorf("%v", err)
	}
}
