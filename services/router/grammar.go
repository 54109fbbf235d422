package router

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

// maxVerdicts is the number of grammars for which a router remembers whether they compile.
const maxVerdicts = 1024

// grammarChecker compiles grammars before their requests are admitted, with the code and
// the limits of the sampler. A compilation takes at most a quarter of a second of CPU;
// only a few run at once, so that a flood of hostile grammars leaves cores to the others.
type grammarChecker struct {
	slots chan struct{}

	mu       sync.Mutex
	verdicts map[[sha256.Size]byte]error
}

func newGrammarChecker() *grammarChecker {
	return &grammarChecker{
		slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), verdicts: map[[sha256.Size]byte]error{},
	}
}

// check returns the error with which a sampler would refuse a grammar, or nil. The error names
// field.
func (c *grammarChecker) check(ctx context.Context, field string, g *samplerv1.Grammar) error {
	if g == nil {
		return nil
	}
	var kind [4]byte
	binary.LittleEndian.PutUint32(kind[:], uint32(g.GetKind()))
	key := sha256.Sum256(append(append(kind[:], field...), "\x00"+g.GetSource()...))
	c.mu.Lock()
	err, known := c.verdicts[key]
	c.mu.Unlock()
	if known {
		return err
	}
	err = c.bounded(ctx, func() error {
		_, err := samplerules.Compile(field, g, nil)
		return err
	})
	if ctx.Err() != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.verdicts) >= maxVerdicts {
		clear(c.verdicts)
	}
	c.verdicts[key] = err
	return err
}

// bounded runs CPU-heavy work when a slot is free. A panic becomes an error of the request that
// sent the grammar.
func (c *grammarChecker) bounded(ctx context.Context, work func() error) (err error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() {
		<-c.slots
		if r := recover(); r != nil {
			err = fault.New(fault.Internal, "compile grammar: %v", r)
		}
	}()
	return work()
}
