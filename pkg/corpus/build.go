package corpus

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Encoder turns texts into ids, without the ids that begin and end a text. Several goroutines use it at once.
type Encoder interface {
	// Encode encodes some texts of at most about a mebibyte together, or one longer text.
	Encode(ctx context.Context, texts []string) ([][]uint32, error)
	// EncodeStream encodes one long text and calls emit with its ids in order.
	EncodeStream(ctx context.Context, text io.Reader, emit func(ids []uint32) error) error
}

// BuildConfig configures Build.
type BuildConfig struct {
	Dir        string // created if it does not exist
	Inputs     []Input
	Vocabulary Vocabulary
	Encoder    Encoder
	Options    Options
	Workers    int            // goroutines that encode, at least 1
	Progress   func(Progress) // called after each document; may be nil
}

// Progress says how far a build has come.
type Progress struct {
	Input, Inputs int // the file that is read
	Documents     int64
	Tokens        int64
	TextBytes     int64
	Skipped       Skipped
	Resumed       bool // some shards were there already
}

const (
	stateName = "build.json"
	batchText = 256 << 10 // bytes of text that are encoded together
	batchDocs = 512
)

// state is the file of an unfinished build. It is written after each shard.
type state struct {
	Inputs     []Input     `json:"inputs"`
	Vocabulary Vocabulary  `json:"vocabulary"`
	Options    Options     `json:"options"`
	Shards     []ShardInfo `json:"shards"`
	Next       position    `json:"next"` // after the last document of the shards
}

// Build writes a folder of token data. If the folder has an unfinished build of the same inputs and options, it
// continues. The bytes of the result depend on the inputs and options only.
func Build(ctx context.Context, c BuildConfig) (*Index, error) {
	b := &builder{cfg: c, state: state{Inputs: c.Inputs, Vocabulary: c.Vocabulary, Options: c.Options}}
	if c.Options.ShardTokens < 1 {
		return nil, fault.Field("shard-tokens", "%d is not positive", c.Options.ShardTokens)
	}
	digest, err := hex.DecodeString(c.Vocabulary.SHA256)
	if err != nil || len(digest) != len(b.digest) {
		return nil, fault.Field("vocabulary", "its digest is %q", c.Vocabulary.SHA256)
	}
	copy(b.digest[:], digest)
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "make folder")
	}
	if done, err := b.resume(); done != nil || err != nil {
		return done, err
	}
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	return b.finish()
}

type builder struct {
	cfg BuildConfig
	state
	digest   [32]byte // of the vocabulary
	progress Progress
	w        *shardWriter // nil between shards
}

func (b *builder) bits() int {
	if b.Vocabulary.Size <= 1<<16 {
		return 16
	}
	return 32
}

// resume reads the state of an unfinished build. It returns the index if the folder is complete.
func (b *builder) resume() (*Index, error) {
	same := func(inputs []Input, v Vocabulary, o Options) error {
		got, err1 := json.Marshal([]any{inputs, v, o})
		want, err2 := json.Marshal([]any{b.Inputs, b.Vocabulary, b.Options})
		if err := errors.Join(err1, err2); err != nil || bytes.Equal(got, want) {
			return err
		}
		return fault.New(
			fault.FailedPrecondition,
			"build %s: it holds token data of other inputs, options or another vocabulary; use another folder",
			b.cfg.Dir,
		)
	}
	text, err := os.ReadFile(filepath.Join(b.cfg.Dir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(b.cfg.Dir, IndexName)); err != nil {
			return nil, nil
		}
		return nil, fault.New(fault.AlreadyExists, "build %s: it holds token data already", b.cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read %s", filepath.Join(b.cfg.Dir, stateName))
	}
	if err := same(s.Inputs, s.Vocabulary, s.Options); err != nil {
		return nil, err
	}
	for _, info := range s.Shards {
		shard, err := OpenShard(filepath.Join(b.cfg.Dir, info.File))
		if err != nil {
			return nil, err
		}
		x := &Index{Vocabulary: s.Vocabulary, Bits: b.bits()}
		if err := errors.Join(shard.matches(x, info), shard.Verify(), shard.Close()); err != nil {
			return nil, err
		}
		b.count(info)
	}
	if s.Next.Input < 0 || s.Next.Input > len(s.Inputs) || s.Next.Offset < 0 {
		return nil, fault.New(fault.DataLoss, "read %s: next: %+v", filepath.Join(b.cfg.Dir, stateName), s.Next)
	}
	b.Shards, b.Next, b.progress.Resumed = s.Shards, s.Next, len(s.Shards) > 0
	return nil, nil
}

func (b *builder) count(info ShardInfo) {
	b.progress.Documents += info.Documents
	b.progress.Tokens += info.Tokens
	b.progress.TextBytes += info.TextBytes
}

// task is the work of one call of the encoder. Its parts are read in the order of tasks, so the shards have the
// documents in the order of the inputs, whichever task is done first.
type task struct {
	documents []*document
	parts     chan part // closed when the task is done
	err       error     // set before parts is closed
}

// part is some ids of a document.
type part struct {
	ids []uint32
	end *document // nil while the document goes on
}

// run encodes all documents. The number of tasks in flight is bounded, and so is the memory.
func (b *builder) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	work, order := make(chan *task), make(chan *task, 2*b.cfg.Workers)
	wg.Go(func() {
		defer close(work)
		defer close(order)
		b.read(ctx, work, order)
	})
	for range b.cfg.Workers {
		wg.Go(func() {
			for t := range work {
				t.err = b.encode(ctx, t)
				close(t.parts)
			}
		})
	}
	for t := range order {
		if err := b.collect(ctx, t); err != nil {
			return errors.Join(err, b.w.abandon())
		}
	}
	if err := context.Cause(ctx); err != nil {
		return errors.Join(err, b.w.abandon())
	}
	if b.w == nil {
		return nil
	}
	return b.endShard(b.Next)
}

// read groups documents into tasks.
func (b *builder) read(ctx context.Context, work, order chan<- *task) {
	s := &source{inputs: b.Inputs, o: b.Options, at: b.Next}
	send := func(t *task) bool {
		t.parts = make(chan part, len(t.documents)+4)
		if t.err != nil {
			close(t.parts)
		}
		select {
		case order <- t:
		case <-ctx.Done():
			return false
		}
		if t.err != nil {
			return false
		}
		select {
		case work <- t:
			return true
		case <-ctx.Done():
			t.err = context.Cause(ctx)
			close(t.parts)
			return false
		}
	}
	var batch []*document
	size := int64(0)
	for {
		d, err := s.next(ctx)
		full := d == nil || d.long != nil || len(batch) == batchDocs || size+d.bytes > batchText
		if full && len(batch) > 0 {
			if !send(&task{documents: batch}) {
				break
			}
			batch, size = nil, 0
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				send(&task{err: err})
			} else {
				send(&task{documents: []*document{{next: s.at}}}) // what was skipped at the end
			}
			break
		}
		if d.long != nil {
			if !send(&task{documents: []*document{d}}) {
				break
			}
			continue
		}
		batch, size = append(batch, d), size+d.bytes
	}
	_ = s.close() // it was only read
}

// encode runs a task.
func (b *builder) encode(ctx context.Context, t *task) error {
	emit := func(p part) error {
		select {
		case t.parts <- p:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	first := t.documents[0]
	if first.long != nil {
		f, err := first.long.open(0)
		if err != nil {
			return err
		}
		err = b.cfg.Encoder.EncodeStream(ctx, f, func(ids []uint32) error { return emit(part{ids: ids}) })
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return emit(part{end: first})
	}
	if first.bytes == 0 {
		return emit(part{end: first})
	}
	var texts []string
	for _, d := range t.documents {
		texts = append(texts, d.text)
		d.text = ""
	}
	ids, err := b.cfg.Encoder.Encode(ctx, texts)
	if err != nil {
		return err
	}
	if len(ids) != len(texts) {
		return fault.New(fault.Internal, "encode %d texts: got %d", len(texts), len(ids))
	}
	for i, d := range t.documents {
		if err := emit(part{ids[i], d}); err != nil {
			return err
		}
	}
	return nil
}

// collect writes the parts of a task.
func (b *builder) collect(ctx context.Context, t *task) error {
	for {
		select {
		case p, ok := <-t.parts:
			if !ok {
				return t.err
			}
			if err := b.write(p); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *builder) write(p part) error {
	if p.end != nil && p.end.bytes == 0 { // the end of the inputs
		b.Next = p.end.next
		return nil
	}
	if b.w == nil {
		path := filepath.Join(b.cfg.Dir, fmt.Sprintf("shard-%05d.tokens", len(b.Shards)))
		w, err := newShardWriter(path, header{bits: b.bits(), vocab: uint32(b.Vocabulary.Size),
			end: b.Vocabulary.End, vocabulary: b.digest})
		if err != nil {
			return err
		}
		b.w = w
	}
	for _, id := range p.ids {
		if id >= uint32(b.Vocabulary.Size) {
			return fault.New(fault.Internal, "encode: id %d is outside the vocabulary of %d", id, b.Vocabulary.Size)
		}
	}
	if err := b.w.add(p.ids...); err != nil {
		return err
	}
	b.progress.Tokens += int64(len(p.ids))
	if p.end == nil {
		b.report()
		return nil
	}
	if err := b.w.endDocument(p.end.bytes); err != nil {
		return err
	}
	b.Next = p.end.next
	b.progress.Tokens++
	b.progress.Documents++
	b.progress.TextBytes += p.end.bytes
	b.report()
	if int64(b.w.h.tokens) >= b.Options.ShardTokens {
		return b.endShard(p.end.next)
	}
	return nil
}

func (b *builder) report() {
	if b.cfg.Progress != nil {
		b.progress.Input, b.progress.Inputs, b.progress.Skipped = b.Next.Input, len(b.Inputs), b.Next.Skipped
		b.cfg.Progress(b.progress)
	}
}

// endShard completes a shard and saves the state.
func (b *builder) endShard(next position) error {
	info, err := b.w.finish()
	b.w = nil
	if err != nil {
		return err
	}
	b.Shards, b.Next = append(b.Shards, info), next
	return writeJSON(filepath.Join(b.cfg.Dir, stateName), b.state)
}

// finish writes the index and removes the state.
func (b *builder) finish() (*Index, error) {
	x := &Index{Format: version, Vocabulary: b.Vocabulary, Bits: b.bits(), Shards: b.Shards, Skipped: b.Next.Skipped,
		Options: b.Options}
	for _, s := range x.Shards {
		x.Tokens, x.Documents, x.TextBytes = x.Tokens+s.Tokens, x.Documents+s.Documents, x.TextBytes+s.TextBytes
	}
	if x.Documents == 0 {
		return nil, fault.Field("input", "there are no documents in %d files", len(b.Inputs))
	}
	for _, in := range b.Inputs {
		x.Inputs = append(x.Inputs, InputInfo{Path: in.Path, Bytes: in.Bytes})
	}
	if err := writeJSON(filepath.Join(b.cfg.Dir, IndexName), x); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(b.cfg.Dir, stateName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return x, nil
}

// writeJSON writes a file that appears whole or not at all.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return weights.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}
