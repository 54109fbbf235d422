// Command stranger tries to get something from the hosts of a network on which it has no credentials. It connects to
// every port that it is told, and at those that are open it calls every method of gRPC and every route that Lamina has,
// with TLS and without, and the APIs of Consul and NATS. It shows no key, no token and no certificate.
//
//	stranger ADDRESS:PORT...
//
// It prints what it was told as JSON: the open ports, how many calls were refused, and every other answer. Whether
// these say too much is for its caller to judge.
//
//	stranger listeners
//
// prints the addresses on which programs in its own network namespace listen. Its caller runs it beside each service,
// so that no port is missed: to try all 65,535 of each address takes many minutes.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lamina-mesh/lamina/pkg/auth"
)

// patience bounds each call.
const patience = 10 * time.Second

// report is what the program prints.
type report struct {
	Open    []string       `json:"open"`    // addresses and ports
	Refused map[string]int `json:"refused"` // calls, by address and port
	Answers []answer       `json:"answers"` // all others
}

// answer is what a call was told.
type answer struct {
	At   string `json:"at"`
	What string `json:"what"`
	Code string `json:"code"`
	Text string `json:"text"` // its beginning
}

func main() {
	var out any
	var err error
	switch {
	case len(os.Args) < 2:
		fmt.Fprintln(os.Stderr, "usage: stranger ADDRESS:PORT...\n       stranger listeners")
		os.Exit(2)
	case os.Args[1] == "listeners":
		out, err = listeners()
	default:
		out = try(os.Args[1:])
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stranger:", err)
		os.Exit(1)
	}
}

// try makes every call at every port that accepts connections.
func try(ports []string) *report {
	r := &report{Refused: map[string]int{}}
	for _, at := range ports {
		conn, err := net.DialTimeout("tcp", at, patience)
		if err != nil {
			continue
		}
		_ = conn.Close()
		r.Open = append(r.Open, at)
		for _, a := range calls(at) {
			if a.Code == refused {
				r.Refused[at]++
			} else {
				r.Answers = append(r.Answers, a)
			}
		}
	}
	return r
}

// listeners returns the addresses of TCP on which something listens, but for those of the loopback.
func listeners() ([]netip.AddrPort, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, err
	}
	out := []netip.AddrPort{}
	//nolint:staticcheck // what it is deprecated for is netlink, which is faster; this runs once
	for _, read := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} {
		sockets, err := read()
		if err != nil {
			return nil, err
		}
		for _, s := range sockets {
			addr, ok := netip.AddrFromSlice(s.LocalAddr)
			if !ok || s.LocalPort > math.MaxUint16 {
				return nil, fmt.Errorf("read the sockets: %v is no address", s.LocalAddr)
			}
			const listen = 10 // TCP_LISTEN of Linux
			if s.St == listen && !addr.Unmap().IsLoopback() {
				out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(s.LocalPort)))
			}
		}
	}
	return out, nil
}

// refused is the code of calls that the other side has refused before it did anything: it wants credentials, or it does
// not speak the protocol.
const refused = "refused"

// calls makes every call at a port.
func calls(at string) (out []answer) {
	if greeting := greet(at); strings.HasPrefix(greeting, "INFO ") {
		return []answer{askNATS(at)}
	}
	if a, ok := askNames(at); ok {
		return []answer{a}
	}
	client := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} // whoever it is
	for _, secure := range []bool{false, true} {
		scheme, creds := "http", insecure.NewCredentials()
		if secure {
			scheme, creds = "https", credentials.NewTLS(client)
		}
		out = append(out, askHTTP(scheme, at, client)...)
		out = append(out, askGRPC(scheme, at, creds)...)
	}
	return out
}

// greet returns what the other side says first.
func greet(at string) string {
	conn, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	if conn.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return ""
	}
	text, _ := bufio.NewReader(conn).ReadString('\n')
	return text
}

// askNATS subscribes to everything.
func askNATS(at string) answer {
	a := answer{At: at, What: "nats SUB >", Code: refused}
	conn, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return a
	}
	defer func() { _ = conn.Close() }()
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return a
	}
	if _, err := io.WriteString(conn, "CONNECT {\"verbose\":true}\r\nSUB > 1\r\nPING\r\n"); err != nil {
		return a
	}
	text, _ := io.ReadAll(io.LimitReader(conn, 64<<10))
	_, after, _ := strings.Cut(string(text), "\r\n") // the greeting
	if !strings.HasPrefix(after, "-ERR 'Authorization Violation'") {
		a.Code, a.Text = "answered", shown(after)
	}
	return a
}

// askNames asks a server of names, such as Consul's, for the services of a fleet. ok is false if it is none.
func askNames(at string) (a answer, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", at)
	}}
	a = answer{At: at, What: "names of services", Code: refused}
	for _, service := range []string{"consul", "lamina-shard", "lamina-router"} {
		addrs, err := names.LookupHost(ctx, service+".service.consul.")
		var unknown *net.DNSError
		switch {
		case err == nil:
			a.Code, a.Text = "answered", service+" "+strings.Join(addrs, " ")
			return a, true
		case errors.As(err, &unknown) && unknown.IsNotFound:
			ok = true
		default:
			return a, false
		}
	}
	return a, ok
}

// routes returns the methods and paths that are asked for: those of Lamina, every method at the root, and those of
// Consul that read and write what the fleet has there.
func routes() (out []string) {
	placeholder := regexp.MustCompile(`\{[^}]*\}`)
	known := maps.Clone(auth.Routes())
	maps.Copy(known, auth.AdminRoutes())
	for _, route := range slices.Sorted(maps.Keys(known)) {
		route = strings.ReplaceAll(route, "{$}", "")
		out = append(out, placeholder.ReplaceAllString(route, "x"))
	}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
		out = append(out, method+" /", method+" /metrics", method+" /v1/models", method+" /nothing")
	}
	return append(out, "GET /v1/catalog/services", "GET /v1/catalog/nodes", "GET /v1/kv/?recurse=true",
		"GET /v1/kv/lamina?keys=true", "GET /v1/agent/self", "GET /v1/agent/services", "GET /v1/agent/checks",
		"GET /v1/agent/members", "GET /v1/health/state/any", "GET /v1/session/list", "GET /v1/acl/tokens",
		"GET /v1/health/service/lamina-router", "GET /v1/health/service/lamina-shard", "GET /v1/snapshot",
		"PUT /v1/kv/lamina/stranger", "DELETE /v1/kv/lamina?recurse=true", "PUT /v1/session/create",
		"PUT /v1/agent/service/register", "PUT /v1/catalog/register", "PUT /v1/acl/bootstrap", "PUT /v1/agent/leave",
		"PUT /v1/txn")
}

// body is sent by methods that may have one.
const body = `{"model":"","prompt":"x","messages":[{"role":"user","content":"x"}],"input":"x","Name":"lamina-shard",` +
	`"ID":"stranger","Node":"stranger","Address":"127.0.0.1","max_tokens":1}`

func askHTTP(scheme, at string, client *tls.Config) (out []answer) {
	transport := &http.Transport{TLSClientConfig: client, DisableCompression: true}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, route := range routes() {
		method, path, _ := strings.Cut(route, " ")
		a, began := answer{At: at, What: method + " " + scheme + " " + path, Code: refused}, time.Now()
		err := ask(c, method, scheme+"://"+at+path, &a)
		if err != nil && timedOut(err) {
			a.Code, a.Text = "silent", err.Error()
		}
		if out = append(out, a); err != nil && time.Since(began) > patience/2 {
			break // it does not speak the protocol, and keeps the connection
		}
	}
	return out
}

func timedOut(err error) bool {
	var slow net.Error
	return errors.As(err, &slow) && slow.Timeout()
}

// ask sends a request. An error says that there was no answer.
func ask(c *http.Client, method, url string, a *answer) error {
	var send io.Reader
	if slices.Contains([]string{"POST", "PUT", "PATCH"}, method) {
		send = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, url, send)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	const plain = "Client sent an HTTP request to an HTTPS server.\n"
	withoutText := method == http.MethodHead && strings.HasPrefix(url, "http:")
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
	case resp.StatusCode == http.StatusBadRequest && (string(text) == plain || withoutText):
	default:
		a.Code, a.Text = strconv.Itoa(resp.StatusCode), shown(string(text))
	}
	return nil
}

// noConnection matches what gRPC's client says when it has no connection.
var noConnection = regexp.MustCompile(`connection error|error reading|connection closed|transport is closing|` +
	`broken pipe|connection reset`)

func askGRPC(scheme, at string, creds credentials.TransportCredentials) (out []answer) {
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(creds))
	if err != nil {
		return []answer{{At: at, What: "grpc", Code: "no client", Text: err.Error()}}
	}
	defer func() { _ = conn.Close() }()
	methods := slices.Sorted(maps.Keys(auth.Methods()))
	for _, method := range append(methods, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/x.Y/Z") {
		a := answer{At: at, What: "grpc " + scheme + " " + method, Code: refused}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		cancel()
		s, _ := status.FromError(err)
		switch s.Code() {
		case codes.Unauthenticated:
		case codes.DeadlineExceeded:
			a.Code = "silent"
		default: // without a connection the other side wants a certificate, or does not speak gRPC
			if s.Code() != codes.Unavailable || !noConnection.MatchString(s.Message()) {
				a.Code, a.Text = s.Code().String(), shown(s.Message())
			}
		}
		if out = append(out, a); a.Code == "silent" {
			break
		}
	}
	return out
}

// shown returns the beginning of a text.
func shown(text string) string { return text[:min(len(text), 500)] }
