package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// storeDir returns the folder of the store: what --store says, or a folder in the user's cache.
func storeDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fault.Field("store", "name a folder for models with --store or LAMINA_STORE: %v", err)
	}
	return filepath.Join(cache, "lamina", "models"), nil
}

// openStore opens the store. With must it has to exist already; the error is fs.ErrNotExist if it does not.
func openStore(flag string, must bool, o store.Options) (*store.Store, error) {
	dir, err := storeDir(flag)
	if err != nil {
		return nil, err
	}
	if must {
		if _, err := os.Stat(filepath.Join(dir, "models")); err != nil {
			return nil, err
		}
	}
	return store.Open(dir, o)
}

// modelType is the tag of flags and arguments that name a model: type:"model".
const modelType = "model"

// resolveModels replaces names of models in the flags and arguments of a command by the folders of the store. A file or
// folder of the same name comes first. With --router, flags may name models of that router and stay as they are. The
// models are kept in the store until the returned function is called.
func resolveModels(e *verb.Env, parsed *kong.Context) (release func(), err error) {
	var leases []*store.Lease
	release = func() {
		for _, l := range leases {
			_ = l.Close()
		}
	}
	var values []*kong.Value
	for _, p := range parsed.Path {
		if p.Positional != nil {
			values = append(values, p.Positional)
		}
	}
	for _, f := range parsed.Flags() {
		values = append(values, f.Value)
		if f.Name == "router" && f.Target.Kind() == reflect.String && f.Target.String() != "" {
			return release, nil
		}
	}
	for _, value := range values {
		if value.Tag == nil || value.Tag.Type != modelType {
			continue
		}
		for _, v := range flagTexts(value.Target) {
			lease, err := acquireModel(e, v.String())
			if err != nil {
				return release, err
			}
			if lease != nil {
				leases = append(leases, lease)
				v.SetString(lease.Path)
			}
		}
	}
	return release, nil
}

// flagTexts returns the texts of a flag, which may have several.
func flagTexts(v reflect.Value) []reflect.Value {
	switch {
	case v.Kind() == reflect.String:
		return []reflect.Value{v}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		var out []reflect.Value
		for i := range v.Len() {
			out = append(out, v.Index(i))
		}
		return out
	}
	return nil
}

// acquireModel finds a model of the store, or returns nil for a path.
func acquireModel(e *verb.Env, text string) (*store.Lease, error) {
	if text == "" || store.CheckName(text) != nil {
		return nil, nil
	}
	if _, err := os.Stat(text); err == nil {
		return nil, nil
	}
	missing := func() error {
		return fault.Wrap(
			fault.NotFound,
			fs.ErrNotExist,
			"open model %s: it is no file or folder here, and the store has "+
				"no model of this name (lamina models lists them, lamina pull fetches one)",
			text,
		)
	}
	s, err := openStore(e.Store, true, store.Options{})
	if err != nil {
		return nil, missing() // there is no store
	}
	defer s.Close()
	lease, err := s.Acquire(e.Ctx, text)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, missing()
	}
	return lease, err
}

// storedModel is a model of the store, as JSON.
type storedModel struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"`
	Bytes    int64     `json:"bytes"`
	Files    int       `json:"files"`
	Source   string    `json:"source,omitempty"`
	Revision string    `json:"revision,omitempty"`
	LastUsed time.Time `json:"last_used"`
	InUse    bool      `json:"in_use"`
	Path     string    `json:"path"`
	Damaged  []string  `json:"damaged,omitempty"` // by --verify
}

// storedModels is what lamina models prints, as JSON.
type storedModels struct {
	Dir    string        `json:"dir"`
	Bytes  int64         `json:"bytes"`
	Models []storedModel `json:"models"`
}

// stored lists the models of the store.
func (c *modelsCmd) stored(e *verb.Env) error {
	dir, err := storeDir(e.Store)
	if err != nil {
		return err
	}
	out := storedModels{Dir: dir, Models: []storedModel{}}
	s, err := openStore(e.Store, true, store.Options{})
	var damaged error
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		defer s.Close()
		if damaged, err = c.fill(e, s, &out); err != nil {
			return err
		}
	}
	if c.Format == "json" {
		err = verb.PrintJSON(e, out)
	} else {
		err = out.print(e)
	}
	return errors.Join(err, damaged)
}

// fill reads the store. damaged says what is wrong with models.
func (c *modelsCmd) fill(e *verb.Env, s *store.Store, out *storedModels) (damaged, err error) {
	models, damaged := s.Models()
	if damaged != nil && fault.CodeOf(damaged) != fault.DataLoss {
		return nil, damaged
	}
	if out.Bytes, err = s.Usage(); err != nil {
		return nil, err
	}
	for _, m := range models {
		row := storedModel{Name: m.Name, Digest: m.Digest, Bytes: m.Size(), Files: len(m.Files), Source: m.Source,
			Revision: m.Revision, LastUsed: m.LastUsed.UTC().Truncate(time.Second), InUse: m.InUse, Path: m.Path}
		if c.Verify {
			for _, f := range m.Files {
				bad, err := s.Check(e.Ctx, f)
				switch {
				case len(bad) > 0:
					err = fault.New(
						fault.DataLoss,
						"verify model %s: %s: %d of %d chunks are damaged, the first is chunk %d: "+
							"lamina pull fetches them again",
						m.Name,
						f.Path,
						len(bad),
						f.NumChunks(),
						bad[0],
					)
				case err != nil && e.Ctx.Err() != nil:
					return nil, err
				case err != nil:
					err = fmt.Errorf("verify model %s: %w", m.Name, err)
				default:
					continue
				}
				row.Damaged = append(row.Damaged, f.Path)
				damaged = errors.Join(damaged, err)
			}
		}
		out.Models = append(out.Models, row)
	}
	return damaged, nil
}

func (m *storedModels) print(e *verb.Env) error {
	if len(m.Models) == 0 {
		_, err := fmt.Fprintf(
			e.Stdout,
			"no models in %s; lamina pull fetches one, and lamina models --router ADDRESS lists "+
				"those that a router serves\n",
			m.Dir,
		)
		return err
	}
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MODEL\tSIZE\tFILES\tDIGEST\tLAST USED\tSOURCE")
	for _, r := range m.Models {
		used := r.LastUsed.Local().Format("2006-01-02 15:04")
		if r.InUse {
			used = "in use"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%.19s\t%s\t%s\n", r.Name, bytesText(r.Bytes), r.Files, r.Digest, used, r.Source)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.Stdout, "%s in %s\n", bytesText(m.Bytes), m.Dir)
	return err
}

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	switch f := float64(n); {
	case n < 1e3:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", f/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", f/1e6)
	default:
		return fmt.Sprintf("%.2f GB", f/1e9)
	}
}

type rmCmd struct {
	Names []string `arg:"" name:"name" help:"Model of the store, as lamina models lists it."`
}

// Run removes models from the store.
func (c *rmCmd) Run(e *verb.Env) error {
	s, err := openStore(e.Store, true, store.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "remove model %s: the store is empty", c.Names[0])
	}
	if err != nil {
		return err
	}
	defer s.Close()
	for _, name := range c.Names {
		freed, err := s.Remove(e.Ctx, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.Stdout, "removed %s (%s freed)\n", name, bytesText(freed))
	}
	return nil
}
