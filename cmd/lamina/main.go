// Command lamina is all of Lamina in one static binary: the five services, alone or together
// (lamina up), and the commands for users.
//
// This package defines the flags. cmd/lamina/app builds the processes from them and chooses the
// vendors (Consul, NATS); the integration tests use it as well.
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
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/config"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/pull"
)

// cli is the table of commands.
type cli struct {
	Config    string `help:"Configuration file (YAML): flags by their names, for all commands or below the name of one." placeholder:"FILE"`
	LogLevel  string `help:"Log level: debug, info, warn or error." default:"warn" env:"LAMINA_LOG_LEVEL"`
	LogFormat string `help:"Log format: text or json."              default:"text" env:"LAMINA_LOG_FORMAT" enum:"text,json"`
	Store     string `help:"Folder of the models that lamina pull fetches. Default: lamina/models in the user's cache folder." env:"LAMINA_STORE"`

	Up       upCmd         `cmd:"" help:"Run the whole mesh in this process and serve a model."`
	Generate generateCmd   `cmd:"" help:"Continue a prompt."`
	Chat     chatCmd       `cmd:"" help:"Chat with a model in the terminal."`
	Train    trainCmd      `cmd:"" help:"Pre-train a model from a manifest."`
	Tune     tuneCmd       `cmd:"" help:"Fine-tune a model on conversations with a low-rank adapter."`
	Runs     runsGroup     `cmd:"" help:"List, watch, pause, resume, stop and delete training runs, and fetch their files."`
	Report   reportCmd     `cmd:"" help:"Write a report on training runs: curves, figures, manifest and sample texts as one HTML page, or steps as CSV."`
	Plan     planCmd       `cmd:"" help:"Show how a model would be placed on hosts, and what it would give, before anything loads."`
	Status   statusCmd     `cmd:"" help:"Show the running services, the pipelines and the training runs."`
	Members  membersGroup  `cmd:"" help:"List what the registry knows of services, and remove entries that were left behind."`
	Deploy   deployCmd     `cmd:"" help:"Bring a version of a model into service beside the one before, or list the deployments."`
	Undeploy undeployCmd   `cmd:"" help:"Take a model out of service when its last request has ended."`
	Pull     pullCmd       `cmd:"" help:"Fetch a model into the store of this machine, from a path, a server or a repository."`
	Models   modelsCmd     `cmd:"" help:"List the models of the store, or with --router those that a router serves."`
	MCP      mcpCmd        `cmd:"" name:"mcp" help:"Offer a mesh to MCP clients on standard input and output: tools to generate, to embed and to show the mesh."`
	Rm       rmCmd         `cmd:"" help:"Remove models from the store."`
	Adapters adaptersGroup `cmd:"" help:"List, load and unload the adapters (LoRA) of a router's models."`

	Tokenize   tokenizeCmd   `cmd:"" help:"Encode the text on standard input as token ids, or decode ids."`
	Vocab      vocabGroup    `cmd:"" help:"Train vocabularies."`
	Data       dataGroup     `cmd:"" help:"Build token data for training."`
	Grammar    grammarCmd    `cmd:"" help:"Check whether the text on standard input matches a grammar, a JSON Schema or a regular expression."`
	Template   templateCmd   `cmd:"" help:"Render the messages on standard input with a chat template."`
	Toolcall   toolcallCmd   `cmd:"" help:"Read reasoning, answer and tool calls out of the raw text of a model on standard input."`
	Sample     sampleCmd     `cmd:"" help:"Apply a sampler chain to a row of logits."`
	Logits     logitsCmd     `cmd:"" help:"Print the logits, loss or gradients of a model for token ids."`
	Embed      embedCmd      `cmd:"" help:"Compute the embeddings of texts: a JSON string on each line of standard input."`
	Beams      beamsCmd      `cmd:"" help:"Search for the most likely continuations of token ids (beam search)."`
	Merge      mergeCmd      `cmd:"" help:"Merge a low-rank adapter into its model and write the result."`
	Export     exportCmd     `cmd:"" help:"Write a model as a GGUF file or a Hugging Face folder."`
	Quantize   quantizeCmd   `cmd:"" help:"Write a model as a GGUF file with quantised weights, and say by how much they differ."`
	Eval       evalGroup     `cmd:"" help:"Evaluate a model, with or without an adapter, and compare results."`
	Perplexity perplexityCmd `cmd:"" help:"Measure the perplexity of a model on a text."`
	Bench      bench.Group   `cmd:"" help:"Benchmark a model, training, grammars, tokenizers or samplers."`
	Loadtest   loadtestCmd   `cmd:"" help:"Put load on any server with OpenAI's HTTP API, and measure latencies, stalls, errors and equal answers."`
	Chaos      chaosCmd      `cmd:"" help:"Start a fleet on this machine, put load on it, inject faults, and say which promises held."`
	Inspect    inspectCmd    `cmd:"" help:"Show the metadata and tensors of a model file or folder, or what token data holds."`
	Schedule   scheduleCmd   `cmd:"" help:"Simulate a training schedule and show the bubble, the held activations and the order of work."`

	Tokenizer tokenizerCmd `cmd:"" group:"Services" help:"Run the tokenizer service."`
	Shard     shardCmd     `cmd:"" group:"Services" help:"Run a shard, which holds layers of a model."`
	Sampler   samplerCmd   `cmd:"" group:"Services" help:"Run the sampler service."`
	Router    routerCmd    `cmd:"" group:"Services" help:"Run the router: gRPC API, HTTP API and console."`
	Trainer   trainerCmd   `cmd:"" group:"Services" help:"Run the trainer service."`
	Health    healthCmd    `cmd:"" group:"Services" help:"Query the health of a service; exit with 1 unless it is SERVING."`

	Keys  keysGroup  `cmd:"" group:"Access" help:"Make, list, rotate and revoke API keys."`
	Nkeys nkeysGroup `cmd:"" group:"Access" help:"Make what services need to use NATS and Consul safely."`
	Certs certsGroup `cmd:"" group:"Access" help:"Make the certificates by which services know each other."`

	Help       helpCmd       `cmd:"" group:"Help" help:"Show the commands, or the flags of one."`
	Doctor     doctorCmd     `cmd:"" group:"Help" help:"Check ports, certificates, the clock, Consul, NATS, processor and memory, and say what to do."`
	ShowConfig configCmd     `cmd:"" group:"Help" name:"config"     help:"Show the effective configuration of a command, and where each value came from."`
	Completion completionCmd `cmd:"" group:"Help" help:"Print the script that completes commands and flags in a shell."`
	Man        manCmd        `cmd:"" group:"Help" help:"Write manual pages."`
	Complete   completeCmd   `cmd:"" hidden:"" help:"Print what the last of some words may become."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// newParser returns a parser of the command line. Every flag can also be set by an environment variable.
func newParser(
	c *cli, stdout, stderr io.Writer, exit func(code int), options ...kong.Option,
) (*kong.Kong, error) {
	return kong.New(c, append(options,
		kong.Name("lamina"),
		kong.Description("A large language model as a mesh of small services."),
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.UsageOnError(),
		kong.Vars{"endpoint": pull.DefaultEndpoint},
		config.Environment(),
	)...)
}

// run is main as a function that tests can call. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	exit := -1
	file, err := config.Read(config.FileOf(args))
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	parser, err := newParser(&c, stdout, stderr, func(code int) { exit = code }, kong.Resolvers(file))
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 1
	}
	if err := file.Validate(parser.Model); err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 {
		return exit // --help
	}
	if err != nil {
		fmt.Fprintf(stderr, "lamina: %v\n  see %s\n", err, usageHint(err))
		return 2
	}
	log, level, err := obs.NewLogger(stderr, c.LogLevel, c.LogFormat)
	if err != nil {
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	env := &verb.Env{Ctx: ctx, Log: log, Level: level, Store: c.Store, Stdin: stdin, Stdout: stdout, Stderr: stderr,
		Config: func(w io.Writer) error { return writeConfig(w, parsed, file) }}
	release, err := resolveModels(env, parsed)
	defer release()
	if err == nil {
		err = parsed.Run(parser.Model, file, env)
	}
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 0
	case fault.CodeOf(err) == fault.Invalid:
		fmt.Fprintln(stderr, "lamina:", err)
		return 2
	}
	fmt.Fprintln(stderr, "lamina:", plain(err))
	if next := hint(err); next != "" {
		fmt.Fprintln(stderr, "  "+next)
	}
	return 1
}
