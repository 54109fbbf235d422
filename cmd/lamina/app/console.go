package app

import (
	"context"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/lifecycle"
	"github.com/lamina-mesh/lamina/services/router/console"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// StoreConfig is the store of models that the console shows and pulls into.
type StoreConfig struct {
	Dir      string // its folder; empty for none
	Limit    int64  // in bytes; 0 means no limit
	Endpoint string // server of repositories
}

// consoleOptions returns what the console of this process has, and adds the part that pulls models.
func (p *process) consoleOptions(o httpapi.Options) (console.Options, error) {
	out := console.Options{
		Options: o, Guarded: p.guard != nil,
		Dial: func(addr string) (grpc.ClientConnInterface, error) { return p.dialer.Dial(addr) },
	}
	for name := range p.set.runs.models {
		out.Base = name
	}
	if p.guard != nil && p.guard.Keys != nil {
		out.Keys = p.guard.Keys
	}
	if p.set.store.Dir != "" {
		s, err := openModelStore(p.set.store, p.wanted, p.learn, p.log)
		if err != nil {
			return out, err
		}
		p.closers = append(p.closers, s.store.Close)
		p.add(lifecycle.Part{Name: "pulls", Run: func(ctx context.Context, ready func()) error {
			ready()
			<-ctx.Done()
			s.stop()
			return nil
		}})
		out.Store = s
	}
	return out, nil
}

// learn tells the tokenizer of this process of a model, and the router to ask the tokenizer again.
func (p *process) learn(m tokenizer.Model) error {
	if err := p.tokenizer.Add(m); err != nil {
		return err
	}
	p.router.RenewVocabularies()
	return nil
}
