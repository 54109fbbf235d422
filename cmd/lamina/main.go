// Command lamina is all of Lamina in one static binary: the five services, each
// alone or together (lamina up), and the verbs of their users.
//
// Every flag and every choice of a vendor (Consul, NATS) lives here and in
// cmd/lamina/app; what follows from them is built by cmd/lamina/app, which the
// integration tests use as well.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/bench"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

// cli is the table of commands; each has a file of its own.
type cli struct {
	LogLevel  string `help:"Log level: debug, info, warn or error." default:"warn" env:"LAMINA_LOG_LEVEL"`
	LogFormat string `help:"Log format: text or json." enum:"text,json" default:"text" env:"LAMINA_LOG_FORMAT"`

	Up       upCmd       `cmd:"" help:"Run the whole mesh in this process and serve a model."`
	Generate generateCmd `cmd:"" help:"Continue a prompt."`
	Chat     chatCmd     `cmd:"" help:"Chat with a model in the terminal."`
	Train    trainCmd    `cmd:"" help:"Pre-train a model from a manifest."`
	Status   statusCmd   `cmd:"" help:"Show who is alive, the pipelines and the runs."`
	Models   modelsCmd   `cmd:"" help:"List the models that can be asked."`

	Tokenize   tokenizeCmd   `cmd:"" help:"Turn text on standard input into ids, or back."`
	Vocab      vocabGroup    `cmd:"" help:"Train vocabularies."`
	Grammar    grammarCmd    `cmd:"" help:"Say whether standard input is a text of a grammar, a JSON Schema or a regular expression."`
	Template   templateCmd   `cmd:"" help:"Render messages on standard input by a chat template."`
	Sample     sampleCmd     `cmd:"" help:"Run a chain of sampling rules over a row of logits."`
	Logits     logitsCmd     `cmd:"" help:"Print the logits, loss or gradients of a model over ids."`
	Beams      beamsCmd      `cmd:"" help:"Search the most likely continuations of ids."`
	Perplexity perplexityCmd `cmd:"" help:"Measure a model's perplexity on a text."`
	Bench      bench.Group   `cmd:"" help:"Measure a model or another part."`
	Inspect    inspectCmd    `cmd:"" help:"Show what a model file or folder says."`

	Tokenizer tokenizerCmd `cmd:"" group:"Services" help:"Run the tokenizer service."`
	Shard     shardCmd     `cmd:"" group:"Services" help:"Run a layer shard."`
	Sampler   samplerCmd   `cmd:"" group:"Services" help:"Run the sampler service."`
	Router    routerCmd    `cmd:"" group:"Services" help:"Run the router: gRPC API, HTTP face and console."`
	Trainer   trainerCmd   `cmd:"" group:"Services" help:"Run the trainer service."`
	Health    healthCmd    `cmd:"" group:"Services" help:"Ask a service for its health; exit 1 unless it serves."`

	Version versionCmd `cmd:"" help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main as a function, so that tests call what users call.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c,
		kong.Name("lamina"),
		kong.Description("A large language model as a mesh of small services."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exit = code }),
		kong.UsageOnError(),
	)
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 1
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 {
		return exit // --help
	}
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	log, err := obs.NewLogger(stderr, c.LogLevel, c.LogFormat)
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	err = parsed.Run(&verb.Env{Ctx: ctx, Log: log, Stdin: stdin, Stdout: stdout, Stderr: stderr})
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 0
	case fault.CodeOf(err) == fault.Invalid:
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	fmt.Fprintln(stderr, "lamina:", err)
	return 1
}
