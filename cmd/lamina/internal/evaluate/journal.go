package evaluate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/eval"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The files of a folder of results.
const (
	SamplesFile = "samples.jsonl" // the settings, then a line for each doc, in the order in which they ended
	ResultsFile = "results.json"
)

// Settings are everything that a result depends on.
type Settings struct {
	Task        string  `json:"task"`
	Kind        string  `json:"kind"`
	Data        string  `json:"data_sha256"`
	Model       string  `json:"model"`
	Digest      string  `json:"digest"`
	Adapter     string  `json:"adapter,omitempty"` // its digest
	Docs        int     `json:"docs"`
	Shots       int     `json:"shots,omitempty"`
	ShotsData   string  `json:"shots_sha256,omitempty"`
	Context     int     `json:"context,omitempty"`
	MaxTokens   int     `json:"max_tokens,omitempty"`
	Temperature float64 `json:"temperature,omitempty"`
	Chat        bool    `json:"chat,omitempty"`
	Grammar     string  `json:"grammar,omitempty"`
	Seed        uint64  `json:"seed"`
}

// Sample is the result of one doc.
type Sample struct {
	Index  int        `json:"index"`
	Scores []float64  `json:"scores,omitempty"` // log-likelihoods of the choices, or of the text
	Greedy []bool     `json:"greedy,omitempty"` // of the choices: every id is the most likely one
	Text   *string    `json:"text,omitempty"`   // that was generated
	Tokens int        `json:"tokens,omitempty"`
	Parts  eval.Parts `json:"parts"`
}

// Journal keeps samples in a file, so that a run that was stopped goes on where it was.
type Journal struct {
	mu   sync.Mutex
	file *os.File // nil: samples are kept in memory only
	done map[int]Sample
}

// OpenJournal opens the journal of a folder, which is made if it is missing. An empty dir keeps samples in memory.
// A line that was not written to its end is dropped. The error is a FailedPrecondition fault if the folder has
// results of other settings.
func OpenJournal(dir string, s Settings) (*Journal, error) {
	j := &Journal{done: map[int]Sample{}}
	if dir == "" {
		return j, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, SamplesFile)
	want, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	if whole > 0 {
		header, rest, _ := bytes.Cut(text[:whole], []byte("\n"))
		if !bytes.Equal(header, want) {
			return nil, fault.New(fault.FailedPrecondition,
				"continue %s: it has results of other settings (%.200s); use another folder", path, header)
		}
		if err := j.read(rest); err != nil {
			return nil, fault.Wrap(fault.DataLoss, err, "read %s", path)
		}
	}
	if j.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	err = j.file.Truncate(int64(whole))
	if err == nil {
		_, err = j.file.Seek(0, io.SeekEnd)
	}
	if err == nil && whole == 0 {
		_, err = j.file.Write(append(want, '\n'))
	}
	if err != nil {
		return nil, errors.Join(err, j.file.Close())
	}
	return j, nil
}

// read reads the lines of samples.
func (j *Journal) read(lines []byte) error {
	in := bufio.NewScanner(bytes.NewReader(lines))
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var s Sample
		if err := json.Unmarshal(in.Bytes(), &s); err != nil {
			return err
		}
		j.done[s.Index] = s
	}
	return in.Err()
}

// Has reports whether the journal has the sample of a doc.
func (j *Journal) Has(index int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, ok := j.done[index]
	return ok
}

// Add adds a sample.
func (j *Journal) Add(s Sample) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done[s.Index] = s
	if j.file == nil {
		return nil
	}
	_, err = j.file.Write(append(line, '\n'))
	return err
}

// Len returns the number of samples.
func (j *Journal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.done)
}

// Parts returns the parts of docs 0 to n-1, all of which the journal has.
func (j *Journal) Parts(n int) []eval.Parts {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]eval.Parts, n)
	for i := range out {
		out[i] = j.done[i].Parts
	}
	return out
}

// Close closes the file.
func (j *Journal) Close() error {
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}
