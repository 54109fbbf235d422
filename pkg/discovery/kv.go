package discovery

import (
	"context"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// MaxValue is the largest value of a KV, in bytes. It is that of Consul.
const MaxValue = 512 << 10

// Entry is the value of a key.
type Entry struct {
	Value []byte
	// Version changes with every write of the key, and never returns to an earlier number. It is 0 for a key
	// that was never written.
	Version uint64
}

// KV holds small documents that all members share, such as the plan of the placer. It is no database: a
// registry that is restarted may have forgotten everything.
type KV interface {
	// Get returns the entry of a key. Its version is 0 if there is none.
	Get(ctx context.Context, key string) (Entry, error)
	// Swap writes a value if the key still has the given version, which is 0 for a key that has no value. It
	// returns Aborted if it has another one. After any other error the value may have been written.
	Swap(ctx context.Context, key string, value []byte, version uint64) error
	// Follow sends the entry of a key, now and after each change. A slow reader only receives the newest one.
	// The channel is closed when ctx ends and not earlier: while the registry cannot be reached, the last entry
	// stays valid.
	Follow(ctx context.Context, key string) (<-chan Entry, error)
}

// Board holds documents that members show each other. A document is of one member and goes away with it, which the
// values of a KV do not.
type Board interface {
	// Post puts up a document, or replaces what the member has put up under the key. It goes away when its member has
	// not posted for a while (Consul: 10 to 20 s), so a member posts at least every PostEvery, changed or not. It
	// returns Aborted if another member's document has the key. One goroutine at a time posts and withdraws a key.
	Post(ctx context.Context, key string, value []byte) error
	// Withdraw takes down what the member has put up under a key, if anything.
	Withdraw(ctx context.Context, key string) error
	// Posts sends all documents whose keys begin with a prefix, by their keys: now, and after changes, of which it puts
	// together those that come within a fraction of a second. A slow reader only receives the newest state. The channel
	// is closed when ctx ends and not earlier: while the registry cannot be reached, the last state stays valid.
	Posts(ctx context.Context, prefix string) (<-chan map[string][]byte, error)
}

// PostEvery is the longest time between two posts of a document that is to stay.
const PostEvery = 3 * time.Second

// CheckEntry returns an error if a key or value is not one that every KV accepts.
func CheckEntry(key string, value []byte) error {
	const most = 256
	if key == "" || len(key) > most || key[0] == '/' {
		return fault.Field("key", "want 1 to %d bytes and no slash in front, got %q", most, key)
	}
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' || c == '?' || c == '#' || c == '%' {
			return fault.Field("key", "want printable ASCII without space, ?, # and %%, got %q", key)
		}
	}
	if len(value) > MaxValue {
		return fault.Field("value", "write %s: want at most %d bytes, got %d", key, MaxValue, len(value))
	}
	return nil
}

// Member is an instance as the registry knows it, healthy or not.
type Member struct {
	Instance
	Healthy bool
	Why     string // what the failing check says
}

// Directory lists the instances of all services and removes those that are left over.
type Directory interface {
	// Members returns all instances, sorted by service and id, those that fail their checks too.
	Members(ctx context.Context) ([]Member, error)
	// Remove removes an instance. It returns NotFound if there is none. An instance whose service still runs
	// comes back.
	Remove(ctx context.Context, id string) error
}

// Succeeds reports whether a new instance has taken the place of an old one: both are shards at one address.
// A shard has state, so an address belongs to one process, and the other entry is that of a process before. Other
// services may share the address of a load balancer.
func (i Instance) Succeeds(old Instance) bool {
	return i.Service == "shard" && old.Service == "shard" && i.Addr == old.Addr && i.ID != old.ID
}
