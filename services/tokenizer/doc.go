// Package tokenizer is the service that turns text into token ids and back. It
// holds the vocabularies and chat templates of models, by name and by digest,
// and knows nothing else of them.
//
// The router calls it: ApplyChatTemplate or Encode for a request's prompt, one
// DecodeStream for its answer. Others encode batches and long texts, and train
// vocabularies. The conversations stand in proto/lamina/tokenizer/v1.
//
// Whoever makes a Service gives it at least one Model, or a Library, before it is
// advertised as ready, and never two different models of a name. Models may come and
// go while requests run; a request keeps the model it began with. Models that were
// given stay; those that a request named are loaded once for all who wait for them,
// and where there are too many the one used longest ago goes.
//
// A chat template is parsed when its model is added and rendered under a
// budget. Control tokens in a prompt come from the template alone: text that
// came with the messages is encoded as text.
//
// A long text is encoded piece by piece where that changes no id: newCutter says
// where. Files are read below the folder of texts and nowhere else.
package tokenizer
