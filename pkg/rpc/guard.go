package rpc

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

// Metadata keys of API keys. Each may be given once.
const (
	bearerKey = "authorization" // "Bearer KEY"
	secretKey = "x-api-key"
)

// guard authenticates and authorises calls before their handlers. A nil guard reads only the tenant.
type guard struct{ *auth.Guard }

// verdict says what a caller may do.
type verdict struct {
	rule      auth.Rule
	principal *auth.Principal // nil if the caller is not known
	tenant    string
	err       error // why the caller may not call the method; nil if it may
}

// judge decides about a call. method is the full name under which the server has found the handler.
func (g guard) judge(ctx context.Context, method string) (v verdict) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v.tenant, v.err = auth.ReadTenant(md.Get(auth.TenantKey)); v.err != nil || g.Guard == nil {
		return v
	}
	rule, known := g.Method(method)
	v.rule = rule
	v.principal, v.err = g.Allow(method, rule, known, g.shown(ctx, md))
	if v.err == nil {
		v.tenant, v.err = v.principal.TenantOf(v.tenant)
	}
	if v.err == nil && rule.Metered {
		v.err = v.principal.Meter().Begin()
	}
	return v
}

// enter returns the context of a call that may be handled, with its principal and tenant.
func (g guard) enter(ctx context.Context, v verdict) context.Context {
	if g.Guard != nil {
		return auth.WithPrincipal(auth.WithTenant(ctx, v.tenant), v.principal)
	}
	if v.tenant != "" {
		return auth.WithTenant(ctx, v.tenant)
	}
	return ctx
}

type verdictKey struct{}

// shown returns what the caller of a call shows. Credentials in a form that is not known count as a wrong key.
func (g guard) shown(ctx context.Context, md metadata.MD) auth.Credentials {
	var c auth.Credentials
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && g.Verified(info.State.VerifiedChains) {
			c.Cert, c.URIs = true, info.State.PeerCertificates[0].URIs
		}
	}
	bearer, secrets := md.Get(bearerKey), md.Get(secretKey)
	const wrong = "?"
	switch {
	case len(bearer) == 0 && len(secrets) == 0:
	case len(bearer) > 1 || len(secrets) > 1:
		c.Secret = wrong
	case len(bearer) == 1:
		secret, ok := auth.Bearer(bearer[0])
		if !ok || secret == "" || len(secrets) == 1 && strings.TrimSpace(secrets[0]) != secret {
			secret = wrong
		}
		c.Secret = secret
	default:
		if c.Secret = strings.TrimSpace(secrets[0]); c.Secret == "" {
			c.Secret = wrong
		}
	}
	return c
}

// audit writes an action to the audit log if the rule says so.
func (g guard) audit(ctx context.Context, rule auth.Rule, p *auth.Principal, method, target string, err error) {
	if g.Guard == nil || !rule.Audited {
		return
	}
	a := auth.Action{What: method, Target: target, Request: obs.RequestID(ctx)}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		a.From = p.Addr.String()
	}
	g.Audit.Write(p, a, FromStatus(err))
}

// target returns what a request is about: a run, or MODEL:NAME. In a stream the first message says it, in its frame
// "open". It is empty for requests that name nothing.
func target(req any) string {
	m, ok := req.(proto.Message)
	if !ok {
		return ""
	}
	fields := m.ProtoReflect()
	if open := fields.Descriptor().Fields().ByName("open"); open != nil && open.Message() != nil && fields.Has(open) {
		fields = fields.Get(open).Message()
	}
	text := func(name protoreflect.Name) string {
		f := fields.Descriptor().Fields().ByName(name)
		if f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
			return ""
		}
		return fields.Get(f).String()
	}
	name := text("name")
	if model := text("model"); model != "" && name != "" {
		name = model + ":" + name
	}
	return cmp.Or(text("run"), name)
}

// watched is a stream that remembers the target of its first message. A handler may receive in a goroutine of its own.
type watched struct {
	grpc.ServerStream
	once   sync.Once
	target atomic.Pointer[string]
}

// RecvMsg receives a message.
func (w *watched) RecvMsg(m any) error {
	err := w.ServerStream.RecvMsg(m)
	if err == nil {
		w.once.Do(func() {
			name := target(m)
			w.target.Store(&name)
		})
	}
	return err
}

// unary handles a call that the server has judged before it received the request.
func (g guard) unary(
	ctx context.Context,
	req any,
	info *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler,
) (resp any, err error) {
	v := ctx.Value(verdictKey{}).(verdict)
	result := errPanicked
	defer func() { g.audit(ctx, v.rule, v.principal, info.FullMethod, target(req), result) }()
	if err = v.err; err == nil {
		resp, err = handler(g.enter(ctx, v), req)
	}
	result = err
	return resp, err
}

// errPanicked is the result of an action whose handler has not returned.
var errPanicked error = fault.New(fault.Internal, "the handler has panicked")

// stream judges a call and passes its stream to the handler, which receives through receiving.
func (g guard) stream(receiving receiving) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, v := ss.Context(), g.judge(ss.Context(), info.FullMethod)
		if v.err == nil {
			if ctx = g.enter(ctx, v); ctx != ss.Context() {
				ss = identified{ss, ctx}
			}
			if receiving.counts(info) {
				r := receiving.of(ss.Context(), v.tenant, !info.IsClientStream)
				defer r.close()
				ss = counted{ss, r}
			}
		}
		if g.Guard == nil || !v.rule.Audited {
			if v.err != nil {
				return v.err
			}
			return handler(srv, ss)
		}
		w, result := &watched{ServerStream: ss}, errPanicked
		defer func() {
			name := ""
			if named := w.target.Load(); named != nil {
				name = *named
			}
			g.audit(ctx, v.rule, v.principal, info.FullMethod, name, result)
		}()
		err := v.err
		if err == nil {
			err = handler(srv, w)
		}
		result = err
		return err
	}
}

// unknown handles calls of methods that do not exist. The guard runs before it, so that whoever may call nothing also
// learns nothing about what exists.
func unknown(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return status.Errorf(codes.Unimplemented, "call %s: it does not exist", method)
}
