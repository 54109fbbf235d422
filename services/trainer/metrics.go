package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

// line is one step in metrics.jsonl.
type line struct {
	Step            uint64  `json:"step"`
	Loss            float64 `json:"loss"`                      // nats per token
	Validation      float64 `json:"validation_loss,omitempty"` // if measured at this step
	Norm            float64 `json:"gradient_norm"`             // before clipping
	Rate            float64 `json:"learning_rate"`
	StepMS          float64 `json:"step_ms"`
	TokensPerSecond float64 `json:"tokens_per_second"`
}

// metricsFile is the file metrics.jsonl of a run.
type metricsFile struct{ f *os.File }

// openMetrics opens the file and removes the lines of steps after the given one, because a
// resumed run repeats these steps.
func openMetrics(path string, upTo uint64) (*metricsFile, error) {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = weights.WriteFile(path, func(w io.Writer) error {
		for text := range bytes.Lines(old) {
			var l line
			if json.Unmarshal(text, &l) != nil || l.Step > upTo {
				continue
			}
			if _, err := w.Write(append(bytes.TrimRight(text, "\n"), '\n')); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	return &metricsFile{f}, nil
}

func (m *metricsFile) write(l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = m.f.Write(append(text, '\n'))
	return err
}

// Close closes the file.
func (m *metricsFile) Close() error { return m.f.Close() }
