package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// dataGroup is the group of commands for training data.
type dataGroup struct {
	Build dataBuildCmd `cmd:"" help:"Encode texts as token data, which training runs read. A build that was stopped continues."`
	Masks dataMasksCmd `cmd:"" help:"Print the token ids of conversations, and which of them a model is trained to write."`
}

type dataBuildCmd struct {
	connectFlags
	Input       []string `arg:"" help:"Text file, JSON lines (.jsonl, .ndjson), or folder of .txt, .text, .md, .jsonl and .ndjson files; each may be compressed (.gz, .zst)."`
	Tokenizer   string   `       help:"Model file or folder, tokenizer.json, SentencePiece .model file or tiktoken rank file. With --addr: the name or digest of a model of that tokenizer." short:"t" required:""`
	Addr        string   `       help:"Address of a tokenizer service to use instead of one in this process."                                                                                                      env:"LAMINA_TOKENIZER"`
	Out         string   `       help:"Folder for the token data; created if it does not exist."                                                                                             short:"o" required:""                        type:"path"`
	Field       string   `       help:"Field of each JSON line that has the text."                                                                                                                                                                    default:"text"`
	Documents   string   `       help:"What a document of a text file is: the whole file, or each line that is not blank."                                                                                                                            default:"file"     enum:"file,line"`
	SkipBad     bool     `       help:"Leave out documents that are empty, not UTF-8 or not JSON, or that lack the field, and count them. Without it they end the build."`
	ShardTokens int64    `       help:"Tokens of a shard file; the last document of a shard may exceed it. A stopped build continues after its last complete shard."                                                                                  default:"67108864"`
	End         string   `       help:"Spelling of the token that ends every document. Default: the end-of-text token of the vocabulary."`
	Threads     int      `       help:"Texts that are encoded at once; 0 means one for each processor. The result does not depend on it."                                                                                                             default:"0"`
	Format      string   `       help:"Output: text or json."                                                                                                                                                                                         default:"text"     enum:"text,json"`
}

// Run builds token data.
func (c *dataBuildCmd) Run(e *verb.Env) error {
	inputs, err := corpus.FindInputs(c.Input)
	if err != nil {
		return err
	}
	if c.Threads < 0 {
		return fault.Field("threads", "want 0 or more, got %d", c.Threads)
	}
	var local *vocab.Vocab
	if c.Addr == "" {
		if local, err = tokenizer.LoadVocab(c.Tokenizer); err != nil {
			return err
		}
	}
	return c.withTokenizer(e, local, func(client tokenizerv1.TokenizerServiceClient) error {
		name := c.Tokenizer
		if local != nil {
			name = ""
		}
		v, err := describeVocabulary(e.Ctx, client, name, c.End)
		if err != nil {
			return err
		}
		config := corpus.BuildConfig{
			Dir: c.Out, Inputs: inputs, Vocabulary: v, Encoder: &serviceEncoder{client, name}, Workers: c.Threads,
			Options: corpus.Options{Field: c.Field, Lines: c.Documents == "line", Skip: c.SkipBad,
				ShardTokens: c.ShardTokens},
		}
		if config.Workers == 0 {
			config.Workers = runtime.GOMAXPROCS(0)
		}
		line := newProgressLine(e.Stderr)
		began := time.Now()
		config.Progress = func(p corpus.Progress) {
			line.show(func() string { return buildProgress(p, time.Since(began)) })
		}
		index, err := corpus.Build(e.Ctx, config)
		line.end()
		if err != nil {
			return err
		}
		if local != nil {
			// A vocabulary from another kind of file cannot be written; a run then names it in its manifest.
			var unsupported *vocab.FormatError
			if err := local.WriteHF(c.Out); err != nil && !errors.As(err, &unsupported) {
				return err
			}
		}
		if c.Format == "json" {
			return verb.PrintJSON(e, index)
		}
		return printTokens(e.Stdout, c.Out, index)
	})
}

// withTokenizer calls do with a client of the tokenizer service, which is in this process unless there is an
// address.
func (c *dataBuildCmd) withTokenizer(e *verb.Env, local *vocab.Vocab,
	do func(tokenizerv1.TokenizerServiceClient) error) (err error) {
	options, err := c.options()
	if err != nil {
		return err
	}
	address := c.Addr
	if local != nil {
		s, err := tokenizer.New(tokenizer.Config{Workers: 1,
			Models: []tokenizer.Model{{Name: "data", Digest: "sha256:data", Vocab: local}}})
		if err != nil {
			return err
		}
		options.Net = memnet.New()
		address = "mem:tokenizer"
		listener, err := rpc.Listen(address, rpc.ListenOptions{Net: options.Net})
		if err != nil {
			return err
		}
		server := rpc.NewServer(rpc.ServerOptions{Log: e.Log})
		s.Register(server)
		ctx, cancel := context.WithCancel(context.WithoutCancel(e.Ctx))
		served := make(chan error, 1)
		go func() { served <- rpc.Serve(ctx, server, listener, func() {}, rpc.DrainLimit(time.Second)) }()
		defer func() {
			cancel()
			err = errors.Join(err, <-served)
		}()
	}
	dialer := rpc.NewDialer(options)
	defer func() { err = errors.Join(err, dialer.Close()) }()
	conn, err := dialer.Dial(address)
	if err != nil {
		return err
	}
	return do(tokenizerv1.NewTokenizerServiceClient(conn))
}

// buildProgress returns one line about a build.
func buildProgress(p corpus.Progress, took time.Duration) string {
	resumed := ""
	if p.Resumed {
		resumed = "  (continued)"
	}
	return fmt.Sprintf("file %d of %d  %s  %s  %.1f MB of text  %d skipped  %s%s", min(p.Input+1, p.Inputs), p.Inputs,
		plural.Of(p.Documents, "document"), plural.Of(p.Tokens, "token"), float64(p.TextBytes)/1e6, p.Skipped.Total(),
		took.Round(time.Second), resumed)
}

// printTokens describes token data.
func printTokens(out io.Writer, dir string, x *corpus.Index) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "PATH\t%s\nFORMAT\ttoken data\n", dir)
	fmt.Fprintf(w, "TOKENS\t%d of %d bits\nDOCUMENTS\t%d\n", x.Tokens, x.Bits, x.Documents)
	fmt.Fprintf(w, "TEXT\t%d bytes, %.2f a token\n", x.TextBytes, float64(x.TextBytes)/float64(x.Tokens))
	if s := x.Skipped; s.Total() > 0 {
		fmt.Fprintf(w, "SKIPPED\t%d not UTF-8, %d not JSON, %d without field %q, %d empty\n", s.NotUTF8, s.NotJSON,
			s.NoField, x.Options.Field, s.Empty)
	}
	v := &x.Vocabulary
	fmt.Fprintf(w, "VOCABULARY\t%s of %d ids, sha256:%.16s\n", v.Family, v.Size, v.SHA256)
	fmt.Fprintf(w, "DOCUMENTS\tbegin with id %d (not stored) and end with id %d\n", v.Begin, v.End)
	fmt.Fprintf(w, "INPUTS\t%s\n\n", plural.Of(len(x.Inputs), "file"))
	fmt.Fprintln(w, "SHARD\tTOKENS\tDOCUMENTS\tSHA-256")
	for _, s := range x.Shards {
		fmt.Fprintf(w, "%s\t%d\t%d\t%.16s\n", s.File, s.Tokens, s.Documents, s.SHA256)
	}
	return w.Flush()
}

// progressLine shows progress on one line of a terminal, or else from time to time on a line of its own.
type progressLine struct {
	out      io.Writer
	terminal bool
	every    time.Duration
	last     time.Time
	shown    bool
}

func newProgressLine(out io.Writer) *progressLine {
	l := &progressLine{out: out, every: 10 * time.Second, last: time.Now()}
	if f, ok := out.(*os.File); ok {
		stat, err := f.Stat()
		if l.terminal = err == nil && stat.Mode()&os.ModeCharDevice != 0; l.terminal {
			l.every = 200 * time.Millisecond
		}
	}
	return l
}

// show prints a text if the last one is old enough.
func (l *progressLine) show(text func() string) {
	if time.Since(l.last) < l.every {
		return
	}
	l.last, l.shown = time.Now(), true
	if l.terminal {
		fmt.Fprintf(l.out, "\r\033[K%s", text())
		return
	}
	fmt.Fprintln(l.out, text())
}

// end ends the line.
func (l *progressLine) end() {
	if l.terminal && l.shown {
		fmt.Fprintln(l.out)
	}
}
