package main

// benchGroup is what can be measured; without a word it is a model.
type benchGroup struct {
	Model benchCmd      `cmd:"" default:"withargs" help:"Measure a model's prefill, decode and this machine's limits."`
	Train benchTrainCmd `cmd:"" help:"Measure training steps and how near they come to the machine's peak."`

	Grammar   benchGrammarCmd   `cmd:"" help:"Measure how fast grammars compile and make masks."`
	Tokenizer benchTokenizerCmd `cmd:"" help:"Measure how fast vocabularies encode and decode a text."`
	Sampler   benchSamplerCmd   `cmd:"" help:"Measure how long each rule takes for a token."`
}
