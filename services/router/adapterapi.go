package router

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// loadTime bounds LoadAdapter, from its first frame to its answer.
const loadTime = 10 * time.Minute

func errLoadTime() error {
	return fault.New(fault.DeadlineExceeded, "load adapter: it took more than %v", loadTime)
}

// LoadAdapter adds an adapter, or points a name to another one.
func (s *Service) LoadAdapter(
	stream grpc.ClientStreamingServer[routerv1.LoadAdapterRequest, routerv1.LoadAdapterResponse],
) error {
	ctx, cancel := context.WithTimeoutCause(stream.Context(), loadTime, errLoadTime())
	defer cancel()
	frames, ended := make(chan *routerv1.LoadAdapterRequest), make(chan error, 1)
	go func() { // ends with the call, since Recv does
		for {
			req, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case frames <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	resp, err := s.loadAdapter(ctx, func() (*routerv1.LoadAdapterRequest, error) {
		select {
		case req := <-frames:
			return req, nil
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				err = fault.Field("data", "the stream ended before the adapter was complete")
			}
			return nil, rpc.FromStatus(err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(resp)
}

func (s *Service) loadAdapter(
	ctx context.Context, next func() (*routerv1.LoadAdapterRequest, error),
) (*routerv1.LoadAdapterResponse, error) {
	first, err := next()
	if err != nil {
		return nil, err
	}
	open := first.GetOpen()
	if open == nil {
		return nil, fault.Field("open", "the first frame must name the adapter")
	}
	if err := adapter.CheckName(open.GetName()); err != nil {
		return nil, err
	}
	p, err := s.await(ctx, open.GetModel(), defaultWait)
	if err != nil {
		return nil, err
	}
	if err := auth.CheckModel(ctx, p.model(), p.digest, adapted(p.model(), open.GetName())); err != nil {
		return nil, err
	}
	name := adapterName{p.digest, open.GetName()}
	s.mu.Lock()
	err = s.adapters.checkRoom(name)
	s.mu.Unlock()
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "load adapter %q", open.GetName())
	}
	a, err := s.storeAdapter(open, name, p.model(), auth.MayUse(ctx, p.model(), p.digest), next)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "load adapter %q", open.GetName())
	}
	defer s.release(a)
	if err := s.awaitAdapter(ctx, p.digest, a); err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "load adapter %q", open.GetName())
	}
	resp := &routerv1.LoadAdapterResponse{}
	err = s.changeName(name, func() error {
		if err := s.adapters.checkRoom(name); err != nil { // others may have come meanwhile
			return err
		}
		if former := s.adapters.point(name, p.model(), a, time.Now()); former != nil && former != a {
			resp.Replaced = former.digest.String()
		}
		resp.Adapter = s.describeAdapter(name, s.adapters.names[name])
		return nil
	})
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "load adapter %q", open.GetName())
	}
	s.log.InfoContext(ctx, "point adapter", "model", p.model(), "name", name.name, "digest", a.digest.String(),
		"replaced", resp.GetReplaced())
	return resp, nil
}

// storeAdapter receives the files of an adapter, or finds one by its digest, and keeps it until release. Without
// anyAdapter it finds only what the name has been before.
func (s *Service) storeAdapter(
	open *routerv1.LoadAdapterOpen, name adapterName, model string, anyAdapter bool,
	next func() (*routerv1.LoadAdapterRequest, error),
) (a *servedAdapter, err error) {
	if open.GetDigest() != "" {
		return s.findAdapter(open, name, anyAdapter)
	}
	if s.adapters.store.dir == "" {
		return nil, fault.New(fault.FailedPrecondition, "this router has no folder for adapters")
	}
	if n := open.GetSize(); n == 0 || n > maxAdapterFile {
		return nil, fault.Field("open.size", "want 1..%d bytes, got %d", int64(maxAdapterFile), n)
	}
	size := int64(open.GetSize()) + int64(len(open.GetConfig()))
	giveBack, err := s.reserve(size)
	if err != nil {
		return nil, err
	}
	defer giveBack()
	err = s.adapters.store.receive(open.GetConfig(), open.GetSize(), func() ([]byte, error) {
		req, err := next()
		if err != nil {
			return nil, err
		}
		if len(req.GetData()) == 0 {
			return nil, fault.Field("frame", "want data, got %T", req.GetFrame())
		}
		return req.GetData(), nil
	}, func(dir string, values *adapter.Adapter, outline *adapter.Outline) error {
		if err := checkBase(values, name.model, open.GetAnyBase()); err != nil {
			return err
		}
		s.tellBase(name.name, model, name.model, values)
		s.mu.Lock()
		defer s.mu.Unlock()
		v, err := s.adapters.store.commit(dir, outline.Digest())
		if err != nil {
			return err
		}
		v.anyBase = open.GetAnyBase()
		a = s.adapters.add(name.model, v)
		a.measure(values, outline)
		a.users++
		return nil
	})
	return a, err
}

// findAdapter finds an adapter that the router has the files of, and keeps it until release.
func (s *Service) findAdapter(
	open *routerv1.LoadAdapterOpen, name adapterName, anyAdapter bool,
) (*servedAdapter, error) {
	s.mu.Lock()
	v, err := s.adapters.earlier(name, open.GetDigest(), anyAdapter)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	v.anyBase = v.anyBase || open.GetAnyBase()
	a := s.adapters.add(name.model, v)
	a.users++
	s.mu.Unlock()
	if _, _, err := s.read(a); err != nil {
		s.release(a)
		return nil, err
	}
	return a, nil
}

// earlier finds the version that a client asks for: "previous", a digest, or the beginning of one. Without anyAdapter
// it is one that the name points to or has pointed to.
func (l *adapters) earlier(name adapterName, want string, anyAdapter bool) (adapterVersion, error) {
	n := l.names[name]
	if want == "previous" {
		if n == nil || len(n.earlier) == 0 {
			return adapterVersion{}, fault.New(fault.NotFound, "the name has had no other adapter")
		}
		return n.earlier[0], nil
	}
	want = strings.TrimPrefix(want, "sha256:")
	if len(want) < 6 {
		return adapterVersion{}, fault.Field("open.digest", "want at least 6 digits, got %q", want)
	}
	is := func(d adapter.Sum) bool {
		return strings.HasPrefix(strings.TrimPrefix(d.String(), "sha256:"), want) && (anyAdapter || n.has(d))
	}
	v, ok := l.version(name.model, is)
	if !ok {
		return v, fault.New(fault.NotFound, "no adapter of this router has the digest %s", want)
	}
	other, ok := l.version(name.model, func(d adapter.Sum) bool { return d != v.digest && is(d) })
	if ok {
		return v, fault.Field("open.digest", "%s is the beginning of %s and of %s", want, v.digest, other.digest)
	}
	return v, nil
}

// awaitAdapter waits until every pipeline of a model has loaded an adapter. It gives up when one of them cannot.
func (s *Service) awaitAdapter(ctx context.Context, model string, a *servedAdapter) error {
	s.poke()
	began := time.Now()
	for {
		s.mu.Lock()
		ready, failed := 0, error(nil)
		lacking := 0
		for _, p := range s.pipelines {
			if p.digest != model || p.draft || p.dead() {
				continue
			}
			if s.holds(p, a) {
				ready++
				continue
			}
			lacking++
			for _, pl := range p.places() {
				if f := s.adapters.failed[pl][a.digest]; f != nil && f.at.After(began) {
					failed = f.err
				}
			}
		}
		changed := s.changed
		s.mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case ready > 0 && lacking == 0:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// UnloadAdapter removes the name of an adapter.
func (s *Service) UnloadAdapter(
	ctx context.Context, r *routerv1.UnloadAdapterRequest,
) (*routerv1.UnloadAdapterResponse, error) {
	if err := adapter.CheckName(r.GetName()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	var found []adapterName
	model := ""
	for key, n := range s.adapters.names {
		if key.name == r.GetName() && (r.GetModel() == "" || r.GetModel() == key.model || r.GetModel() == n.model) {
			found, model = append(found, key), n.model
		}
	}
	s.mu.Unlock()
	unknown := fault.New(fault.NotFound, "unload adapter %q: model %q has none of this name", r.GetName(), r.GetModel())
	switch {
	case len(found) == 0:
		return nil, unknown
	case len(found) > 1:
		return nil, fault.Field("model", "several models have an adapter %q: name one", r.GetName())
	}
	if err := auth.CheckModel(ctx, model, found[0].model, adapted(model, r.GetName())); err != nil {
		return nil, err
	}
	resp, digest := &routerv1.UnloadAdapterResponse{}, ""
	err := s.changeName(found[0], func() error {
		a := s.adapters.remove(found[0], time.Now())
		if a == nil {
			return unknown
		}
		resp.Requests, digest = uint32(a.users), a.digest.String()
		return nil
	})
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "unload adapter %q", r.GetName())
	}
	s.log.InfoContext(ctx, "unload adapter", "name", r.GetName(), "digest", digest, "requests", resp.GetRequests())
	return resp, nil
}

// ListAdapters lists the adapters that the caller may use.
func (s *Service) ListAdapters(
	ctx context.Context, _ *routerv1.ListAdaptersRequest,
) (*routerv1.ListAdaptersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &routerv1.ListAdaptersResponse{
		Adapters: slices.DeleteFunc(s.describeAdapters(""), func(a *routerv1.Adapter) bool {
			return !auth.MayUse(ctx, a.GetModel(), a.GetModelDigest(), adapted(a.GetModel(), a.GetName()))
		}),
	}, nil
}

// AwaitAdapters waits until every adapter of the configuration is loaded on every pipeline of its model.
func (s *Service) AwaitAdapters(ctx context.Context) error {
	for _, src := range s.cfg.Adapters {
		model, a, err := s.awaitName(ctx, src)
		if err == nil {
			err = s.awaitAdapter(ctx, model, a)
		}
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "load adapter %q", src.Name)
		}
	}
	return nil
}

// awaitName waits until the name of a source points to an adapter, or the source is refused.
func (s *Service) awaitName(ctx context.Context, src AdapterSource) (string, *servedAdapter, error) {
	for {
		s.mu.Lock()
		for key, n := range s.adapters.names {
			if key.name == src.Name && (src.Model == "" || src.Model == key.model || src.Model == n.model) {
				s.mu.Unlock()
				return key.model, n.current, nil
			}
		}
		changed, refused := s.changed, s.adapters.refused[src]
		s.mu.Unlock()
		if refused != nil {
			return "", nil, refused
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
}
