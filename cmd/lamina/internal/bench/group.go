// Package bench is the command `lamina bench`: it measures models, training steps,
// grammars, tokenizers and sampling on this machine, and profiles the operations of a
// kernel set. Models of known shapes with random weights are made in memory. Results say
// which machine and commit made them, for bench/results.
package bench

// Group is what can be measured; without a word it is a model.
type Group struct {
	Model benchCmd      `cmd:"" default:"withargs" help:"Measure a model's prefill, decode and this machine's limits."`
	Train benchTrainCmd `cmd:"" help:"Measure training steps and how near they come to the machine's peak."`

	Grammar   benchGrammarCmd   `cmd:"" help:"Measure how fast grammars compile and make masks."`
	Tokenizer benchTokenizerCmd `cmd:"" help:"Measure how fast vocabularies encode and decode a text."`
	Sampler   benchSamplerCmd   `cmd:"" help:"Measure how long each rule takes for a token."`
}
