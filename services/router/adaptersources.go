package router

import (
	"context"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
)

// readAdapters reads the index of the store.
func (s *Service) readAdapters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.adapters
	l.store.clean()
	if l.indexed, l.damaged = l.store.index(); l.damaged != nil {
		s.log.Warn("read the names of adapters: remove the file to begin anew", "error", l.damaged)
	}
}

// bindSources binds the adapters of the router's configuration, and those of its store's index, to their models
// once these are known.
func (s *Service) bindSources(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.adapters
	known := map[string]string{} // names by digest
	for _, d := range s.held {
		for _, h := range d.resp.GetHeld() {
			if !s.isDraft(h.GetModel(), h.GetDigest()) {
				known[h.GetDigest()] = h.GetModel()
			}
		}
	}
	var waiting []AdapterSource
	for _, src := range l.sources {
		var found []string
		for digest, name := range known {
			if src.Model == "" || src.Model == digest || src.Model == name {
				found = append(found, digest)
			}
		}
		if len(found) != 1 {
			waiting = append(waiting, src)
			continue
		}
		wg.Go(func() {
			if err := s.bindSource(src, found[0], known[found[0]]); err != nil {
				s.log.Warn("read adapter", "name", src.Name, "folder", src.Dir, "error", err)
				s.mu.Lock()
				l.refused[src] = err
				s.notifyChange()
				s.mu.Unlock()
			}
			if ctx.Err() == nil {
				notify()
			}
		})
	}
	l.sources = waiting
	for digest, name := range known {
		l.restore(digest, name)
	}
}

// bindSource reads the adapter of a source and points its name to it.
func (s *Service) bindSource(src AdapterSource, digest, model string) error {
	values, err := adapter.Open(src.Dir)
	if err == nil {
		err = values.CheckServed()
	}
	if err == nil {
		err = checkBase(values, digest, src.AnyBase)
	}
	if err != nil {
		return err
	}
	s.tellBase(src.Name, model, digest, values)
	outline := values.Outline()
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.adapters.add(digest, adapterVersion{outline.Digest(), src.Dir, src.AnyBase})
	a.measure(values, outline)
	s.adapters.point(adapterName{digest, src.Name}, model, a, time.Now())
	s.notifyChange()
	return nil
}

// tellBase logs what is not known, or has been accepted, of the base of an adapter.
func (s *Service) tellBase(name, model, digest string, values *adapter.Adapter) {
	switch values.BaseDigest {
	case digest:
	case "":
		s.log.Info("the adapter does not say which base it was trained on", "adapter", name, "model", model)
	default:
		s.log.Warn("the adapter was trained on another base", "adapter", name, "base", values.BaseDigest,
			"model", model, "digest", digest)
	}
}
