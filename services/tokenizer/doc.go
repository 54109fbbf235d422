// Package tokenizer is the service that turns text into token ids and back. It holds the
// vocabularies and chat templates of models, by name and by digest, and what their files say about
// generation. It knows nothing else about a model.
//
// The router calls it: ApplyChatTemplate or Encode for a request's prompt, one
// DecodeStream for its answer. Others encode batches and long texts, and train
// vocabularies. The conversations are described in proto/lamina/tokenizer/v1.
//
// A Service needs at least one Model, or a Library, before it is advertised as ready, and never two
// different models with one name. Models may be added and removed while requests run; a request
// keeps the model that it started with. Configured models stay loaded. Models that requests name
// are loaded on demand, once for all requests that wait for them, into a cache with LRU eviction.
//
// A chat template is parsed when its model is added, and rendered under a budget. Control
// tokens in a prompt come from the template alone: text of the messages is encoded as
// text.
//
// Long texts are encoded in parts, which are split only where that changes no id (see splitter).
// Files are read only from the folder of texts.
package tokenizer
