package tokenizer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/template"
	"github.com/lamina-mesh/lamina/pkg/toolcall"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Defaults of Config.
const (
	defaultModels = 64
	defaultBytes  = 4 << 30
)

// modelCache holds the loaded models by name and by digest. Configured models are pinned.
// Models that requests name are loaded from the library and evicted again, the least
// recently used first.
type modelCache struct {
	open   func(ctx context.Context, ref string) (Model, error) // loads a model; nil if there is no library
	models int                                                  // maximum number of models, pinned ones included
	bytes  int64                                                // maximum bytes of all models, estimated

	ticks   atomic.Uint64
	mu      sync.RWMutex
	held    []*model            // sorted by name
	loading map[string]*loading // by the name or digest asked for
}

// model is a Model whose templates are parsed.
type model struct {
	Model
	chats    map[string]*chat // by name
	pinned   bool
	bytes    int64
	used     atomic.Uint64 // the cache's tick at the last use
	splits   sync.Once
	splitter *splitter // of long texts; set by splits
}

// chat is a parsed chat template.
type chat struct {
	template *template.Template
	err      error // why it did not parse
	format   toolcall.Format
	probe    sync.Once
	style    template.CallStyle
}

// loading is a model that is being loaded. done is closed when the other fields are set.
type loading struct {
	done  chan struct{}
	model *model
	err   error
	left  bool // the request that was loading it has ended
}

// errLeft says that the request which was loading a model has ended before the model was loaded.
var errLeft = errors.New("the request that was loading the model has ended")

// prepare parses a model's templates.
func prepare(m Model) (*model, error) {
	if m.Name == "" || m.Vocab == nil {
		return nil, fault.New(fault.Invalid, "add model %q: it needs a name and a vocabulary", m.Name)
	}
	own := chatOf(m.Vocab)
	if len(m.Chat.Templates) == 0 {
		m.Chat.Templates = own.Templates
	}
	if m.Chat.Special == nil {
		m.Chat.Special = own.Special
	}
	if m.ChatTemplate != "" {
		m.Chat.Templates = map[string]string{"default": m.ChatTemplate}
	}
	out := &model{Model: m, chats: map[string]*chat{}, bytes: footprint(m.Vocab)}
	for name, source := range m.Chat.Templates {
		c := &chat{format: toolcall.Detect(source)}
		c.template, c.err = template.Parse(source)
		out.chats[name] = c
		out.bytes += int64(20 * len(source))
	}
	return out, nil
}

// footprint estimates the memory of a vocabulary: the bytes and texts of its tokens, and the
// entries of its maps and merges.
func footprint(v *vocab.Vocab) int64 {
	n := int64(1 << 20)
	for id := range v.Size() {
		text, _, err := v.Token(int32(id))
		if err == nil {
			n += int64(3*len(text) + 160)
		}
	}
	return n
}

// add pins a model. It replaces a model with the same name and digest.
func (s *modelCache) add(m *model) error {
	m.pinned = true
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.position(m.Name)
	if !found {
		s.held = slices.Insert(s.held, i, m)
		return nil
	}
	if s.held[i].Digest != m.Digest {
		return fault.New(fault.AlreadyExists, "add model %q: it is loaded with digest %s", m.Name, s.held[i].Digest)
	}
	s.held[i] = m
	return nil
}

func (s *modelCache) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, found := s.position(name); found {
		s.held = slices.Delete(s.held, i, i+1)
	}
}

// all lists the loaded models, sorted by name.
func (s *modelCache) all() []*model {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.held)
}

func (s *modelCache) position(name string) (int, bool) {
	return slices.BinarySearchFunc(s.held, name, func(m *model, name string) int { return cmp.Compare(m.Name, name) })
}

// find returns the model with a name or digest, and loads it if necessary.
func (s *modelCache) find(ctx context.Context, ref string) (*model, error) {
	for {
		s.mu.RLock()
		m := s.lookup(ref)
		held := len(s.held)
		s.mu.RUnlock()
		switch {
		case m != nil:
			m.used.Store(s.ticks.Add(1))
			return m, nil
		case ref == "":
			return nil, fault.New(fault.NotFound, "find model: the request names none and %d are loaded", held)
		case s.open == nil:
			return nil, fault.New(fault.NotFound, "find model %q: it is not loaded here", ref)
		}
		if m, err := s.load(ctx, ref); !errors.Is(err, errLeft) {
			return m, err
		}
	}
}

// lookup returns a loaded model. The caller holds mu.
func (s *modelCache) lookup(ref string) *model {
	if ref == "" {
		if len(s.held) == 1 {
			return s.held[0]
		}
		return nil
	}
	if i, found := s.position(ref); found {
		return s.held[i]
	}
	for _, m := range s.held {
		if m.Digest == ref {
			return m
		}
	}
	return nil
}

// load loads a model from the library, once for all requests that wait for it. A request that has waited for another
// one, which has ended in the meantime, gets errLeft.
func (s *modelCache) load(ctx context.Context, ref string) (*model, error) {
	s.mu.Lock()
	if m := s.lookup(ref); m != nil {
		s.mu.Unlock()
		return m, nil
	}
	if l := s.loading[ref]; l != nil {
		s.mu.Unlock()
		select {
		case <-l.done:
			if l.left {
				return nil, errLeft
			}
			return l.model, l.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l := &loading{done: make(chan struct{})}
	if s.loading == nil {
		s.loading = map[string]*loading{}
	}
	s.loading[ref] = l
	s.mu.Unlock()

	defer func() { // also if the files make a reader of them panic, which the server recovers from
		s.mu.Lock()
		delete(s.loading, ref)
		s.mu.Unlock()
		close(l.done)
	}()
	l.err = fault.New(fault.Internal, "load model %q: it could not be read", ref)
	l.model, l.err = s.fetch(ctx, ref)
	l.left = l.err != nil && ctx.Err() != nil
	return l.model, l.err
}

// fetch opens a model and inserts it into the cache.
func (s *modelCache) fetch(ctx context.Context, ref string) (*model, error) {
	given, err := s.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	m, err := prepare(given)
	if err != nil {
		return nil, err
	}
	if m.bytes > s.bytes {
		return nil, fault.New(fault.Exhausted, "load model %q: it needs about %d bytes of the %d allowed", m.Name,
			m.bytes, s.bytes)
	}
	m.used.Store(s.ticks.Add(1))
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := s.position(m.Name)
	switch {
	case found && s.held[i].Digest == m.Digest: // it has been loaded under another name meanwhile
		return s.held[i], nil
	case found && s.held[i].pinned:
		return nil, fault.New(fault.AlreadyExists, "load model %q: it is loaded with digest %s", m.Name,
			s.held[i].Digest)
	case found:
		s.held[i] = m
	default:
		s.held = slices.Insert(s.held, i, m)
	}
	s.evict(m)
	return m, nil
}

// evict removes models until the cache fits its bounds. Running requests keep their models.
func (s *modelCache) evict(newest *model) {
	for {
		total, oldest := int64(0), -1
		for i, m := range s.held {
			total += m.bytes
			if m != newest && !m.pinned && (oldest < 0 || m.used.Load() < s.held[oldest].used.Load()) {
				oldest = i
			}
		}
		if oldest < 0 || len(s.held) <= s.models && total <= s.bytes {
			return
		}
		s.held = slices.Delete(s.held, oldest, oldest+1)
	}
}
