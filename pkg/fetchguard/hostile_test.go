package fetchguard_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
)

// secrets are addresses that nothing outside may reach, with one of each network that is refused.
var secrets = []string{
	"127.0.0.1", "127.0.0.53", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1",
	"172.31.255.254", "192.168.0.1", "192.168.255.254", "169.254.169.254", "169.254.170.2", "100.64.0.1",
	"100.100.100.200", "100.127.255.254", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.254",
	"198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
}

// secrets6 are the same for IPv6.
var secrets6 = []string{
	"::", "::1", "::2", "fc00::1", "fd00:ec2::254", "fdff:ffff::1", "fe80::1", "fe80::a9fe:a9fe", "febf::1", "fec0::1",
	"ff01::1", "ff02::1", "ff05::2", "ff0e::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1",
	"2001:db8::1", "3fff::1", "5f00::1", "64:ff9b::1", "64:ff9b:1::1", "1::1", "4000::1", "2002::1", "2620:4f:8000::1",
}

// spellings returns the ways in which programs and resolvers write an IPv4 address, as hosts of an URL.
func spellings(text string) []string {
	a := netip.MustParseAddr(text).As4()
	n := binary.BigEndian.Uint32(a[:])
	in6 := func(format string, args ...any) string { return "[" + fmt.Sprintf(format, args...) + "]" }
	hi, lo := n>>16, n&0xffff
	return []string{
		text, text + ".", fmt.Sprint(n), fmt.Sprintf("0x%x", n), fmt.Sprintf("0%o", n),
		fmt.Sprintf("0%o.0%o.0%o.0%o", a[0], a[1], a[2], a[3]),
		fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", a[0], a[1], a[2], a[3]),
		fmt.Sprintf("%d.%d", a[0], n&0xffffff), fmt.Sprintf("%d.%d.%d", a[0], a[1], lo),
		fmt.Sprintf("%03d.%03d.%03d.%03d", a[0], a[1], a[2], a[3]),
		in6("::ffff:%s", text), in6("::ffff:%x:%x", hi, lo), in6("0:0:0:0:0:ffff:%x:%x", hi, lo), in6("::%s", text),
		in6("64:ff9b::%s", text), in6("64:ff9b:1::%x:%x", hi, lo), in6("2002:%x:%x::1", hi, lo),
		in6("2001:0:5ef5:79fd:0:0:%x:%x", hi^0xffff, lo^0xffff), in6("fe80::5efe:%x:%x", hi, lo),
	}
}

// hostile returns the hosts of hostile addresses. Those that are names are resolved by the server of names below.
func hostile() (hosts []string) {
	for _, s := range secrets {
		hosts = append(hosts, spellings(s)...)
		hosts = append(hosts, "v4-"+strings.ReplaceAll(s, ".", "-")+".evil.test")
	}
	for i, s := range secrets6 {
		hosts = append(hosts, "["+s+"]", fmt.Sprintf("v6-%d.evil.test", i))
	}
	return append(hosts, "[fe80::1%25lo]", "[::1%25lo]", "localhost", "both.evil.test", "LOCALHOST.")
}

// names is a server of names that its owner has set up to deceive.
type names struct {
	public netip.Addr // the first answer for names that begin with rebind
	asked  sync.Map   // by name
}

func (n *names) lookup(name string, v6 bool) []netip.Addr {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	var out []netip.Addr
	switch {
	case strings.HasPrefix(name, "v4-"):
		out = []netip.Addr{netip.MustParseAddr(
			strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(name, "v4-"), ".evil.test"), "-", "."))}
	case strings.HasPrefix(name, "v6-"):
		var i int
		if _, err := fmt.Sscanf(name, "v6-%d", &i); err == nil && i < len(secrets6) {
			out = []netip.Addr{netip.MustParseAddr(secrets6[i])}
		}
	case strings.HasPrefix(name, "rebind"):
		if v6 {
			break
		}
		out = []netip.Addr{n.public}
		if _, again := n.asked.LoadOrStore(name, true); again {
			out = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
	case strings.HasPrefix(name, "absent"):
	case name == "public.evil.test":
		out = []netip.Addr{n.public}
	default: // another spelling of an address, which some resolvers understand; both.evil.test
		out = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	}
	var kind []netip.Addr
	for _, a := range out {
		if a.Is4() != v6 {
			kind = append(kind, a)
		}
	}
	return kind
}

// answer returns the answer to a query.
func (n *names) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
	if q.Type != dnsmessage.TypeA && q.Type != dnsmessage.TypeAAAA {
		out, _ := m.Pack()
		return out
	}
	for _, a := range n.lookup(q.Name.String(), q.Type == dnsmessage.TypeAAAA) {
		var body dnsmessage.ResourceBody
		if a.Is4() {
			body = &dnsmessage.AResource{A: a.As4()}
		} else {
			body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}, Body: body,
		})
	}
	out, _ := m.Pack()
	return out
}

// resolver starts the server of names and returns a resolver that asks it.
func (n *names) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buffer := make([]byte, 4096)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if out := n.answer(buffer[:size]); out != nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// rig is a loopback server that nobody may reach, and one on another address that plays a public server.
type rig struct {
	port    string            // of both
	config  fetchguard.Config // of client
	client  *fetchguard.Client
	reached atomic.Int64 // requests that reached the protected server
	names   *names
}

// publicAddr is where the server that plays a public one listens.
const publicAddr = "127.0.0.2"

func newRig(t *testing.T, allow ...string) *rig {
	t.Helper()
	r := &rig{names: &names{public: netip.MustParseAddr(publicAddr)}}
	protected := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r.reached.Add(1)
		_, _ = w.Write([]byte("secret"))
	}))
	t.Cleanup(protected.Close)
	protected.Start()
	_, port, err := net.SplitHostPort(protected.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.port = port
	listener, err := net.Listen("tcp", net.JoinHostPort(publicAddr, port))
	if err != nil {
		t.Skipf("this machine has no second loopback address: %v", err)
	}
	public := &httptest.Server{Listener: listener, Config: &http.Server{ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if to := q.URL.Query().Get("to"); to != "" {
				w.Header().Set("Location", to)
				w.WriteHeader(http.StatusFound)
				return
			}
			_, _ = w.Write([]byte("public"))
		})}}
	public.Start()
	t.Cleanup(public.Close)
	c := fetchguard.Config{Timeout: time.Minute, Naming: -1, Resolver: r.names.resolver(t)}
	for _, p := range append(allow, publicAddr+"/32") {
		c.Allow = append(c.Allow, netip.MustParsePrefix(p))
	}
	var number uint16
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	c.Ports = []uint16{80, 443, number}
	r.config, r.client = c, fetchguard.New(c)
	return r
}

// refused reports whether an error says that the address is refused, or malformed.
func refused(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && (f.Code == fault.PermissionDenied && f.Reason == fetchguard.ReasonAddress ||
		f.Code == fault.Invalid && f.Field == "url")
}

func TestClient_HostileAddressesNeverEscape(t *testing.T) {
	r := newRig(t)
	hosts := hostile()
	if len(hosts) < 500 {
		t.Fatalf("only %d hostile addresses", len(hosts))
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
	} else { // sockets for IPv6 cannot be made, so none is refused
		hosts = slices.DeleteFunc(hosts, func(h string) bool { return h[0] == '[' || strings.HasPrefix(h, "v6-") })
	}
	escapes := 0
	for _, host := range hosts {
		target := "http://" + host + ":" + r.port + "/"
		through := "http://" + net.JoinHostPort(publicAddr, r.port) + "/?to=" + strings.ReplaceAll(target, "%", "%25")
		for _, address := range []string{target, through} {
			if doc, err := r.client.Get(t.Context(), address); !refused(err) {
				escapes++
				t.Errorf("%s: got %+v, %v", address, doc, err)
			}
		}
	}
	if n := r.reached.Load(); n != 0 || escapes != 0 {
		t.Errorf("%d of %d addresses escaped, and the protected server had %d requests", escapes, len(hosts), n)
	}
	t.Logf("%d hostile addresses, each asked for directly and by a redirect: %d escapes", len(hosts), escapes)
}

// TestClient_OneAnswerForEveryHostThatIsRefused asks for names that do not exist, and for names and addresses that are
// refused for different reasons. What a caller sees is the same; the whole error, for the log, says why.
func TestClient_OneAnswerForEveryHostThatIsRefused(t *testing.T) {
	r := newRig(t)
	config := r.config
	config.Own = func(context.Context) []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("93.184.216.34:0")}
	}
	client := fetchguard.New(config)
	through := "http://" + net.JoinHostPort(publicAddr, r.port) + "/?to="
	want := ""
	for _, c := range []struct{ host, why string }{
		{"absent.evil.test", "no such host"}, {"v4-10-0-0-5.evil.test", "10.0.0.5"}, {"10.0.0.5", "10.0.0.5"},
		{"v4-127-0-0-1.evil.test", "127.0.0.1"}, {"v4-169-254-169-254.evil.test", "169.254.169.254"},
		{"v4-93-184-216-34.evil.test", "this server"}, {"93.184.216.34", "this server"},
	} {
		target := "http://" + c.host + ":" + r.port + "/"
		for _, address := range []string{target, through + target} {
			_, err := client.Get(t.Context(), address)
			got := fmt.Sprint(fault.CodeOf(err), " ", strings.ReplaceAll(fault.Public(err), address, "ADDRESS"))
			var f *fault.Error
			if !errors.As(err, &f) || f.Reason != fetchguard.ReasonAddress || f.RetryAfter != 0 {
				t.Errorf("%s: %#v", address, err)
			}
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("%s: a caller sees %q, want %q", address, got, want)
			}
			if !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: the log has %q, want %q in it", address, err, c.why)
			}
		}
	}
	for _, host := range []string{"absent.evil.test", "v4-10-0-0-5.evil.test", "public.evil.test"} {
		_, err := client.Get(t.Context(), "http://"+host+":9/")
		if text := fault.Public(err); !strings.Contains(text, "ports other than") {
			t.Errorf("port 9 of %s: a caller sees %q", host, text)
		}
	}
	if r.reached.Load() != 0 {
		t.Errorf("the protected server had %d requests", r.reached.Load())
	}
}

func TestClient_ChangedNamesNeverEscape(t *testing.T) {
	r := newRig(t)
	for i := range 20 {
		base := fmt.Sprintf("http://rebind%d.evil.test:%s/", i, r.port)
		doc, err := r.client.Get(t.Context(), base)
		if err != nil || string(doc.Body) != "public" {
			t.Fatalf("the first answer is public: got %+v, %v", doc, err)
		}
		if _, err := r.client.Get(t.Context(), base); !refused(err) {
			t.Errorf("the second answer is loopback: got %v", err)
		}
		base = fmt.Sprintf("http://rebind-later%d.evil.test:%s/", i, r.port)
		if _, err := r.client.Get(t.Context(), base+"?to="+base); !refused(err) {
			t.Errorf("a redirect to the same name, which has another address now: got %v", err)
		}
	}
	if n := r.reached.Load(); n != 0 {
		t.Errorf("the protected server had %d requests", n)
	}
}

// TestClient_TheRigCanBeReached shows that the protected server would be reached if its address were allowed.
func TestClient_TheRigCanBeReached(t *testing.T) {
	r := newRig(t, "127.0.0.0/8")
	for _, host := range []string{"127.0.0.1", "v4-127-0-0-1.evil.test"} {
		if doc, err := r.client.Get(t.Context(), "http://"+host+":"+r.port); err != nil || string(doc.Body) != "secret" {
			t.Errorf("%s: got %+v, %v", host, doc, err)
		}
	}
	if r.reached.Load() != 2 {
		t.Errorf("the protected server had %d requests, want 2", r.reached.Load())
	}
}

// TestClient_OwnAddressesNeverEscape has a listener of this process within a network that the operator allows, and a
// machine with a public address.
func TestClient_OwnAddressesNeverEscape(t *testing.T) {
	r := newRig(t, "127.0.0.0/8")
	const public = "93.184.216.34"
	var port uint16
	if _, err := fmt.Sscan(r.port, &port); err != nil {
		t.Fatal(err)
	}
	own := func(addr string, port uint16) func(context.Context) []netip.AddrPort {
		return func(context.Context) []netip.AddrPort {
			return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(addr), port)}
		}
	}
	machine := func(addr ...string) func() (out []netip.Addr, err error) {
		return func() (out []netip.Addr, err error) {
			for _, a := range addr {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}
	}
	through := "http://" + net.JoinHostPort(publicAddr, r.port) + "/?to="
	for name, c := range map[string]struct {
		own     func(context.Context) []netip.AddrPort
		machine func() ([]netip.Addr, error)
		hosts   []string
		hops    bool // the server that plays a public one can be reached
	}{
		"a listener": {own: own("127.0.0.1", port), hosts: spellings("127.0.0.1"), hops: true},
		"a listener by a name": {own: own("127.0.0.1", port), hops: true,
			hosts: []string{"v4-127-0-0-1.evil.test", "localhost", "both.evil.test"}},
		"a listener on all addresses": {own: own("0.0.0.0", port), hosts: append(spellings("127.0.0.1"), publicAddr)},
		"a listener on all addresses of IPv6": {own: own("::", port), machine: machine(public),
			hosts: append(spellings("127.0.0.1"), public, "v4-93-184-216-34.evil.test")},
		"an address that others know": {own: own(public, 0), hops: true,
			hosts: append(spellings(public), "v4-93-184-216-34.evil.test")},
		"a public address of the machine": {machine: machine(public, "2606:4700::1"), hops: true,
			hosts: append(spellings(public), "v4-93-184-216-34.evil.test")},
	} {
		config := r.config
		config.Own, config.Machine = c.own, c.machine
		client := fetchguard.New(config)
		for _, host := range c.hosts {
			target := "http://" + host + ":" + r.port + "/"
			addresses := []string{target}
			if c.hops {
				addresses = append(addresses, through+target)
			}
			for _, address := range addresses {
				if doc, err := client.Get(t.Context(), address); !refused(err) {
					t.Errorf("%s: %s: got %+v, %v", name, address, doc, err)
				}
			}
		}
		doc, err := client.Get(t.Context(), "http://"+net.JoinHostPort(publicAddr, r.port))
		if c.hops && (err != nil || string(doc.Body) != "public") {
			t.Errorf("%s: another server: got %+v, %v", name, doc, err)
		}
	}
	if n := r.reached.Load(); n != 0 {
		t.Errorf("the protected server had %d requests", n)
	}
	config := r.config
	config.Machine = func() ([]netip.Addr, error) { return nil, errors.New("no interfaces") }
	if _, err := fetchguard.New(config).Get(t.Context(), "http://127.0.0.1:"+r.port); err == nil {
		t.Error("an address is reached although those of the machine are unknown")
	}
}

func TestPublic_KnowsTheRegistry(t *testing.T) {
	for _, a := range append(append([]string{}, secrets...), secrets6...) {
		if fetchguard.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s counts as public", a)
		}
	}
	for _, a := range []string{"::ffff:93.184.216.34", "2606:4700::1%eth0"} {
		if fetchguard.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s counts as public", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.0.1",
		"172.32.0.1", "169.253.0.1", "192.0.1.1", "223.255.255.255", "2606:4700:4700::1111", "2001:4860:4860::8888",
		"2a00:1450::1", "2001:200::1"} {
		if !fetchguard.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s does not count as public", a)
		}
	}
	if fetchguard.Public(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}
