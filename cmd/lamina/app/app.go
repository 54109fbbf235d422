// Package app builds the processes of Lamina from plain settings: a mesh in one process
// (Start), or one service that finds the others through Consul and NATS (Tokenizer, Sampler, Shard,
// Router, Trainer). Both kinds are built from one table of targets (targets.go), so that a service is
// set up in the same way in every process. Only this package refers to vendors. cmd/lamina calls it
// with flags, and the integration tests call it with literals.
package app

import (
	"os"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

const (
	// drain is how long HTTP requests may still run after a stop, once the router has been drained.
	drain = 5 * time.Second
	// drainDefault is the default of RouterConfig.Drain.
	drainDefault = 20 * time.Second
	// meshDrain is the same for a mesh, which a user stops and waits for.
	meshDrain = 5 * time.Second
	// drainMargin is how much longer the server of a router may run than its requests.
	drainMargin = 5 * time.Second
)

// Kernels is a kernel set and its number of threads.
type Kernels struct {
	Set     kernel.Set[float32]
	Threads int
}

// opened is an open model with its name and digest.
type opened struct {
	files        *model.Files
	name, digest string
}

// openModel opens a model and returns its name and digest as well.
func openModel(path, name string) (*model.Files, string, string, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, "", "", fault.Wrap(fault.NotFound, err, "open model")
	}
	files, err := model.Open(path)
	if err != nil {
		return nil, "", "", err
	}
	digest, err := files.Digest()
	if err != nil {
		_ = files.Close()
		return nil, "", "", err
	}
	if name == "" {
		name = files.Name()
	}
	return files, name, digest, nil
}

// loadModel loads the vocabulary, chat template and defaults of a model. A model without tokenizer
// files gets a vocabulary of bare ids, which returns an error for text.
func loadModel(files *model.Files, name, digest string) (tokenizer.Model, error) {
	m, err := tokenizer.Load(files.Path, name, digest)
	if fault.CodeOf(err) == fault.NotFound {
		m = tokenizer.Model{Name: name, Digest: digest}
		if m.Defaults, err = tokenizer.LoadDefaults(files.Path); err != nil {
			return m, err
		}
		m.Vocab, err = vocab.NewIDs(files.Spec.Vocab, files.Spec.BOS, files.Spec.EOS)
	}
	return m, err
}
