// Package app builds Lamina's processes from plain settings: a whole mesh in one process
// (Start), or one service that finds the others through Consul and NATS (Tokenizer,
// Sampler, Shard, Router, Trainer). Both are made from one table of targets (targets.go),
// each of which is built in one place, whatever the process. Vendors are wired here and
// nowhere else; cmd/lamina passes flags in, and the integration tests literals.
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

// drain is how long HTTP answers may still be written after a stop.
const drain = 5 * time.Second

// Kernels is a kernel set with its end.
type Kernels struct {
	Set     kernel.Set[float32]
	Threads int
}

// opened is an open model.
type opened struct {
	files        *model.Files
	name, digest string
}

// openModel opens a model and works out its name and digest.
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

// loadModel reads what a tokenizer knows of a model. A model without tokenizer files
// gets a vocabulary of ids, which refuses text and says so.
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
