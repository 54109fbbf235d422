// Package bench implements the command `lamina bench`. It measures models, training steps, grammars,
// tokenizers and sampling on this machine, and profiles the operations of a kernel set. It can build
// models of known shapes with random weights in memory. Results name the machine, and can be written
// to bench/results.
package bench

// Group is the group of bench commands. The default is to measure a model.
type Group struct {
	Model benchCmd      `cmd:"" default:"withargs" help:"Measure prefill and decode of a model, and the limits of this machine."`
	Train benchTrainCmd `cmd:"" help:"Measure training steps, and how close they come to the peak of this machine."`

	Grammar   benchGrammarCmd   `cmd:"" help:"Measure how fast grammars are compiled and token masks are computed."`
	Tokenizer benchTokenizerCmd `cmd:"" help:"Measure how fast vocabularies encode and decode a text."`
	Sampler   benchSamplerCmd   `cmd:"" help:"Measure how long each sampler takes for a token."`
}
