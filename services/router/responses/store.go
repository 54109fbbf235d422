package responses

import (
	"container/list"
	"encoding/json"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// The default limits of the store.
const (
	defaultResponses = 4096
	defaultBytes     = 64 << 20
	defaultAge       = time.Hour
)

// key names a stored response.
type key struct{ tenant, id string }

// stored is a response with what is needed to continue it. It is never changed.
type stored struct {
	body   json.RawMessage   // the response object
	input  []json.RawMessage // the items of the request
	turns  []httpapi.Turn    // all turns up to and including the answer, without instructions
	root   string            // the id of the first response of the conversation
	bytes  int
	expiry time.Time
}

// size returns about how much memory the response takes. Turns that it shares with others count in full, since
// it may outlive them.
func (s *stored) size() int {
	n := len(s.body) + 512
	for _, raw := range s.input {
		n += len(raw)
	}
	for _, t := range s.turns {
		n += len(t.Content) + len(t.Reasoning) + 256
		for _, c := range t.Calls {
			n += len(c.Arguments) + len(c.Name) + 128
		}
	}
	return n
}

// store keeps responses in memory, up to a number, a size and an age. The least recently used ones are dropped
// first. A tenant has at most half of the number and of the size, so that one cannot evict what all the others have.
type store struct {
	count, bytes int
	age          time.Duration
	now          func() time.Time

	mu     sync.Mutex
	used   int
	tenant map[string]share
	byKey  map[key]*list.Element
	recent *list.List // of *entry, the most recently used first
}

// share is what a tenant has of the store.
type share struct{ count, bytes int }

type entry struct {
	key key
	*stored
}

func newStore(count, bytes int, age time.Duration, now func() time.Time) *store {
	return &store{count: count, bytes: bytes, age: age, now: now, tenant: map[string]share{},
		byKey: map[key]*list.Element{}, recent: list.New()}
}

// put stores a response. One that is larger than a tenant's room is not stored.
func (s *store) put(k key, v *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.bytes, v.expiry = v.size(), s.now().Add(s.age)
	if v.bytes > s.bytes/2 {
		return
	}
	s.drop(s.byKey[k])
	s.byKey[k] = s.recent.PushFront(&entry{k, v})
	s.used += v.bytes
	s.add(k.tenant, 1, v.bytes)
	for at := s.recent.Back(); at != nil && s.greedy(k.tenant); {
		before := at.Prev()
		if at.Value.(*entry).key.tenant == k.tenant {
			s.drop(at)
		}
		at = before
	}
	for at := s.recent.Back(); at != nil; at = s.recent.Back() {
		expired := s.now().After(at.Value.(*entry).expiry)
		if !expired && s.used <= s.bytes && len(s.byKey) <= s.count {
			return
		}
		s.drop(at)
	}
}

// greedy reports whether a tenant has more than half of the room. The caller holds mu.
func (s *store) greedy(tenant string) bool {
	own := s.tenant[tenant]
	return own.bytes > s.bytes/2 || own.count > (s.count+1)/2
}

// add changes what a tenant has. The caller holds mu.
func (s *store) add(tenant string, count, bytes int) {
	next := share{s.tenant[tenant].count + count, s.tenant[tenant].bytes + bytes}
	if s.tenant[tenant] = next; next.count == 0 {
		delete(s.tenant, tenant)
	}
}

// drop removes an element; nil is none. The caller holds mu.
func (s *store) drop(at *list.Element) {
	if at == nil {
		return
	}
	e := s.recent.Remove(at).(*entry)
	delete(s.byKey, e.key)
	s.used -= e.bytes
	s.add(e.key.tenant, -1, -e.bytes)
}

// get returns a response, or nil.
func (s *store) get(k key) *stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.byKey[k]
	if at == nil {
		return nil
	}
	e := at.Value.(*entry)
	if s.now().After(e.expiry) {
		s.drop(at)
		return nil
	}
	s.recent.MoveToFront(at)
	return e.stored
}

// remove drops a response and reports whether there was one.
func (s *store) remove(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.byKey[k]
	s.drop(at)
	return at != nil
}

func unknown(id string) error {
	return fault.New(fault.NotFound, "find response %q: it is not stored here, or no longer", id).
		Because("RESPONSE_NOT_FOUND")
}
