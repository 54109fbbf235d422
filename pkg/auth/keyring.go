package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// pollEvery is the interval at which a keyring looks for changes of its file.
const pollEvery = time.Second

// maxSecret is the length in bytes above which a secret is wrong whatever it is.
const maxSecret = 256

// Keyring finds keys by their secrets. It is safe for concurrent use.
type Keyring struct {
	path   string
	log    *slog.Logger
	now    func() time.Time
	ledger *Ledger // nil if no other router shares the budgets

	loading sync.Mutex // held while the file is read, so that what was read last counts

	mu    sync.Mutex
	found map[[sha256.Size]byte]entry
	byID  map[string]*Key
	meter map[string]*Meter // by id; kept over changes of the file
	seen  os.FileInfo       // of the file that was read last
}

// entry is one secret of a key.
type entry struct {
	key    *Key
	digest [sha256.Size]byte
	until  time.Time // of a secret that was replaced; zero for the current one
}

// KeyringOptions are the options of a keyring.
type KeyringOptions struct {
	Log    *slog.Logger     // nil logs nothing
	Now    func() time.Time // nil is time.Now
	Ledger *Ledger          // shares the budgets with other routers; nil for none
}

func newKeyring(o KeyringOptions) *Keyring {
	r := &Keyring{log: o.Log, now: o.Now, ledger: o.Ledger, meter: map[string]*Meter{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// NewKeyring returns a keyring with the given keys.
func NewKeyring(keys []Key, o KeyringOptions) *Keyring {
	r := newKeyring(o)
	r.set(keys)
	return r
}

// OpenKeyring reads a file of keys. Run watches the file.
func OpenKeyring(path string, o KeyringOptions) (*Keyring, error) {
	r := newKeyring(o)
	r.path = path
	if err := r.load(); err != nil {
		return nil, err
	}
	return r, nil
}

// Run reads the file again whenever it changes, until ctx ends. While the file is missing or damaged, the keys that
// were read last stay, and an error is logged once for each state of the file.
func (r *Keyring) Run(ctx context.Context) error {
	if r.path == "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		info, err := os.Stat(r.path)
		if err == nil && r.same(info) && failed == "" {
			continue
		}
		if err = r.load(); err == nil {
			failed = ""
			continue
		}
		if text := err.Error(); text != failed {
			failed = text
			r.log.Error("read keys: the keys from before stay", "error", err)
		}
	}
}

func (r *Keyring) same(info os.FileInfo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen != nil && os.SameFile(info, r.seen) && info.Size() == r.seen.Size() &&
		info.ModTime().Equal(r.seen.ModTime())
}

func (r *Keyring) load() error {
	r.loading.Lock()
	defer r.loading.Unlock()
	info, err := os.Stat(r.path) // before reading, so that a later change is noticed
	if err != nil {
		return unread(err)
	}
	keys, err := ReadKeys(r.path)
	if err != nil {
		return err
	}
	r.set(keys)
	r.mu.Lock()
	r.seen = info
	r.mu.Unlock()
	return nil
}

func (r *Keyring) set(keys []Key) {
	found, known := map[[sha256.Size]byte]entry{}, map[string]*Key{}
	add := func(k *Key, digest string, until time.Time) {
		e := entry{key: k, until: until}
		raw, err := hex.DecodeString(digest)
		if err != nil || copy(e.digest[:], raw) != sha256.Size { // Check has refused it
			return
		}
		found[e.digest] = e
	}
	for i := range keys {
		k := keys[i]
		known[k.ID] = &k
		if k.Old != nil {
			add(&k, k.Old.Digest, k.Old.Until)
		}
		add(&k, k.Digest, time.Time{})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found, r.byID = found, known
	for id := range r.meter {
		if known[id] == nil {
			delete(r.meter, id)
			r.ledger.forget("key:" + id)
		}
	}
	for _, e := range found {
		if m := r.meter[e.key.ID]; m != nil {
			m.limit(e.key.Requests, e.key.Tokens)
		} else {
			r.meter[e.key.ID] = r.ledger.meter("key:"+e.key.ID, e.key.Requests, e.key.Tokens, r.now)
		}
	}
}

// errKey is the one answer to every secret that is not valid, so that it tells nothing about the stored keys.
func errKey() error {
	return fault.New(fault.Unauthenticated, "authenticate: send a valid API key").Because("INVALID_API_KEY")
}

// Authenticate returns the owner of a secret. There is one error for all secrets that are wrong, expired, revoked
// or replaced. The secret is compared by its SHA-256 digest, so the time tells nothing about the stored keys.
func (r *Keyring) Authenticate(secret string) (*Principal, error) {
	long := len(secret) > maxSecret
	if long {
		secret = secret[:maxSecret]
	}
	digest := sha256.Sum256([]byte(secret))
	k, meter, err := r.find(digest)
	if err != nil || long {
		return nil, errKey()
	}
	return &Principal{ID: "key:" + k.ID, Name: k.Name, Tenant: k.Tenant, Roles: k.Roles, key: k, meter: meter,
		check: func() error {
			_, _, err := r.find(digest)
			return err
		}}, nil
}

// renew returns the owner of a key by the key's id, if the key is valid now.
func (r *Keyring) renew(id string) (*Principal, error) {
	find := func() (*Key, *Meter, error) {
		r.mu.Lock()
		k, meter := r.byID[id], r.meter[id]
		r.mu.Unlock()
		if k == nil || k.State(r.now()) != "active" {
			return nil, nil, errKey()
		}
		return k, meter, nil
	}
	k, meter, err := find()
	if err != nil {
		return nil, err
	}
	return &Principal{ID: "key:" + k.ID, Name: k.Name, Tenant: k.Tenant, Roles: k.Roles, key: k, meter: meter,
		check: func() error {
			_, _, err := find()
			return err
		}}, nil
}

// meterOf returns the budgets of a key by its id; nil for an unknown one.
func (r *Keyring) meterOf(id string) *Meter {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.meter[id]
}

// find returns the key and the budgets of a secret that is valid now, given its digest.
func (r *Keyring) find(digest [sha256.Size]byte) (*Key, *Meter, error) {
	r.mu.Lock()
	e := r.found[digest]
	var meter *Meter
	if e.key != nil {
		meter = r.meter[e.key.ID]
	}
	r.mu.Unlock()
	now := r.now()
	if subtle.ConstantTimeCompare(digest[:], e.digest[:]) != 1 || e.key == nil || e.key.State(now) != "active" ||
		!e.until.IsZero() && !now.Before(e.until) {
		return nil, nil, errKey()
	}
	return e.key, meter, nil
}
