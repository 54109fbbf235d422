package router

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
)

// A router that starts finds adapters on shards. Those that its names point to are taken over as they are. Others are
// left of a router that was killed, or belong to another one, whose names nobody else knows. They are unloaded after a
// time: soon if there is no other router. Otherwise much later, since another router that offers the adapter has to
// load it again at its next request. A shard keeps an adapter that is unloaded until its last session has ended, so no
// request fails.

const (
	strangerAlone = time.Minute      // for which an unknown adapter stays while there is no other router
	strangerOther = 30 * time.Minute // the same beside other routers
)

// strangerKey is an adapter at a place.
type strangerKey struct {
	place  place
	digest adapter.Sum
}

// strangerTime returns how long an unknown adapter stays on a shard. The caller holds mu.
func (s *Service) strangerTime() time.Duration {
	if len(s.instances["router"]) > 1 {
		return strangerOther
	}
	return strangerAlone
}

// strangers lists the adapters that a place has to forget because this router has not known them for a time.
func (l *adapters) strangers(pl place, now time.Time, stay time.Duration) (unload []*servedAdapter) {
	for digest := range l.at[pl] {
		key := strangerKey{pl, digest}
		if l.all[adapterKey{pl.digest, digest}] != nil {
			delete(l.strange, key)
			continue
		}
		since, known := l.strange[key]
		if !known {
			since = now
			l.strange[key] = now
		}
		if now.Sub(since) >= stay {
			unload = append(unload, &servedAdapter{model: pl.digest, digest: digest})
		}
	}
	slices.SortFunc(unload, func(a, b *servedAdapter) int { return slices.Compare(a.digest[:], b.digest[:]) })
	return unload
}
