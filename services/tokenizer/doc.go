// Package tokenizer is the service that turns text into token ids and back. It
// holds the vocabularies and chat templates of models, by name and by digest,
// and knows nothing else of them.
//
// The router calls it: ApplyChatTemplate or Encode for a request's prompt, one
// DecodeStream for its answer. The conversation of DecodeStream stands in
// proto/lamina/tokenizer/v1.
//
// Whoever makes a Service gives it at least one Model before it is advertised as
// ready, and never two different ones of a name. Models may come and go while
// requests run; a request keeps the model it began with.
//
// A chat template is parsed when its model is added and rendered under a
// budget. Control tokens in a prompt come from the template alone: text that
// came with the messages is encoded as text.
package tokenizer
