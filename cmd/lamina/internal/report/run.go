package report

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of what is read of a run.
const (
	maxFile    = 256 << 20 // bytes of a file
	maxLine    = 1 << 20   // bytes of a line
	maxSamples = 200       // sample texts in a report: the last ones
	maxEvents  = 1000      // events in a report: the last ones
)

// Run is what a run's folder says.
type Run struct {
	Name     string
	Steps    []Step            // in ascending order of step
	Manifest map[string]string // its fields as paths, such as "model.layers", with their values
	Digest   string            // SHA-256 of the manifest
	Final    map[string]string // training.json of a run that is done
	Samples  []Sample
	Events   []Event // membership changes, quarantines and spikes
}

// Event is something that has happened besides the steps.
type Event struct {
	Step    uint64  `json:"step"`
	Time    string  `json:"time"`
	Kind    string  `json:"kind"`
	Replica *uint32 `json:"replica"`
	Address string  `json:"address"`
	Message string  `json:"message"`
}

// Step is a step of a run: the fields of its line in metrics.jsonl that are numbers.
type Step map[string]float64

// Sample is a text that the model has continued.
type Sample struct {
	Step   uint64 `json:"step"`
	Prompt string `json:"prompt"`
	Text   string `json:"text"`
}

// Read reads a run's folder. Errors name the file and the line. An incomplete last line is left out, since the
// run may be writing it.
func Read(dir string) (*Run, error) {
	manifest, err := readFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	r := &Run{Manifest: map[string]string{}, Final: map[string]string{}}
	sum := sha256.Sum256(manifest)
	r.Digest = hex.EncodeToString(sum[:])
	if err := flatten(manifest, r.Manifest); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read %s", filepath.Join(dir, "manifest.json"))
	}
	if r.Name = r.Manifest["name"]; r.Name == "" {
		r.Name = filepath.Base(dir)
	}
	if err := r.readSteps(filepath.Join(dir, "metrics.jsonl")); err != nil {
		return nil, err
	}
	if len(r.Steps) == 0 {
		return nil, fault.New(fault.NotFound, "read %s: the run has no steps yet", dir)
	}
	if err := r.readSamples(filepath.Join(dir, "samples.jsonl")); err != nil {
		return nil, err
	}
	if err := r.readEvents(filepath.Join(dir, "events.jsonl")); err != nil {
		return nil, err
	}
	final, err := readFile(filepath.Join(dir, "model", "training.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = flatten(final, r.Final)
	}
	if err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read %s", filepath.Join(dir, "model", "training.json"))
	}
	return r, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(raw) > maxFile {
		err = fault.New(fault.Invalid, "read %s: more than %d bytes", path, maxFile)
	}
	return raw, err
}

// lines calls each with the lines of a file that may be absent.
func lines(path string, each func(line []byte) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return readLines(f, path, each)
}

func readLines(in io.Reader, name string, each func(line []byte) error) error {
	r := bufio.NewReaderSize(io.LimitReader(in, maxFile), maxLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) { // what is left has no end
			return nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return fault.New(fault.DataLoss, "read %s: line %d has more than %d bytes", name, n, maxLine)
		}
		if err == nil && len(bytes.TrimSpace(line)) > 0 {
			err = each(line)
		}
		if err != nil {
			return fault.Wrap(fault.DataLoss, err, "read %s: line %d", name, n)
		}
	}
}

// readSteps reads metrics.jsonl. Of two lines of one step, the later one counts.
func (r *Run) readSteps(path string) error {
	steps := map[float64]Step{}
	err := lines(path, func(line []byte) error {
		s, err := parseStep(line)
		if err == nil {
			steps[s["step"]] = s
		}
		return err
	})
	for _, at := range slices.Sorted(maps.Keys(steps)) {
		r.Steps = append(r.Steps, steps[at])
	}
	return err
}

func parseStep(line []byte) (Step, error) {
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return nil, err
	}
	s := Step{}
	for name, v := range fields {
		if n, ok := v.(float64); ok {
			s[name] = n
		}
	}
	if at, ok := s["step"]; !ok || at < 0 || at != math.Trunc(at) || at > 1<<53 {
		return nil, fmt.Errorf("field step: want a whole number, got %v", fields["step"])
	}
	return s, nil
}

func (r *Run) readSamples(path string) error {
	return lines(path, func(line []byte) error {
		var s Sample
		if err := json.Unmarshal(line, &s); err != nil {
			return err
		}
		if r.Samples = append(r.Samples, s); len(r.Samples) > maxSamples {
			r.Samples = r.Samples[1:]
		}
		return nil
	})
}

func (r *Run) readEvents(path string) error {
	return lines(path, func(line []byte) error {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		if r.Events = append(r.Events, e); len(r.Events) > maxEvents {
			r.Events = r.Events[1:]
		}
		return nil
	})
}

// flatten adds the values of a JSON object by their paths.
func flatten(text []byte, to map[string]string) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return err
	}
	flattenValue("", v, to)
	return nil
}

func flattenValue(path string, v any, to map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			if path != "" {
				name = path + "." + name
			}
			flattenValue(name, field, to)
		}
	case []any:
		for i, field := range v {
			flattenValue(fmt.Sprintf("%s[%d]", path, i), field, to)
		}
	case nil:
		to[path] = "null"
	default:
		to[path] = fmt.Sprint(v)
	}
}
