package pull

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// Listing is a model at its source.
type Listing struct {
	Name, Source, Revision string
	Digest                 string // of the model, if the source tells it
	Files                  []File
}

// Source is where a model comes from.
type Source interface {
	// List finds out which files there are.
	List(ctx context.Context) (*Listing, error)
	// Read opens bytes [from, to) of a file that was listed.
	Read(ctx context.Context, f File, from, to int64) (io.ReadCloser, error)
}

// Options configure a pull.
type Options struct {
	Name    string // of the model in the store; empty for that of the source
	Replace bool   // whether a model of this name that came from elsewhere is replaced
	MaxSize int64  // bytes of a model; 0 for store.MaxModel
	Workers int    // reads at the same time; 0 for 4
	Backoff time.Duration
	// Progress is called now and then, and at the end, with the bytes that are there. It is not called concurrently.
	Progress func(Progress)
}

// Progress is the state of a pull.
type Progress struct {
	Name        string
	Done, Total int64 // bytes
	Had         int64 // those of Done that were in the store before
	File        string
}

const (
	defaultWorkers = 4
	defaultBackoff = 250 * time.Millisecond // before the first retry
	maxBackoff     = 10 * time.Second
	tries          = 6                      // in a row without a new chunk
	runBytes       = 32 << 20               // of one read
	progressTick   = 200 * time.Millisecond // between two calls of Progress
)

// Result says what a pull did.
type Result struct {
	Manifest *store.Manifest
	Fetched  int64 // bytes that came from the source
}

// Pull fetches a model into a store. Bytes that the store has are not fetched.
func Pull(ctx context.Context, s *store.Store, source Source, o Options) (*Result, error) {
	l, err := source.List(ctx)
	if err != nil {
		return nil, err
	}
	l.Name = cmp.Or(o.Name, l.Name)
	if err := check(l, o); err != nil {
		return nil, err
	}
	replace, err := replaces(s, l, o)
	if err != nil {
		return nil, err
	}
	p := &puller{s: s, source: source, list: l, o: o}
	defer p.close()
	if err := p.begin(ctx); err != nil {
		return nil, err
	}
	if err := s.Reserve(ctx, p.total-p.done.Load(), l.Name); err != nil {
		return nil, err
	}
	if err := p.fetchAll(ctx); err != nil {
		return nil, err
	}
	m, err := s.Commit(ctx, store.Draft{Name: l.Name, Source: l.Source, Revision: l.Revision, Digest: l.Digest,
		Replace: replace, Files: p.drafts})
	if err != nil {
		return nil, err
	}
	p.report("", true)
	return &Result{Manifest: m, Fetched: p.fetched.Load()}, nil
}

// check checks a listing against the limits, before anything is fetched.
func check(l *Listing, o Options) error {
	if err := store.CheckName(l.Name); err != nil {
		return err
	}
	if len(l.Files) == 0 || len(l.Files) > store.MaxFiles {
		return fault.New(fault.DataLoss, "pull %s: want 1 to %d files, got %d", l.Source, store.MaxFiles, len(l.Files))
	}
	total, most := int64(0), cmp.Or(o.MaxSize, store.MaxModel)
	for _, f := range l.Files {
		if f.Size < 0 || f.Size > store.MaxFile {
			return fault.New(fault.DataLoss, "pull %s: %.80s: want at most %d bytes, got %d", l.Source, f.Path,
				int64(store.MaxFile), f.Size)
		}
		if total += f.Size; total > most {
			return fault.New(fault.Exhausted, "pull %s: it has more than the %d bytes that are allowed (--max-size)",
				l.Source, most)
		}
	}
	return nil
}

// replaces reports whether a model of the same name is to be replaced: it came from the same source, or the caller
// has said so. The error is a *store.TakenError if it is not to be replaced.
func replaces(s *store.Store, l *Listing, o Options) (bool, error) {
	before, err := s.Model(l.Name)
	switch {
	case fault.CodeOf(err) == fault.NotFound || fault.CodeOf(err) == fault.DataLoss:
		return false, nil
	case err != nil:
		return false, err
	case o.Replace || before.Source == l.Source:
		return true, nil
	}
	return false, &store.TakenError{Name: l.Name, Source: before.Source}
}

// puller is a pull in progress.
type puller struct {
	s      *store.Store
	source Source
	list   *Listing
	o      Options
	files  []*store.Partial // in the order of begin; files of the same content have one
	remote []File           // of each
	drafts []store.DraftFile
	total  int64

	done, fetched atomic.Int64
	had           int64
	mu            sync.Mutex // of reports
	reported      time.Time
}

func (p *puller) close() {
	for _, f := range p.files {
		_ = f.Close()
	}
}

func want(f File) store.Want {
	return store.Want{
		Path:      f.Path,
		Size:      f.Size,
		SHA256:    f.SHA256,
		Origin:    f.origin,
		ChunkSize: f.ChunkSize,
		Sums:      f.Sums,
		Check:     true,
	}
}

// begin opens all files. Every pull does so in the same order, so that two of them never wait for each other.
func (p *puller) begin(ctx context.Context) error {
	files := slices.Clone(p.list.Files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(p.s.Key(want(a)), p.s.Key(want(b))) })
	opened := map[string]*store.Partial{}
	for _, f := range files {
		key := p.s.Key(want(f))
		partial := opened[key]
		if partial == nil {
			var err error
			if partial, err = p.s.Begin(ctx, want(f)); err != nil {
				return err
			}
			opened[key] = partial
			p.files, p.remote = append(p.files, partial), append(p.remote, f)
			p.total += f.Size
			p.done.Add(partial.Have())
		}
		p.drafts = append(p.drafts, store.DraftFile{Path: f.Path, File: partial})
	}
	p.had = p.done.Load()
	return nil
}

// fetchAll fetches what is missing, file by file in the order of the listing.
func (p *puller) fetchAll(ctx context.Context) error {
	for i, f := range p.files {
		const again = 2 // a file whose digest is wrong is fetched once more
		for try := 1; ; try++ {
			if err := p.fetch(ctx, f, p.remote[i]); err != nil {
				return err
			}
			_, err := f.Finish(ctx)
			if err == nil {
				break
			}
			p.done.Add(f.Have() - p.remote[i].Size)
			if fault.CodeOf(err) != fault.DataLoss || try == again {
				return fmt.Errorf("pull %s: %w", p.list.Source, err)
			}
		}
	}
	return nil
}

// fetch fetches the missing chunks of a file.
func (p *puller) fetch(ctx context.Context, f *store.Partial, remote File) error {
	if f.Whole() {
		return nil
	}
	workers := cmp.Or(p.o.Workers, defaultWorkers)
	spans := f.Missing(int(max(1, runBytes/f.ChunkSize())))
	if remote.whole { // one read for all
		workers, spans = 1, []store.Span{{Lo: 0, Hi: spans[len(spans)-1].Hi}}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, span := range spans {
		group.Go(func() error { return p.fetchSpan(ctx, f, remote, span) })
	}
	return group.Wait()
}

// fetchSpan fetches chunks of a file, and tries again where it was cut off.
func (p *puller) fetchSpan(ctx context.Context, f *store.Partial, remote File, span store.Span) error {
	fails := 0
	wait := cmp.Or(p.o.Backoff, defaultBackoff)
	for span.Lo < span.Hi {
		n, err := p.readSpan(ctx, f, remote, span)
		if err == nil {
			return nil
		}
		if n > 0 {
			fails, wait = 0, cmp.Or(p.o.Backoff, defaultBackoff)
			if !remote.whole {
				span.Lo += n
			}
		}
		if fails++; !passing(err) || ctx.Err() != nil || fails >= tries {
			return err
		}
		pause := wait/2 + rand.N(wait)
		var known *fault.Error
		if errors.As(err, &known) {
			pause = max(pause, known.RetryAfter)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		wait = min(2*wait, maxBackoff)
	}
	return nil
}

// passing reports whether another try may help.
func passing(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.DataLoss:
		return true
	}
	return false
}

// readSpan reads chunks with one request and returns how many of them it has stored.
func (p *puller) readSpan(ctx context.Context, f *store.Partial, remote File, span store.Span) (n int, err error) {
	chunk := f.ChunkSize()
	from, to := int64(span.Lo)*chunk, int64(span.Hi-1)*chunk+f.ChunkLen(span.Hi-1)
	body, err := p.source.Read(ctx, remote, from, to)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	in := bufio.NewReader(body)
	buf := make([]byte, f.ChunkLen(span.Lo))
	for i := span.Lo; i < span.Hi; i++ {
		b := buf[:f.ChunkLen(i)]
		if _, err := io.ReadFull(in, b); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || fault.CodeOf(err) == fault.Internal {
				err = fault.Wrap(fault.Unavailable, err, "read %s from %s", remote.Path, p.list.Source)
			}
			return n, err
		}
		fresh, err := f.WriteChunk(i, b)
		if err != nil {
			return n, fmt.Errorf("read %s from %s: %w", remote.Path, p.list.Source, err)
		}
		n++
		p.fetched.Add(int64(len(b)))
		if fresh {
			p.done.Add(int64(len(b)))
		}
		p.report(remote.Path, false)
	}
	return n, nil
}

// report calls Progress, unless it was called a moment ago.
func (p *puller) report(file string, last bool) {
	if p.o.Progress == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !last && now.Sub(p.reported) < progressTick {
		return
	}
	p.reported = now
	p.o.Progress(Progress{Name: p.list.Name, Done: p.done.Load(), Total: p.total, Had: p.had, File: file})
}
